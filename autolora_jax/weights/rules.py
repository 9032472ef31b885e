"""From the tensor names of a file to a parameter tree: rules, and the engine that applies them. No I/O, no JAX.

A table is a sequence of rules; a stage is a table or a dict of exact names. Names pass the stages in order: the early
ones rename a dialect to the canonical diffusers/transformers names (a name that no rule takes stays as it is), the last
one leads into the tree and must take every name exactly once. Then every leaf of the tree must have been filled exactly
once, with the right shape. All that is wrong is collected and raised as one error. Dropping a tensor is a rule with a
reason.

Tree paths are written with slashes, as flax.traverse_util.flatten_dict(sep="/") does: "a_0/conv1/kernel".
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from autolora_jax.weights.errors import WeightsError, shorten

Shape = tuple[int, ...]
Move = Callable[[np.ndarray], np.ndarray]


def oihw_to_hwio(x: np.ndarray) -> np.ndarray:
    """torch's convolution kernel -> Flax's."""
    return x.transpose(2, 3, 1, 0)


def hwio_to_oihw(x: np.ndarray) -> np.ndarray:
    """Flax's convolution kernel -> torch's."""
    return x.transpose(3, 2, 0, 1)


def transposed(x: np.ndarray) -> np.ndarray:
    """torch's Linear weight [out, in] <-> Flax's Dense kernel [in, out]."""
    return x.T


def oi11_to_io(x: np.ndarray) -> np.ndarray:
    """A 1x1 convolution that is used as a Dense layer."""
    return x.squeeze((2, 3)).T


def halves_swapped(x: np.ndarray) -> np.ndarray:
    """The second half of the rows before the first: shift and scale in the other order."""
    return x.reshape(2, -1, *x.shape[1:])[::-1].reshape(x.shape)


INVERSE: Mapping[Move, Move] = {
    oihw_to_hwio: hwio_to_oihw,
    hwio_to_oihw: oihw_to_hwio,
    transposed: transposed,
    halves_swapped: halves_swapped,
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table: names that match `pattern` in full go to the template(s) `to`, rearranged by `move`.

    to: `\\1` and so on refer to groups. Several targets: the tensor is cut into equal parts along its first axis, then
        each part is moved.
    ndim: take only tensors with that many axes.
    drop: the reason why such tensors are left out, instead of `to`.
    """

    pattern: str
    to: str | tuple[str, ...] = ()
    _: dataclasses.KW_ONLY
    ndim: int | None = None
    move: Move | None = None
    drop: str | None = None

    def __post_init__(self) -> None:
        if bool(self.to) == bool(self.drop):
            raise ValueError(f"rule {self.pattern!r} needs either a target or a reason to drop")

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.to,) if isinstance(self.to, str) else self.to

    def match(self, name: str, shape: Shape) -> re.Match[str] | None:
        return re.fullmatch(self.pattern, name) if self.ndim in (None, len(shape)) else None


Stage = Sequence[Rule] | Mapping[str, str]


class Piece(NamedTuple):
    """A tensor on its way: the `part`-th of `parts` equal pieces of a source tensor, after `moves`, under a name."""

    source: str
    name: str  # in the end the path of a leaf
    moves: tuple[Move, ...] = ()
    part: int = 0
    parts: int = 1

    def make(self, tensor: np.ndarray) -> np.ndarray:
        """The piece: a view of the whole source tensor, but for moves that must copy."""
        if self.parts > 1:
            size = tensor.shape[0] // self.parts
            tensor = tensor[self.part * size : (self.part + 1) * size]
        for move in self.moves:
            tensor = move(tensor)
        return tensor

    def shape(self, source_shape: Shape) -> Shape:
        """Its shape: the moves run on an array of strides 0, which takes no memory and which none has to copy."""
        return self.make(np.broadcast_to(np.float32(0), source_shape)).shape


class Default(NamedTuple):
    """The value of a leaf that files may lack, and why it is right."""

    make: Callable[[Shape], np.ndarray]
    reason: str


def identity(shape: Shape) -> np.ndarray:
    """The kernel of a Dense layer that changes nothing; it must be square."""
    rows, columns = shape
    assert rows == columns
    return np.eye(rows, dtype=np.float32)


@dataclasses.dataclass
class Examination:
    """What a list of names would give: assignments, what is dropped or filled in and why, and all that is wrong."""

    assignments: list[Piece] = dataclasses.field(default_factory=list)
    dropped: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> reason
    filled: dict[str, str] = dataclasses.field(default_factory=dict)  # path of a leaf -> reason of its default
    unknown: list[str] = dataclasses.field(default_factory=list)
    ambiguous: list[str] = dataclasses.field(default_factory=list)
    doubled: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    misshapen: list[str] = dataclasses.field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """One line per kind of problem; empty when all is well."""
        kinds = (
            ("that no rule takes", self.unknown),
            ("that several rules take", self.ambiguous),
            ("for one place", self.doubled),
            ("missing", self.missing),
            ("of another shape", self.misshapen),
        )
        return [
            f"{len(found)} tensor{'s'[: len(found) > 1]} {kind}: {shorten(found)}" for kind, found in kinds if found
        ]


NO_DEFAULTS: Mapping[str, Default] = {}


def examine(
    sources: Mapping[str, Shape],
    stages: Sequence[Stage],
    target_shapes: Mapping[str, Any],
    defaults: Mapping[str, Default] = NO_DEFAULTS,
) -> Examination:
    """Everything that loading tensors of these names and shapes would do, without their data.

    target_shapes: the parameter tree, nested; its leaves are shapes or have one (jax.ShapeDtypeStruct).
    defaults: path -> what a leaf is that no tensor leads to; any other such leaf is missing.
    """
    targets = flat_shapes(target_shapes)
    result = Examination()
    sources_of: dict[str, list[str]] = {}  # also of tensors that don't fit
    for source, shape in sources.items():
        for piece in _follow(source, tuple(shape), stages, result):
            target = tree_path(piece.name)
            if target not in targets:
                result.unknown.append(f"{source} {list(shape)}")
                continue
            sources_of.setdefault(target, []).append(source)
            if (made := piece.shape(tuple(shape))) == targets[target]:
                result.assignments.append(piece._replace(name=target))
            else:
                result.misshapen.append(
                    f"{source} {list(shape)}, as {target} {list(made)}, where {list(targets[target])} is expected"
                )
    result.doubled = [f"{' and '.join(names)} for {t}" for t, names in sources_of.items() if len(names) > 1]
    empty = {t: shape for t, shape in targets.items() if t not in sources_of}
    result.filled = {t: defaults[t].reason for t in empty if t in defaults}
    result.missing = [f"{t} {list(shape)}" for t, shape in empty.items() if t not in defaults]
    return result


def plan(
    sources: Mapping[str, Shape],
    stages: Sequence[Stage],
    target_shapes: Mapping[str, Any],
    where: str,
    defaults: Mapping[str, Default] = NO_DEFAULTS,
) -> list[Piece]:
    """How the leaves are made of tensors. Raises one WeightsError, about `where`, that lists all that is wrong."""
    found = examine(sources, stages, target_shapes, defaults)
    if found.problems:
        raise WeightsError(f"{where} does not fit this network:\n  " + "\n  ".join(found.problems))
    return found.assignments


def convert(
    tensors: Mapping[str, np.ndarray],
    stages: Sequence[Stage],
    target_shapes: Mapping[str, Any],
    where: str = "state dict",
) -> dict[str, Any]:
    """The parameter tree as nested dicts of numpy views of `tensors`. Raises WeightsError like `plan`."""
    steps = plan({k: v.shape for k, v in tensors.items()}, stages, target_shapes, where)
    return traverse_util.unflatten_dict({s.name: s.make(tensors[s.source]) for s in steps}, sep="/")


def flat_shapes(tree: Mapping[str, Any]) -> dict[str, Shape]:
    """Nested tree of shapes, or of things with a shape, as {"a/b/kernel": shape}."""
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    return {path: tuple(getattr(leaf, "shape", leaf)) for path, leaf in flat.items()}


def tree_path(dotted: str) -> str:
    """Path in the tree of a dotted name; list indices join the list's name: "a.0.b.kernel" -> "a_0/b/kernel"."""
    return re.sub(r"\.(\d+)(?=\.)", r"_\1", dotted).replace(".", "/")


def _follow(source: str, shape: Shape, stages: Sequence[Stage], result: Examination) -> list[Piece]:
    """The pieces of one source tensor after all stages; none when it was dropped or could not be followed."""
    pieces = [Piece(source, source)]
    try:
        for i, stage in enumerate(stages):
            pieces = [new for piece in pieces for new in _pass(piece, shape, stage, last=i == len(stages) - 1)]
    except _Leaves as e:
        where, said = e.args
        if where == "dropped":
            result.dropped[source] = said
        else:
            getattr(result, where).append(f"{source} {said}")
        return []
    return pieces


class _Leaves(Exception):
    """A source tensor goes no further: (the field of Examination that says so, why)."""


def _pass(piece: Piece, source_shape: Shape, stage: Stage, last: bool) -> list[Piece]:
    """What one stage makes of a piece."""
    if isinstance(stage, Mapping):
        return [piece._replace(name=stage.get(piece.name, piece.name))]
    shape, said = piece.shape(source_shape), list(source_shape)
    found = [(rule, match) for rule in stage if (match := rule.match(piece.name, shape))]
    if len(found) > 1:
        raise _Leaves("ambiguous", f"(by {' and '.join(rule.pattern for rule, _ in found)})")
    if not found:
        if last:
            raise _Leaves("unknown", f"{said}")
        return [piece]
    [(rule, match)] = found
    if rule.drop:
        raise _Leaves("dropped", rule.drop)
    n = len(rule.targets)
    if n > 1 and (piece.parts > 1 or piece.moves or not shape or shape[0] % n):
        raise _Leaves("misshapen", f"{said} (it should fall into {n} equal parts)")
    moves = (*piece.moves, rule.move) if rule.move else piece.moves
    cuts = [(piece.part, piece.parts)] if n == 1 else [(k, n) for k in range(n)]
    pieces = [Piece(piece.source, match.expand(to), moves, *cut) for to, cut in zip(rule.targets, cuts, strict=True)]
    try:
        pieces[0].shape(source_shape)
    except ValueError as e:
        raise _Leaves("misshapen", f"{said} ({rule.move.__name__ if rule.move else 'cut'}: {e})") from None
    return pieces
