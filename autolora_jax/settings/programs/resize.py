"""What `autolora resize` can be asked for."""

import dataclasses
from typing import ClassVar

from autolora_jax.settings.fields import Table, setting
from autolora_jax.settings.programs.lora_file import FILE, RANKS, Ranked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize(Ranked):
    """Lower a LoRA's ranks: a smaller file that loads and draws faster, as near to it as that many ranks can be.

    Every layer gets the nearest change of lower rank, and you are told how much is missing. No base model is read.

    LoHa, LoKr and whole differences become plain LoRA.

    In kohya's dialect SD3's q, k and v are one module, which takes the ranks of all three: --dialect peft keeps them.
    """

    PANEL: ClassVar[str] = FILE

    lora: str = setting(
        help="A .safetensors file, a folder that holds one, or a hub id.", argument=True, metavar="LORA"
    )
    rank: int | None = setting(None, "Ranks of every layer.", panel=RANKS, shown="with --max-error the layer's own")
    model: str | None = setting(
        None, "Its base model, if that has another size than the published SDXL, SD3 and SD3.5: folder or hub id."
    )
    dialect: str | None = setting(
        None, "kohya or peft.", shown="the file's own", offers=Table("weights.lora.export", "DIALECTS")
    )
    save_dtype: str | None = setting(
        None, "float32, float16 or bfloat16.", shown="the file's own", offers=Table("weights.lora.export", "DTYPES")
    )

    EXAMPLES = """[bold]Examples[/]

[cyan]autolora resize style.safetensors --out style-r8.safetensors --rank 8[/]

As few ranks as every layer can do with, to miss at most 5 % of its change:

[cyan]autolora resize style.safetensors --out style-small.safetensors --max-error 0.05[/]
"""
