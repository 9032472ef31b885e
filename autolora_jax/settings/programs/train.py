"""What `autolora train` can be asked for."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autolora_jax.config import ConfigError
from autolora_jax.settings.fields import setting
from autolora_jax.settings.pictures import OUTPUT
from autolora_jax.settings.programs.program import Configured
from autolora_jax.settings.training import DATA, TrainingRun


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Configured):
    """Tune SDXL or SD3 on a folder of captioned pictures: a LoRA file that autolora, A1111, ComfyUI and diffusers load.

    Ctrl-C and SIGTERM save where it stands, and the same command goes on from there: to the very same file.
    """

    PANEL: ClassVar[str] = OUTPUT

    settings: TrainingRun = TrainingRun()
    no_buckets: bool = setting(False, "Crop all to squares, where otherwise shapes up to 2:1 are kept.", panel=DATA)
    fresh: bool = setting(False, "Start anew: first remove the checkpoints in the work folder.")
    overwrite: bool = setting(False, "Replace a LoRA file that another run wrote.")

    @classmethod
    def configured(cls, kind: Any, options: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
        squares = {"training.data.max_aspect": 1.0} if options.get("no_buckets") else {}
        return super().configured(kind, options, {**squares, **changes})

    def check(self) -> None:
        if self.settings.data is None:
            raise ConfigError("train on what? Give --data DIR, a folder of pictures with captions")

    EXAMPLES = """[bold]Examples[/]

A folder with dog-1.jpg, dog-1.txt, …; each .txt says what its picture shows:

[cyan]autolora train sd_xl_base_1.0.safetensors --data photos --trigger "sks dog" --out dog.safetensors[/]

What it is like, on the small built-in model:

[cyan]autolora train --data photos --steps 200 --rank 8 --out small.safetensors[/]

A preset, with the feed-forward layers, too:

[cyan]autolora train --config configs/sdxl_lora.py --data photos --target attention --target feed_forward[/]

Ctrl-C, then the same command again: it goes on where it was. The finished LoRA:

[cyan]autolora generate sd_xl_base_1.0.safetensors --lora dog.safetensors --prompt "sks dog on a beach"[/]
"""
