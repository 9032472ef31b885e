"""The built-in model: where its files lie, and the world (`demo.world`) that it was trained on.

It is SDXL in everything but size, in the published diffusers layout; `model/README.md` is its card. Names that begin
with "builtin" mean it wherever a model or a LoRA can be named.
"""

from pathlib import Path

MODEL = "builtin"
# Files in loras/. The last two stand for AutoLoRA with the first one, at one evaluation a step and in eight steps.
LORAS = ("character", "style", "character-autolora", "character-autolora-8")
_HERE = Path(__file__).parent


def builtin(name: str) -> Path | None:
    """The file or folder of "builtin", the model, or of "builtin:character" and others of LORAS.

    None for a name that does not begin with "builtin". Raises ValueError for another one that does.
    """
    model, colon, lora = name.partition(":")
    if model != MODEL or Path(name).exists():
        return None
    if not colon:
        return _HERE / "model"
    if lora not in LORAS:
        known = ", ".join(f"{MODEL}:{known}" for known in LORAS)
        raise ValueError(f"{name!r} is no built-in LoRA; there are {known}")
    return _HERE / "loras" / f"{lora}.safetensors"
