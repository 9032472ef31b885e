"""What `autolora warmup` can be asked for."""

import dataclasses
from typing import ClassVar

from autolora_jax.settings.fields import Table, setting
from autolora_jax.settings.model import MODEL, ModelConfig
from autolora_jax.settings.programs.program import Compiling
from autolora_jax.settings.values import Loras, Texts

PROGRAMS = "Programs"  # panel of --help


@dataclasses.dataclass(frozen=True, kw_only=True)
class Warmup(Compiling, ModelConfig):
    """Compile ahead what later runs will need: of a model with the given LoRAs, or of a job.

    Every run finds the programs in the compilation cache. What depends on values alone, such as steps, seeds, prompts,
    γ, w and scales, is no program's matter.
    """

    PANEL: ClassVar[str] = PROGRAMS

    source: str | None = setting(
        None,
        "Model, as for generate: folder, file or hub id; without any the built-in one. Or a job, a .py file as for "
        "batch: what it draws with is compiled, and the other flags are not needed.",
        flag="model",
        argument=True,
    )
    lora: Loras = setting((), "A LoRA to be drawn with. Repeat it.", panel=MODEL, metavar="FILE")
    size: Texts = setting((), "Of the pictures. Repeat it for several.", shown="the model's", metavar="WIDTHxHEIGHT")
    batch_size: Texts = setting(
        ("4",),
        "Pictures per device at once, as in the runs to come; 1 for single ones. Repeat it for several.",
        metavar="INTEGER",
    )
    guidance: Texts = setting(
        (),
        "Rules to come. autolora and cfg share a program, which takes both prompts at once; none, autoguidance, "
        "personalization and AutoLoRA without CFG share another. Repeat it for several.",
        shown="autolora with a LoRA, cfg without",
        metavar="RULE",
        offers=Table("settings.rules", "RULES"),
    )

    EXAMPLES = """[bold]Examples[/]

What `autolora generate` needs for AutoLoRA, upright and square:

[cyan]autolora warmup MODEL --lora pixel-art-xl.safetensors --size 1024x1024 --size 832x1216[/]

All that a job will draw with:

[cyan]autolora warmup job.py[/]

Programs are compiled for the devices that are here: run it on a machine like those that will draw, with a
[cyan]--compilation-cache[/] that they all see. Any LoRA of low rank will do: its programs serve every other.
"""
