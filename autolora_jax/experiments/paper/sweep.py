"""The built-in model's LoRA and AutoLoRA over LoRA scales: Table 1 in small, in many pictures.

autolora reproduce sweep
"""

from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.parts import SCALES
from autolora_jax.experiments.sweeps import BARE, over_scales


def get_config() -> Experiment:
    return over_scales("sweep", BARE, SCALES)


get_builtin = get_config  # of the built-in model in any case
