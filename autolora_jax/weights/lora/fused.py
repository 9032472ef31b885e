"""Changes of modules that several layers are pieces of: taken apart in reading, put together in writing.

A change of kohya's fused q, k, v is one change of each: they share `down`, `up` is cut in three. The other way there
are two forms. Where q, k and v share `down`, `up` is theirs one after another. Else every layer keeps ranks of its own,

    down = [down_v; down_k; down_q],    up = [0 0 up_q; 0 up_k 0; up_v 0 0],    alpha = their scale times all ranks,

which every program reads alike, as alpha / ranks. The order is not q, k, v for a reason: see `is_split_qkv`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autolora_jax.weights.lora.kinds import Change
from autolora_jax.weights.lora.kinds.dora import Magnitude
from autolora_jax.weights.lora.kinds.full import Full
from autolora_jax.weights.lora.kinds.low_rank import LowRank
from autolora_jax.weights.lora.kinds.matrix import Matrix
from autolora_jax.weights.lora.names import Place
from autolora_jax.weights.rules import halves_swapped

SPLIT_QKV = "split_qkv"


def says_split_qkv(metadata: Mapping[str, str]) -> bool:
    """Whether kohya's header says that q, k and v were trained apart."""
    return re.search(r'"split_qkv": *"True"', metadata.get("ss_network_args", "")) is not None


def is_split_qkv(change: LowRank, parts: int, said: bool, one_alpha: bool) -> bool:
    """Whether kohya trained this change with split_qkv=True, so that its alpha is meant for a third of its ranks.

    said: what the header says. one_alpha: whether every module of the file has this alpha.

    split_qkv trains a LoRA of rank r and scale alpha / r for each of q, k and v. The file has them as one: 3r ranks, a
    block-diagonal `up`, and alpha as it was (sd-scripts lora_sd3.py LoRANetwork.state_dict). Read as alpha / ranks, as
    sd-scripts itself and ComfyUI do, that is a third of what was trained. Here it is what was trained.
    No tensor says so, and many files have lost their header. Then the signs are the blocks, which training a fused
    layer can't give, in the order q, k, v, and the one alpha that kohya gives to all modules. Programs that join q, k
    and v of another file write blocks, too, but with an alpha for all ranks: their number (sd-scripts
    convert_flux_lora.py), or three times the other modules'.
    """
    if parts == 1 or change.alpha is None or change.rank % parts:
        return False
    if not said and (change.alpha == change.rank or not one_alpha):
        return False
    rows = [np.split(outputs, parts, axis=1) for outputs in np.split(change.up.T, parts)]
    return not any((block != 0).any() for i, row in enumerate(rows) for j, block in enumerate(row) if i != j)


def piece(change: Change, place: Place) -> Change | None:
    """A layer's change out of that of the module it is a piece of; None where only the other pieces are changed.

    Ranks that do not reach the layer are left out, so that what `together` made comes apart as it was.
    """
    if place.parts == 1 and not place.swapped:
        return change
    outputs = np.split(np.arange(change.shape[-1]), place.parts)[place.part]
    part = _at(change, halves_swapped(outputs) if place.swapped else outputs)
    whole, matrix = change.matrix, part.matrix
    if place.parts == 1 or not isinstance(whole, LowRank) or not isinstance(matrix, LowRank):
        return part
    reaching = (matrix.up != 0).any(axis=1)
    if reaching.all() or not (whole.up != 0).any():
        return part
    if not reaching.any():
        return dataclasses.replace(part, matrix=None) if part.bias is not None else None
    ranks = int(reaching.sum())
    alpha = None if matrix.alpha is None else matrix.alpha * ranks / matrix.rank
    return dataclasses.replace(part, matrix=LowRank(matrix.down[..., reaching], matrix.up[reaching], alpha=alpha))


def _at(change: Change, outputs: np.ndarray) -> Change:
    """The change of these outputs alone, in this order. Magnitudes over inputs stay true only if all outputs do."""
    matrix, magnitude = change.matrix, change.magnitude
    if magnitude and magnitude.axis == "outputs":
        magnitude = dataclasses.replace(magnitude, values=magnitude.values[outputs])
    return Change(
        matrix and (matrix.at(outputs) or Full(matrix.kernel[..., outputs])),
        magnitude,
        None if change.bias is None else change.bias[outputs],
        change.weight,
    )


def together(pieces: Sequence[tuple[Place, Change]]) -> Change:
    """The change of a module out of those of the layers that are pieces of it, all or some."""
    place, first = pieces[0]
    if place.parts == 1:
        return _at(first, halves_swapped(np.arange(first.shape[-1]))) if place.swapped else first
    changes = {place.part: change for place, change in pieces}
    matrices = {part: change.matrix for part, change in changes.items() if change.matrix is not None}
    return Change(
        _joined(matrices, place.parts),
        _joined_magnitude(changes, place.parts),
        _end_to_end({part: c.bias for part, c in changes.items() if c.bias is not None}, place.parts),
    )


def _joined(matrices: Mapping[int, Matrix], parts: int) -> Matrix | None:
    if not matrices:
        return None
    low = {part: matrix for part, matrix in matrices.items() if isinstance(matrix, LowRank)}
    if len(low) < len(matrices):
        return Full(_end_to_end({part: matrix.kernel for part, matrix in matrices.items()}, parts))
    first = next(iter(low.values()))
    if len(low) == parts and all(_alike(matrix, first) for matrix in low.values()):
        return dataclasses.replace(first, up=_end_to_end({part: matrix.up for part, matrix in low.items()}, parts))
    if len({matrix.scale for matrix in low.values()}) > 1:
        low = {part: matrix.scaled() for part, matrix in low.items()}  # one module has one alpha
    order = sorted(low, reverse=True)
    down = np.concatenate([low[part].down for part in order], axis=-1)
    ups = [_end_to_end({part: low[part].up}, parts) for part in order]
    return LowRank(down, np.concatenate(ups), alpha=low[order[0]].scale * down.shape[-1])


def _joined_magnitude(changes: Mapping[int, Change], parts: int) -> Magnitude | None:
    found = {part: change.magnitude for part, change in changes.items() if change.magnitude}
    if not found:
        return None
    if len(found) < parts or any(magnitude.axis == "inputs" for magnitude in found.values()):
        raise ValueError("DoRA of a part of q, k and v, or over their inputs, has no place in kohya's layout; use peft")
    values = _end_to_end({part: magnitude.values for part, magnitude in found.items()}, parts)
    return dataclasses.replace(found[0], values=values)


def _end_to_end(found: Mapping[int, np.ndarray], parts: int) -> Any:
    """What layers have along their outputs as the module's, zeros for layers that have nothing; None if none has."""
    if not found:
        return None
    empty = np.zeros_like(next(iter(found.values())))
    return np.concatenate([found.get(part, empty) for part in range(parts)], axis=-1)


def _alike(one: LowRank, other: LowRank) -> bool:
    return one.alpha == other.alpha and np.array_equal(one.down, other.down)
