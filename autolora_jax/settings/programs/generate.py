"""What `autolora generate` can be asked for."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from autolora_jax import foreign
from autolora_jax.config import ConfigError
from autolora_jax.settings.fields import setting
from autolora_jax.settings.pictures import OUTPUT, PICTURES, GenerateConfig
from autolora_jax.settings.programs.program import Configured
from autolora_jax.settings.values import tells_apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(Configured):
    """Draw pictures with a LoRA-tuned SDXL or SD3, one for every prompt and seed.

    Each PNG carries its settings where A1111, ComfyUI and civitai look for them; config.json beside them holds the
    run's. Pictures are saved as they are finished.
    """

    PANEL: ClassVar[str] = OUTPUT

    settings: GenerateConfig = GenerateConfig()
    prompt_file: Path | None = setting(None, "Text file with a prompt a line, added to --prompt.", panel=PICTURES)
    overwrite: bool = setting(False, "Number from 0000 and replace pictures of the same name.")

    @classmethod
    def configured(cls, kind: Any, options: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
        lines = _lines(options["prompt_file"]) if "prompt_file" in options else []
        prompts = {"prompts": [*changes.get("prompts", ()), *lines]} if lines else {}
        return super().configured(kind, options, {**changes, **prompts})

    def check(self) -> None:
        if not self.settings.prompts and not self.settings.embeds:
            raise ConfigError("draw what? Give a --prompt, a --prompt-file, or --embeds")
        if self.settings.prompts and self.settings.embeds:
            raise ConfigError("--prompt and --embeds are both given: a picture is told one of them")
        if not self.settings.image and (self.settings.mask or self.settings.strength is not None):
            raise ConfigError("--mask and --strength are of a picture that is changed: give --image FILE, too")
        if self.settings.compare and not (tells_apart(self.settings.loras) or self.settings.lora_dir):
            raise ConfigError("--compare sets a LoRA beside the base model: add --lora FILE")

    EXAMPLES = """[bold]Examples[/]

Four pictures with the paper's guidance:

[cyan]autolora generate sd_xl_base_1.0.safetensors --lora pixel-art-xl.safetensors --prompt "a corgi" --seeds 0-3[/]

Base model, LoRA and AutoLoRA side by side, from the same noise:

[cyan]autolora generate MODEL --lora princess_xl_v2.safetensors:0.8 --prompt "Anna" --seeds 0-7 --compare[/]

A picture of yours, changed:

[cyan]autolora generate MODEL --lora anna.safetensors --prompt "Anna on the moon" --image anna.png --strength 0.6[/]

A preset, with another γ and fewer steps:

[cyan]autolora generate MODEL --config configs/sdxl_autolora.py --lora FILE --prompt "Anna" --gamma 2 --steps 20[/]

The same run again, elsewhere:

[cyan]autolora generate --config out/config.json --out again[/]
"""


def _lines(path: Path) -> list[str]:
    try:
        lines = foreign.read_file(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 text ({e.reason} at byte {e.start}); save it as UTF-8") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"{path} holds no prompt: one a line is expected")
    return prompts
