"""Kinds that turn the layer's own kernel, along its outputs or its inputs. W' = W + s · (turned W − W) at a scale s.

    OFT      oft_blocks [n b b]       R of blocks along the outputs, each by Cayley's formula; `rescale` multiplies RW
    OFT v2   oft_R [n b(b-1)/2]       R of blocks along the inputs, by the first terms of Cayley's series
    BOFT     boft_R [m n b b]         a product of m such R, each after a shuffle of the inputs; `boft_s` multiplies RW

A convolution's inputs are all that a filter sees, in torch's order: channels, then the window. LyCORIS's own BOFT
(oft_blocks [m n b b]) turns each of its factors by the scale, which is no such change.

Formulas: LyCORIS 4 functional/diag_oft.py; sd-scripts networks/{oft,oft_v2,boft}.py; OneTrainer modules/module/
{LoRAModule,oft_utils}.py; PEFT tuners/{oft,boft}/layer.py.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autolora_jax.weights.lora.kinds.kind import Change, Kind
from autolora_jax.weights.lora.kinds.matrix import (
    Multiplied,
    Numbers,
    Shapes,
    Tensors,
    Written,
    from_torch,
    to_torch,
    wide,
)
from autolora_jax.weights.rules import Shape


def _turned(rows: Numbers, turn: Numbers) -> Numbers:
    """turn · rows, block by block: [n b b], [n·b c] -> [n·b c]."""
    blocks, size, _ = turn.shape
    return jnp.einsum("nij,njc->nic", turn, rows.reshape(blocks, size, -1)).reshape(rows.shape)


def _by_inputs(kernel: Numbers) -> Numbers:
    """[*window, in, out] as torch flattens a filter: [in · window, out]."""
    return to_torch(kernel).reshape(kernel.shape[-1], -1).T


def _as_kernel(rows: Numbers, shape: Shape) -> Numbers:
    return from_torch(rows.T, shape[:-2])


def _inverse_cayley(turn: Numbers) -> np.ndarray:
    """Q of R = (I + Q)(I − Q)⁻¹, of R − I."""
    turn = wide(turn).astype(np.float64)
    return (turn @ np.linalg.inv(turn + 2 * np.eye(turn.shape[-1]))).astype(np.float32)


def _cayley(skew: np.ndarray) -> np.ndarray:
    """(I + Q)(I − Q)⁻¹ − I."""
    one = np.eye(skew.shape[-1])
    return ((one + skew) @ np.linalg.inv(one - skew) - one).astype(np.float32)


# ---- along the outputs -----------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfOutputs(Multiplied):
    """gain · R · W − W."""

    turn: Numbers  # R − I, [blocks, size, size]
    gain: Numbers  # [out]; () where there is none

    def on(self, base: Numbers) -> Numbers:
        rows = base.reshape(-1, base.shape[-1]).T
        turned = _turned(rows, wide(self.turn))
        if self.gain.ndim:
            gain = wide(self.gain)[:, None]
            turned = gain * turned + (gain - 1) * rows
        return turned.T.reshape(base.shape)

    def at(self, outputs: np.ndarray) -> "OfOutputs | None":
        """Where whole blocks are taken."""
        size = self.turn.shape[-1]
        blocks = outputs.reshape(-1, size) if outputs.size % size == 0 else np.zeros((0, size), int)
        if not blocks.size or (blocks != blocks[:, :1] + np.arange(size)).any() or (blocks[:, 0] % size).any():
            return None
        gain, layer = self.gain[outputs] if self.gain.ndim else self.gain, (*self.layer[:-1], len(outputs))
        return dataclasses.replace(self, turn=self.turn[blocks[:, 0] // size], gain=gain, layer=layer)

    def tensors(self) -> Written:
        # the file's blocks are of Rᵀ, and half of what is skew
        blocks = _inverse_cayley(self.turn.swapaxes(-1, -2)) / 2
        gain = {"rescale": self.gain.reshape(-1, *(1,) * (len(self.layer) - 1))} if self.gain.ndim else {}
        return {"oft_blocks": blocks, **gain, "alpha": np.zeros((), np.float32)}


def _outputs_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    blocks, outputs = shapes["oft_blocks"], kernel[-1]
    if len(blocks) != 3 or blocks[1] != blocks[2] or blocks[0] * blocks[1] != outputs:
        return f"blocks {list(blocks)}, which do not turn {outputs} outputs"
    return _gain_misfit(shapes.get("rescale"), outputs)


def _gain_misfit(shape: Shape | None, outputs: int) -> str | None:
    if shape is not None and [n for n in shape if n != 1] != [outputs] and shape != (1,) * len(shape):
        return f"a rescaling {list(shape)}, which is not one number per output, of which there are {outputs}"
    return None


def _read_outputs(tensors: Tensors, kernel: Shape, alpha: float | None) -> Change:
    """alpha is how far training may turn, as a part of the outputs; 0: as far as it likes."""
    blocks = wide(tensors["oft_blocks"]).astype(np.float64)
    skew = blocks - blocks.swapaxes(-1, -2)
    most, size = (alpha or 0) * kernel[-1], np.linalg.norm(skew) + 1e-8
    if 0 < most < size:
        skew = skew * most / size
    gain = tensors["rescale"].reshape(-1) if "rescale" in tensors else np.ones((), np.float32)
    return Change(OfOutputs(_cayley(skew).swapaxes(-1, -2), gain, layer=kernel))


OFT = Kind(
    "OFT (LyCORIS, sd-scripts)",
    parts={"oft_blocks": "oft_blocks", "rescale": "rescale"},
    needs=(("oft_blocks",),),
    misfit=_outputs_misfit,
    read=_read_outputs,
    # Its strength turns every layer of blocks, so it is no factor of a change.
    beyond=lambda shapes: "LyCORIS's BOFT (butterflies of blocks)" if len(shapes.get("oft_blocks", ())) == 4 else "",
)

# ---- along the inputs ------------------------------------------------------------------------------------------------


def _corner(size: int) -> Any:
    """The places above the diagonal of [size, size], row by row."""
    return np.triu_indices(size, 1)


def _side(entries: int) -> int:
    """Of the square whose corner has so many entries."""
    return round((1 + (1 + 8 * entries) ** 0.5) / 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfInputs(Multiplied):
    """R · W − W, R = I + 2Q + 2Q² + 2Q³ + Q⁴ of blocks Q, which are skew."""

    corners: Numbers  # [blocks, size (size - 1) / 2]: Q above its diagonals; one block: of all

    def on(self, base: Numbers) -> Numbers:
        rows = _by_inputs(base)
        size = _side(self.corners.shape[-1])
        corner = jnp.zeros((len(self.corners), size, size)).at[:, *_corner(size)].set(wide(self.corners))
        skew = corner - corner.swapaxes(-1, -2)
        squared = skew @ skew
        turn = 2 * (skew + squared + squared @ skew) + squared @ squared
        if base.ndim > 2:  # OneTrainer turns a matrix's inputs, but a convolution's filters: the other way round
            turn = turn.swapaxes(-1, -2)
        turn = jnp.broadcast_to(turn, (len(rows) // size, size, size))
        return _as_kernel(_turned(rows, turn), base.shape)

    def at(self, outputs: np.ndarray) -> "OfInputs":
        return dataclasses.replace(self, layer=(*self.layer[:-1], len(outputs)))

    def tensors(self) -> Written:
        return {"oft_R.weight": np.asarray(self.corners)}


def _inputs_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    shape, inputs = shapes["oft_R"], int(np.prod(kernel[:-1]))
    if len(shape) == 2 and shape[1]:
        size = _side(shape[1])
        if size * (size - 1) // 2 == shape[1] and inputs % size == 0 and shape[0] in (1, inputs // size):
            return None
    return f"corners {list(shape)}, which are not those of blocks that turn {inputs} inputs"


def _read_inputs(tensors: Tensors, kernel: Shape, alpha: float | None) -> Change:
    corners = wide(tensors["oft_R"])
    if "scaled_oft" in tensors:  # OneTrainer's, by its presence
        corners = corners / np.float32(corners.shape[-1] ** 0.5)
    return Change(OfInputs(corners, layer=kernel))


OFT_V2 = Kind(
    "OFT v2 (OneTrainer, sd-scripts)",
    parts={"oft_R": r"oft_R\.weight", "scaled_oft": r"oft_R\.scaled_oft"},
    needs=(("oft_R",),),
    misfit=_inputs_misfit,
    read=_read_inputs,
    scaled=lambda parts: False,
)

# ---- butterflies -----------------------------------------------------------------------------------------------------


def _shuffle(inputs: int, blocks: int, size: int, factor: int, factors: int) -> np.ndarray:
    """The order [inputs] in which a factor's blocks meet the inputs: of ever longer stretches, half blocks by turns."""
    if factors == 1:
        return np.arange(inputs)
    stretch = inputs // (blocks // 2**factor)
    halves = np.arange(inputs).reshape(-1, stretch // (size // 2), size // 2)
    return np.concatenate([halves[:, 0::2], halves[:, 1::2]], axis=1).reshape(-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Butterfly(Multiplied):
    """gain · R · W − W, R a product of shuffled blocks along the inputs."""

    turns: Numbers  # [factors, blocks, size, size]: each minus I
    gain: Numbers  # [out]

    def on(self, base: Numbers) -> Numbers:
        rows = start = _by_inputs(base)
        factors, blocks, size, _ = self.turns.shape
        for i in range(factors):
            order = _shuffle(len(rows), blocks, size, i, factors)
            rows = rows + _turned(rows[np.argsort(order)], wide(self.turns[i]))[order]
        return _as_kernel(rows * wide(self.gain)[None] - start, base.shape)

    def at(self, outputs: np.ndarray) -> "Butterfly":
        return dataclasses.replace(self, gain=self.gain[outputs], layer=(*self.layer[:-1], len(outputs)))

    def tensors(self) -> Written:
        return {"boft_R": -_inverse_cayley(self.turns), "boft_s": self.gain.reshape(-1, 1)}


def _butterfly_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    shape, inputs = shapes["boft_R"], int(np.prod(kernel[:-1]))
    if len(shape) == 4 and all(shape):
        factors, blocks, size, width = shape
        halved = factors == 1 or (size % 2 == 0 and blocks % 2 ** (factors - 1) == 0)
        if size == width and blocks * size == inputs and halved:
            return _gain_misfit(shapes["boft_s"], kernel[-1])
    return f"butterflies {list(shape)}, which do not turn {inputs} inputs"


def _read_butterfly(tensors: Tensors, kernel: Shape, alpha: float | None) -> Change:
    blocks = wide(tensors["boft_R"]).astype(np.float64)
    turns = _cayley((blocks.swapaxes(-1, -2) - blocks) / 2)
    return Change(Butterfly(turns, np.broadcast_to(tensors["boft_s"].reshape(-1), kernel[-1:]), layer=kernel))


BOFT = Kind(
    "BOFT (PEFT, sd-scripts)",
    parts={"boft_R": r"boft_R(\.weight)?", "boft_s": r"boft_s(\.weight)?"},
    needs=(("boft_R", "boft_s"),),
    misfit=_butterfly_misfit,
    read=_read_butterfly,
    scaled=lambda parts: False,
)
