"""AutoLoRA guidance (arXiv 2410.03941) for LoRA-tuned text-to-image diffusion models, in JAX.

What most need is here:

    from autolora_jax import AutoLoRA, AutoLoRAPipeline

    pipe = AutoLoRAPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0", variant="fp16")
    pipe.load_lora("pixel-art-xl.safetensors")
    images = pipe("a cute corgi", seeds=range(4), guidance=AutoLoRA(gamma=1.5, w1=5.0, w2=5.0)).images
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autolora_jax.version import __version__

if TYPE_CHECKING:  # for editors and type checkers; at run time see __getattr__
    from autolora_jax.config import ConfigError
    from autolora_jax.lora import LoraReport
    from autolora_jax.output import Output
    from autolora_jax.pipeline import AutoLoRAPipeline
    from autolora_jax.progress import Progress
    from autolora_jax.settings.rules import CFG, AutoGuidance, AutoLoRA, NoGuidance, PersonalizationGuidance
    from autolora_jax.text.embeds_file import read_embeds, write_embeds
    from autolora_jax.weights.errors import WeightsError


_HOMES = {
    "AutoLoRAPipeline": "pipeline",
    "Output": "output",
    "Progress": "progress",
    "AutoGuidance": "settings.rules",
    "AutoLoRA": "settings.rules",
    "CFG": "settings.rules",
    "NoGuidance": "settings.rules",
    "PersonalizationGuidance": "settings.rules",
    "ConfigError": "config",
    "WeightsError": "weights.errors",
    "LoraReport": "lora",
    "read_embeds": "text.embeds_file",
    "write_embeds": "text.embeds_file",
}
__all__ = [
    "CFG",
    "AutoGuidance",
    "AutoLoRA",
    "AutoLoRAPipeline",
    "ConfigError",
    "LoraReport",
    "NoGuidance",
    "Output",
    "PersonalizationGuidance",
    "Progress",
    "WeightsError",
    "__version__",
    "read_embeds",
    "write_embeds",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first asked for: `autolora --help` should not wait for JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
