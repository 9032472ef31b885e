"""The built-in model's AutoLoRA over γ, of prompts that put the character elsewhere than in its training pictures.

autolora reproduce sweep_contexts_gamma
"""

from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.parts import CONTEXTS
from autolora_jax.experiments.sweeps import over_gammas


def get_config() -> Experiment:
    return over_gammas("sweep_contexts_gamma", CONTEXTS, (1.5, 2.0))


get_builtin = get_config  # of the built-in model in any case
