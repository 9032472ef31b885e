"""Any kind of matrix as the low-rank change that it also is, for dialects that have no other: exact in float32."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from autolora_jax.weights.lora.change import Full, Hadamard, Kronecker, LowRank, Matrix

_NOTHING = 1e-7  # of the largest singular value: below float32's own rounding


def as_low_rank(matrix: Matrix) -> LowRank:
    """The same change as up @ down, of the least rank that is known without rounding: LoHa's is at most rank²."""
    if isinstance(matrix, LowRank):
        return matrix
    outputs, inner = matrix.outputs, _inner(matrix)
    if found := _FORMS[type(matrix)](matrix, min(outputs, inner)):
        return found
    return _decomposed(matrix.dense)


def _inner(matrix: Matrix) -> int:
    match matrix:
        case Hadamard(one=one):
            return one.down[0].size
        case Kronecker(left=left, right=right):
            return left.shape[1] * right[0].size
    assert isinstance(matrix, Full)
    return matrix.dense[0].size


def _hadamard(matrix: Hadamard, most: int) -> LowRank | None:
    """Every pair of columns of the two, multiplied: rank²."""
    rank = matrix.one.rank * matrix.two.rank
    if rank >= most:
        return None
    (up_1, down_1), (up_2, down_2) = (
        (pair.up.astype(np.float32), pair.down.astype(np.float32)) for pair in (matrix.one, matrix.two)
    )
    up = np.float32(matrix.scale) * np.einsum("oi,oj->oij", up_1, up_2).reshape(len(up_1), rank)
    down = np.einsum("i...,j...->ij...", down_1, down_2).reshape(rank, *down_1.shape[1:])
    return LowRank(down, up, None)


def _kronecker(matrix: Kronecker, most: int) -> LowRank | None:
    """The product of the factors' own halves: its rank is that of one times that of the other."""
    left = _decomposed(np.float32(matrix.scale) * matrix.left.astype(np.float32)[:, :, None, None])
    right = _decomposed(matrix.right.astype(np.float32))
    rank = left.rank * right.rank
    if rank >= most:
        return None
    up = np.kron(left.up, right.up)
    down = np.einsum("ib,jd...->ijbd...", left.down[:, :, 0, 0], right.down)
    return LowRank(down.reshape(rank, -1, *right.down.shape[2:]), up, None)


def _full(matrix: Full, most: int) -> None:
    return None


_FORMS: Mapping[type, Callable[[Any, int], LowRank | None]] = {
    Hadamard: _hadamard,
    Kronecker: _kronecker,
    Full: _full,
}


def _decomposed(dense: np.ndarray) -> LowRank:
    """[out, in, kh, kw] by its singular values, without those that are nothing."""
    u, sigma, v = np.linalg.svd(dense.reshape(len(dense), -1).astype(np.float64), full_matrices=False)
    rank = max(1, int((sigma > _NOTHING * sigma[0]).sum()))
    root = np.sqrt(sigma[:rank])
    down = (root[:, None] * v[:rank]).astype(np.float32).reshape(rank, *dense.shape[1:])
    return LowRank(down, (u[:, :rank] * root).astype(np.float32), None)
