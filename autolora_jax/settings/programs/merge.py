"""What `autolora merge` can be asked for."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from autolora_jax.config import ConfigError
from autolora_jax.settings.fields import setting
from autolora_jax.settings.model import DTYPES, Checkpoint
from autolora_jax.settings.pictures import OUTPUT
from autolora_jax.settings.programs.lora_file import Ranked
from autolora_jax.settings.programs.program import Program
from autolora_jax.settings.values import Loras


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge(Program, Checkpoint):
    """Write a model with LoRAs merged into its weights: W + Σ scale · ΔW, of every network and kind of LoRA.

    It draws what the model draws with these LoRAs, in any program; their scales are fixed, and AutoLoRA has no base.

    Layer by layer: a diffusers folder takes the memory of a layer, the Orbax form that of the largest network.
    """

    PANEL: ClassVar[str] = OUTPUT

    source: str = setting(
        flag="model",
        help="Single .safetensors, diffusers or converted folder, hub id, 'builtin'.",
        argument=True,
        metavar="MODEL",
    )
    loras: Loras = setting(
        help="LoRA files, folders or hub ids, and their strengths (1).", argument=True, metavar="LORA[:SCALE]"
    )
    out: Path = setting(help="New folder. It appears when all is written, or not at all.", short="-o", metavar="DIR")
    format: str = setting(
        "diffusers",
        "diffusers, a folder that diffusers and autolora load; or orbax, which loads faster here.",
        offers=("diffusers", "orbax"),
    )
    dtype: str | None = setting(
        None,
        "float32, float16 or bfloat16 of the new weights. Sums are taken in float32 and rounded once.",
        shown="as stored",
        offers=DTYPES,
    )

    def check(self) -> None:
        if others := [str(lora) for lora in self.loras if lora.role != "tuned"]:
            raise ConfigError(f"{others[0]}: merged weights are of one kind, so a LoRA has no role; leave the @ out")
        if others := [str(lora) for lora in self.loras if lora.blocks or isinstance(lora.scale, tuple)]:
            raise ConfigError(f"{others[0]}: a LoRA is merged at one strength, which all its layers share; give one")

    ENVIRONMENT = Ranked.ENVIRONMENT
    EXAMPLES = """[bold]Examples[/]

[cyan]autolora merge sd_xl_base_1.0.safetensors pixel-art-xl.safetensors:0.9 --out pixel-art-sdxl[/]

Two LoRAs, in the form that loads fastest here:

[cyan]autolora merge MODEL style.safetensors:0.7 character.safetensors --out merged --format orbax --dtype bfloat16[/]

What came out is a model:

[cyan]autolora generate pixel-art-sdxl --prompt "a cute corgi"[/]
"""
