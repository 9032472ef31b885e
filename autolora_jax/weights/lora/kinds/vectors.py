"""What is added to a layer's bias or to a norm's weight: no matrix, and beside any."""

from autolora_jax.weights.lora.kinds.kind import Change, Kind
from autolora_jax.weights.lora.kinds.matrix import Shapes, Tensors, Written
from autolora_jax.weights.rules import Shape


def tensors(change: Change) -> Written:
    """A change's vectors by their endings."""
    found = {"w_norm": change.weight, "diff_b" if change.weight is None else "b_norm": change.bias}
    return {ending: vector for ending, vector in found.items() if vector is not None}


def bias_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    """What is wrong with a bias, whatever it stands beside."""
    said = shapes.get("diff_b", kernel[-1:])
    return f"bias {list(said)} instead of {[kernel[-1]]}" if said != kernel[-1:] else None


def _norm_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    if len(kernel) != 1:
        return "the layer is no norm"
    wrong = [shapes[part] for part in ("w_norm", "b_norm") if part in shapes and shapes[part] != kernel]
    return f"{list(wrong[0])}, but the norm takes {list(kernel)}" if wrong else None


def _read_norm(tensors: Tensors, kernel: Shape, alpha: float | None) -> Change:
    return Change(weight=tensors["w_norm"], bias=tensors.get("b_norm"))


NORMS = Kind(
    "trained norms",
    parts={"w_norm": "w_norm", "b_norm": "b_norm"},
    needs=(("w_norm",),),
    norms=True,
    scaled=lambda parts: False,
    misfit=_norm_misfit,
    read=_read_norm,
)
BIASES = Kind(
    "biases (diff_b)", parts={"diff_b": "diff_b"}, needs=(("diff_b",),), norms=True, scaled=lambda parts: False
)
