"""The built-in model's AutoLoRA over γ.

autolora reproduce sweep_gamma
"""

from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.sweeps import BARE, over_gammas


def get_config() -> Experiment:
    return over_gammas("sweep_gamma", BARE, (1.25, 1.5, 1.75, 2.0))


get_builtin = get_config  # of the built-in model in any case
