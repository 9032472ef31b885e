"""What `autolora ui` can be asked for."""

import dataclasses
from typing import ClassVar

from autolora_jax.settings.fields import setting
from autolora_jax.settings.pictures import GenerateConfig
from autolora_jax.settings.programs.program import RUN, Configured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ui(Configured):
    """Open a page to play on: γ, scale and w by slider, base model, LoRA and AutoLoRA side by side, grids.

    It begins with what `autolora generate` would draw by the same flags, the built-in model where there is none. Every
    picture that is drawn in full is a file in OUT with its settings, and the page says the command that draws it again.
    """

    PANEL: ClassVar[str] = RUN

    settings: GenerateConfig = GenerateConfig(out="ui")
    port: int | None = setting(
        None, "Where the page is served.", shown="7860 or the next that is free", least=1, most=65535
    )
    host: str = setting(
        "127.0.0.1", "Whom it is served to: 0.0.0.0 is everyone who reaches this machine.", metavar="ADDRESS"
    )
    share: bool = setting(
        False,
        "Serve it at a public address of Gradio's for three days, from Colab, say. Whoever knows it can draw, and read "
        "files of this machine by the names of models and LoRAs: keep it to yourself.",
    )
    browser: bool = setting(True, "Open it in a browser.", flag="--browser/--no-browser")

    EXAMPLES = """[bold]Examples[/]

The built-in model, at once:

[cyan]autolora ui[/]

SDXL with a LoRA; more can be added on the page:

[cyan]autolora ui sd_xl_base_1.0.safetensors --lora anna.safetensors:0.8 --prompt "Anna on a bicycle"[/]

From a machine without a screen, seen at http://localhost:7860 after `ssh -L 7860:localhost:7860 HOST`:

[cyan]autolora ui MODEL --lora FILE --no-browser[/]
"""
