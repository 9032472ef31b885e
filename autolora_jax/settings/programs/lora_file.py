"""Options of the programs that make one LoRA out of others."""

from typing import Any

from autolora_jax.settings.fields import setting

RANKS, FILE = "Ranks", "File"  # panels of --help
DIALECT = "kohya, for A1111, ComfyUI and, but for SD3, diffusers; or peft, for diffusers and ComfyUI."
SAVE_DTYPE = "float32, or float16 or bfloat16 for half the size: they round, to 0.03 % and to 0.2 %."


def out() -> Any:
    return setting(help="The new .safetensors file.", short="-o", panel=FILE, metavar="FILE")


def max_error() -> Any:
    return setting(
        None,
        "Let every layer choose: the fewest ranks that miss at most this share of its change (Frobenius norm of what "
        "is missing over that of the change), such as 0.05. Then --rank is the most that a layer gets.",
        panel=RANKS,
        metavar="SHARE",
    )


def conv_rank() -> Any:
    return setting(
        None,
        "Instead of --rank for 3x3 convolutions, whose ranks are the largest; 0 leaves them out.",
        panel=RANKS,
        shown="as --rank",
    )
