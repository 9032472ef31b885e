"""What `autolora distill` can be asked for."""

import dataclasses
from typing import ClassVar

from autolora_jax.config import ConfigError
from autolora_jax.settings.distilling import Distillation
from autolora_jax.settings.fields import setting
from autolora_jax.settings.pictures import OUTPUT
from autolora_jax.settings.programs.program import Configured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(Configured):
    """Make a LoRA that draws by itself what AutoLoRA or another guidance draws: at the price of a plain LoRA, in any
    program.

    Needs prompts and no pictures. Ctrl-C and SIGTERM save where it stands, and the same command goes on from there: to
    the very same file.
    """

    PANEL: ClassVar[str] = OUTPUT

    settings: Distillation = Distillation()
    fresh: bool = setting(False, "Start anew: first remove the checkpoints in the work folder.")
    overwrite: bool = setting(False, "Replace a LoRA file that another run wrote.")

    def check(self) -> None:
        if self.settings.strength is not None:
            raise ConfigError("strength is of a picture that is changed, and a teacher draws from noise: leave it out")

    EXAMPLES = """[bold]Examples[/]

AutoLoRA with a LoRA at 0.8, as one file to use without guidance:

[cyan]autolora distill MODEL --lora X.safetensors:0.8 --prompts prompts.txt --out X-autolora.safetensors[/]

What it is like, on the small built-in model:

[cyan]autolora distill --lora builtin:character:0.7 --w1 3 --w2 3 --out character-autolora.safetensors[/]

In 8 steps what the teacher draws in 32:

[cyan]autolora distill MODEL --lora X.safetensors --steps 32 --student-steps 8 --out X-8.safetensors[/]

The finished LoRA:

[cyan]autolora generate MODEL --lora X-autolora.safetensors --prompt "Anna on the moon"[/]
"""
