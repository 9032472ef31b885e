"""The same over three LoRA scales, of prompts that put the character elsewhere than in its training pictures.

autolora reproduce sweep_contexts
"""

from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.parts import CONTEXTS
from autolora_jax.experiments.sweeps import over_scales


def get_config() -> Experiment:
    return over_scales("sweep_contexts", CONTEXTS, (0.4, 0.7, 1.0))


get_builtin = get_config  # of the built-in model in any case
