"""Where SD3's layers are in the layout that kohya's LoRA files follow: single files', in which q, k, v are one."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from autolora_jax.config import MMDiTConfig
from autolora_jax.weights.sd3_layout import BLOCK, CONTEXT_NORM, ENDS, FINAL


class Place(NamedTuple):
    """Where a layer is in a layout."""

    module: str  # its name there
    part: int = 0  # which one of …
    parts: int = 1  # … how many equal pieces of that module's outputs the layer is
    swapped: bool = False  # the halves of its outputs stand there in the other order: (shift, scale) for (scale, shift)


def _places(table: Mapping[str, str | tuple[str, ...]]) -> Iterator[tuple[str, Place]]:
    for name, to in table.items():
        modules = (to,) if isinstance(to, str) else to
        yield from ((module, Place(name, part, len(modules))) for part, module in enumerate(modules))


_TEXT_NORM = "norm1_context.linear"
# Canonical name -> place; within a block: without its number.
_OUTSIDE = {**dict(_places(ENDS)), "norm_out.linear": Place(FINAL, swapped=True)}
_IN_BLOCK = {**dict(_places(BLOCK)), _TEXT_NORM: Place(CONTEXT_NORM)}


def sd3_place(canonical_module: str, config: MMDiTConfig) -> Place:
    """Where a layer of SD3's transformer is: "transformer_blocks.3.ff.net.2" -> "joint_blocks.3.x_block.mlp.fc2"."""
    match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", canonical_module)
    if not match:
        return _OUTSIDE.get(canonical_module, Place(canonical_module))
    number, module = match.groups()
    ends = module == _TEXT_NORM and int(number) == config.num_layers - 1
    place = _IN_BLOCK[module]
    return place._replace(module=f"joint_blocks.{number}.{place.module}", swapped=ends)
