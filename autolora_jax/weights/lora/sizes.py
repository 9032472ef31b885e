"""Sizes that a module's parts tell by themselves, without the layer that they change: ranks, inputs, LoKr's factors."""

from collections.abc import Mapping

from autolora_jax.weights.lora.building import factor_shape
from autolora_jax.weights.rules import Shape

Shapes = Mapping[str, Shape]  # part -> shape in the file

# (part, axis): the first part that a module has says it.
_RANK = (("down", 0), ("hada_w1_b", 0), ("lokr_w1_b", 0), ("lokr_w2_b", 0))
_INPUTS = (("down", 1), ("hada_w1_b", 1), ("diff", 1))


def rank_of(shapes: Shapes) -> int | None:
    """The rank as the file's author counts it: LoHa's change has up to rank² ranks; None where there is none."""
    return _said(_RANK, shapes)


def inputs_of(shapes: Shapes) -> int:
    """How many inputs the layer has; 0 where that can't be told."""
    if factors := factors_of(shapes):
        left, right = factors
        return left[1] * right[1]
    return _said(_INPUTS, shapes) or 0


def factors_of(shapes: Shapes) -> tuple[Shape, Shape] | None:
    """The shapes of LoKr's two factors, halves multiplied out; None for other kinds and for halves that do not fit."""
    for i in (1, 2):
        if f"lokr_w{i}" not in shapes and not {f"lokr_w{i}_a", f"lokr_w{i}_b"} <= shapes.keys():
            return None
    left, right = factor_shape(shapes, 1), factor_shape(shapes, 2)
    return (left, right) if left and right else None


def _said(rows: tuple[tuple[str, int], ...], shapes: Shapes) -> int | None:
    part, axis = next(((part, axis) for part, axis in rows if part in shapes), ("", 0))
    shape = shapes.get(part, ())
    return shape[axis] if len(shape) > axis else None
