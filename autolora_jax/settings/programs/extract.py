"""What `autolora extract` can be asked for."""

import dataclasses
from typing import ClassVar

from autolora_jax.settings.fields import Table, setting
from autolora_jax.settings.model import MODEL
from autolora_jax.settings.programs.lora_file import FILE, RANKS, Ranked

RANK, CEILING = 32, 128  # what --rank is if it is not given: without, with --max-error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extract(Ranked):
    """Make a LoRA of the difference between a base model and one that was tuned from it.

    Every layer's change is replaced by the nearest one of that rank, and you are told how much is missing.

    Changed biases, norms, embeddings and the VAE, which such a LoRA does not hold, are measured and left out.

    Tensor by tensor, on the CPU: SDXL takes some 2 GB of memory and five minutes of one core.
    """

    PANEL: ClassVar[str] = FILE

    base: str = setting(
        help="The model that was tuned: single .safetensors, diffusers or converted folder, hub id.",
        argument=True,
        metavar="BASE",
    )
    tuned: str = setting(help="What came out of it, in any of these forms.", argument=True, metavar="TUNED")
    rank: int | None = setting(None, "Ranks of every layer.", panel=RANKS, shown=f"{RANK}; with --max-error {CEILING}")
    dialect: str = setting(
        "kohya",
        "kohya, for A1111, ComfyUI and, but for SD3, diffusers; or peft, for diffusers and ComfyUI.",
        offers=Table("weights.lora.export", "DIALECTS"),
    )
    save_dtype: str = setting(
        "float32",
        "float32, or float16 or bfloat16 for half the size: they round, to 0.03 % and to 0.2 %.",
        offers=Table("weights.lora.export", "DTYPES"),
    )
    variant: str | None = setting(None, "'fp16' takes a folder's *.fp16.safetensors files.", panel=MODEL)

    EXAMPLES = """[bold]Examples[/]

[cyan]autolora extract sd_xl_base_1.0.safetensors tuned.safetensors --out tuned-lora.safetensors --rank 64[/]

As many ranks as every layer needs to miss at most 10 % of its change:

[cyan]autolora extract BASE TUNED --out lora.safetensors --max-error 0.1 --rank 128 --save-dtype float16[/]

For diffusers:

[cyan]autolora extract BASE TUNED --out lora.safetensors --dialect peft[/]
"""
