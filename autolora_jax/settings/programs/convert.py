"""What `autolora convert` can be asked for."""

import dataclasses

from autolora_jax.settings.fields import setting
from autolora_jax.settings.model import DTYPES, Checkpoint
from autolora_jax.settings.programs.program import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(Program, Checkpoint):
    """Convert a checkpoint once, so that it loads faster and straight onto the devices.

    Tensor by tensor: it needs the memory of the largest network at most. The folder is a MODEL for autolora generate.
    """

    source: str = setting(help="Single .safetensors file, diffusers folder or hub id.", argument=True)
    out: str = setting(help="New folder. It appears when all is written, or not at all.", argument=True)
    dtype: str = setting(
        "bfloat16",
        "bfloat16, float16 or float32: what the weights are stored in; a VAE that overflows in half precision stays "
        "float32.",
        offers=DTYPES,
    )
