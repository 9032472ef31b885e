"""What `autolora info` can be asked for."""

import dataclasses

from autolora_jax.settings.fields import setting
from autolora_jax.settings.model import MODEL
from autolora_jax.settings.programs.program import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info(Program):
    """Say what a file is, what of it would load and what would not, without loading it. Exit code 1: it would not.

    Of a LoRA: its dialect, the model it was made for, kinds, ranks and alphas, trigger words, how it was trained.
    """

    file: str = setting(
        help="Checkpoint or LoRA file, model folder, a PNG from autolora generate; of LoRAs also hub ids.",
        argument=True,
        metavar="FILE",
    )
    model: str | None = setting(
        None, "Of a LoRA: say whether it fits this model, too. Folder, file or hub id.", panel=MODEL
    )
    json: bool = setting(False, "Print JSON, with the whole header.")
    hash: bool = setting(
        True, "The sha256 of a file, for which all of it is read: 7 GB take a while.", flag="--hash/--no-hash"
    )
    verify: bool = setting(
        False,
        "Read all of it: checksums of a converted folder and of files in the hub's cache, and whether all weights are "
        "finite numbers. Exit code 1: something is damaged.",
    )

    EXAMPLES = """[bold]Examples[/]

[cyan]autolora info pixel-art-xl.safetensors[/]

Whether it fits a model, and how many of its layers it changes:

[cyan]autolora info pixel-art-xl.safetensors --model stabilityai/stable-diffusion-xl-base-1.0[/]

Whether a model came through a copy unharmed:

[cyan]autolora info converted/sdxl --verify[/]

Its trigger words alone, for a script:

[cyan]autolora info pixel-art-xl.safetensors --json --no-hash | jq -r '.lora.trigger_words[]'[/]
"""
