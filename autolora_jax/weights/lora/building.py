"""From the tensors of a module to its change: for every kind, what is wrong with its shapes, and the change itself.

Products that a file keeps apart (LoCon's core, LoKr's factors) are multiplied out in float32 where that keeps them
small. Shapes are torch's, kernels ours: Dense [in, out], Conv [kh, kw, in, out], a norm [c].
Formulas: LyCORIS 4, lycoris/functional/{locon,loha,lokr,general}.py.
"""

from collections.abc import Mapping

import numpy as np

from autolora_jax.weights.lora.change import Change, Full, Hadamard, Kronecker, LowRank, Magnitude, Matrix
from autolora_jax.weights.rules import Shape

Tensors = Mapping[str, np.ndarray]
Shapes = Mapping[str, Shape]
MAGNITUDES: Mapping[str, str] = {"dora_scale": "lycoris", "magnitude": "peft"}  # part -> whose DoRA


def nothing_wrong(shapes: Shapes, kernel: Shape) -> str | None:
    """Of kinds without a matrix."""
    return None


def no_matrix(tensors: Tensors, kernel: Shape, alpha: float | None) -> None:
    """Of kinds without a matrix."""
    return None


# ---- LoRA, LoCon -----------------------------------------------------------------------------------------------------


def low_rank_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    """What is wrong with the shapes of the parts; None when they fit the kernel."""
    if wrong := _no_matrix_layer(kernel):
        return wrong
    down, up = shapes["down"], shapes["up"]
    window, (inputs, outputs) = _window(kernel), kernel[-2:]
    if len(down) not in (2, 4) or len(up) not in (2, 4) or up[1] != down[0] or down[0] < 1:
        return f"down {list(down)} and up {list(up)} share no rank"
    rank = down[0]
    if "mid" in shapes:
        if shapes["mid"] != (rank, rank, *window):
            return f"core {list(shapes['mid'])}, but the layer takes {[rank, rank, *window]}"
        window = (1, 1)
    # Both layouts of a matrix are in use: a Linear's halves stored as 1x1 convolutions, and the reverse.
    as_conv = [(*shape, 1, 1)[:4] for shape in (down, up)]
    if as_conv != [(rank, inputs, *window), (outputs, rank, 1, 1)]:
        ones = [1] * (len(kernel) - 2)
        spread = list(window) if ones else []
        return (
            f"down {list(down)} and up {list(up)}, but the layer takes "
            f"{[rank, inputs, *spread]} and {[outputs, rank, *ones]}"
        )
    return None


def low_rank(tensors: Tensors, kernel: Shape, alpha: float | None) -> LowRank:
    """LoRA; with LoCon's core `mid`: down[p] = Σ_q mid[p, q] · down[q]."""
    down, up = tensors["down"], tensors["up"].reshape(tensors["up"].shape[:2])
    if "mid" in tensors:
        flat = down.reshape(down.shape[:2]).astype(np.float32)
        down = np.einsum("pq...,qi->pi...", tensors["mid"].astype(np.float32), flat)
    return LowRank(down.reshape(*down.shape[:2], *_window(kernel)), up, alpha)


# ---- LoHa ------------------------------------------------------------------------------------------------------------


def hadamard_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    """As low_rank_misfit. Rank and layout: outputs first, but for convolutions with a core, where the rank is first."""
    if wrong := _no_matrix_layer(kernel):
        return wrong
    inputs, outputs, window = kernel[-2], kernel[-1], _window(kernel)
    for i in (1, 2):
        a, b = shapes[f"hada_w{i}_a"], shapes[f"hada_w{i}_b"]
        if len(b) != 2 or len(a) != 2 or b[0] < 1:
            return f"factors {list(a)} and {list(b)} are no matrices"
        rank, core = b[0], shapes.get(f"hada_t{i}")
        if core is None:
            wanted = [(outputs, rank), (rank, inputs * window[0] * window[1])]
        else:
            wanted = [(rank, outputs), (rank, inputs)]
            if core != (rank, rank, *window):
                return f"core {list(core)}, but the layer takes {[rank, rank, *window]}"
        if [a, b] != wanted:
            return f"factors {list(a)} and {list(b)}, but the layer takes {list(wanted[0])} and {list(wanted[1])}"
    return None


def hadamard(tensors: Tensors, kernel: Shape, alpha: float | None) -> Hadamard:
    """LoHa; with a core: down[p] = Σ_q t[p, q] · w_b[q], as LoCon's."""

    def factor(i: int) -> LowRank:
        a, b = tensors[f"hada_w{i}_a"], tensors[f"hada_w{i}_b"]
        if f"hada_t{i}" in tensors:
            core = tensors[f"hada_t{i}"].astype(np.float32)
            return LowRank(np.einsum("pq...,qi->pi...", core, b.astype(np.float32)), a.T, None)
        return LowRank(b.reshape(len(b), kernel[-2], *_window(kernel)), a, None)

    return Hadamard(factor(1), factor(2), alpha)


# ---- LoKr ------------------------------------------------------------------------------------------------------------


def kronecker_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    """As low_rank_misfit."""
    if wrong := _no_matrix_layer(kernel):
        return wrong
    inputs, outputs, window = kernel[-2], kernel[-1], _window(kernel)
    said = ", ".join(f"{part} {list(shape)}" for part, shape in shapes.items() if part.startswith("lokr"))
    left, right = (factor_shape(shapes, i) for i in (1, 2))
    if left is None or right is None:
        return f"{said}: the halves of a factor do not fit each other"
    # The second factor holds the window, as axes of its own or flat among its inputs.
    wanted = [(inputs, *window), (inputs * window[0] * window[1],)] + ([(inputs,)] if window == (1, 1) else [])
    if len(left) != 2 or left[0] * right[0] != outputs or (left[1] * right[1], *right[2:]) not in wanted:
        return f"{said}: their product is no {[outputs, inputs, *kernel[:-2]]}"
    return None


def factor_shape(shapes: Shapes, i: int) -> Shape | None:
    """[out, in …] of a factor of LoKr; None when its halves do not fit each other."""
    if f"lokr_w{i}" in shapes:
        return shapes[f"lokr_w{i}"] if len(shapes[f"lokr_w{i}"]) in (2, 4) else None
    a, b, core = shapes[f"lokr_w{i}_a"], shapes[f"lokr_w{i}_b"], shapes.get(f"lokr_t{i}")
    if len(a) != 2 or len(b) != 2:
        return None
    if core is None:
        return (a[0], b[1]) if a[1] == b[0] > 0 else None
    return (a[1], b[1], *core[2:]) if len(core) == 4 and core[:2] == (a[0], b[0]) and all(core) else None


def kronecker(tensors: Tensors, kernel: Shape, alpha: float | None) -> Kronecker:
    """LoKr. Where both factors are whole nothing has a rank, and LyCORIS's scale is 1 whatever the file's alpha."""
    left, right = _factor(tensors, 1), _factor(tensors, 2)
    c, window = right.shape[0], _window(kernel)
    right = right.reshape(c, -1, *window)
    halves = [tensors[name] for name in ("lokr_w1_b", "lokr_w2_b") if name in tensors]
    return Kronecker(left, right, alpha if halves else None, len(halves[0]) if halves else None)


def _factor(tensors: Tensors, i: int) -> np.ndarray:
    if f"lokr_w{i}" in tensors:
        return tensors[f"lokr_w{i}"]
    a, b = (tensors[f"lokr_w{i}_{half}"].astype(np.float32) for half in "ab")
    if f"lokr_t{i}" in tensors:
        return np.einsum("pq...,po,qi->oi...", tensors[f"lokr_t{i}"].astype(np.float32), a, b, optimize=True)
    return a @ b


# ---- whole differences and vectors -----------------------------------------------------------------------------------


def full_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    """As low_rank_misfit; of a norm the difference is that of its weight."""
    wanted: list[Shape] = [kernel] if len(kernel) == 1 else [(kernel[-1], kernel[-2], *kernel[:-2])]
    if len(kernel) == 2:
        wanted.append((*wanted[0], 1, 1))
    if shapes["diff"] not in wanted:
        return f"diff {list(shapes['diff'])}, but the layer takes {list(wanted[0])}"
    return None


def full(tensors: Tensors, kernel: Shape, alpha: float | None) -> Full | None:
    """The difference of a kernel; that of a norm's weight is no matrix."""
    if len(kernel) == 1:
        return None
    diff = tensors["diff"]
    return Full(diff.reshape(*diff.shape[:2], *_window(kernel)))


def norm_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    """As low_rank_misfit."""
    if len(kernel) != 1:
        return "the layer is no norm"
    wrong = [shapes[part] for part in ("w_norm", "b_norm") if part in shapes and shapes[part] != kernel]
    return f"{list(wrong[0])}, but the norm takes {list(kernel)}" if wrong else None


def beside_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    """What is wrong with the parts that any kind may have."""
    outputs = kernel[-1]
    for part in ("diff_b", "up_bias"):
        if part in shapes and shapes[part] != (outputs,):
            return f"bias {list(shapes[part])} instead of {[outputs]}"
    for part in MAGNITUDES:
        if part in shapes and (len(kernel) == 1 or _axis(part, shapes[part], kernel) is None):
            return f"magnitudes {list(shapes[part])}, which are neither one per output nor one per input"
    return None


def _axis(part: str, shape: Shape, kernel: Shape) -> str | None:
    """The axis that magnitudes of this shape belong to; None where it is neither."""
    inputs, outputs = kernel[-2:]
    by_output = {"dora_scale": [(outputs, 1), (outputs, 1, 1, 1)], "magnitude": [(outputs,), (1, outputs, 1, 1)]}
    by_input = {"dora_scale": [(1, inputs), (1, inputs, 1, 1)], "magnitude": []}
    if shape in by_output[part]:
        return "outputs"
    return "inputs" if shape in by_input[part] else None


def change(tensors: Tensors, kernel: Shape, matrix: Matrix | None) -> Change:
    """The whole change of a layer: its matrix and what stands beside it."""
    magnitude = None
    for part, trainer in MAGNITUDES.items():
        if part in tensors:
            axis = _axis(part, tensors[part].shape, kernel)
            assert axis is not None  # beside_misfit has passed
            magnitude = Magnitude(tensors[part].reshape(-1), axis, trainer)
    bias = next((tensors[part] for part in ("diff_b", "b_norm") if part in tensors), None)
    if "up_bias" in tensors and isinstance(matrix, LowRank):  # PEFT scales it with the product
        bias = tensors["up_bias"].astype(np.float32) * np.float32(matrix.scale)
    weight = tensors.get("w_norm")
    if weight is None and len(kernel) == 1:
        weight = tensors.get("diff")
    return Change(matrix, magnitude, bias, weight)


def _window(kernel: Shape) -> Shape:
    return kernel[:-2] or (1, 1)


def _no_matrix_layer(kernel: Shape) -> str | None:
    return "the layer is a norm, which has no matrix" if len(kernel) == 1 else None
