"""A LoRA out of two checkpoints of one architecture: the low rank nearest to what tuning changed, layer by layer."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import traverse_util

from autolora_jax.lora.tree import low_rank
from autolora_jax.lora.truncation import Fit, Fits, Truncation, best_product, percent
from autolora_jax.models.networks import shapes_of
from autolora_jax.weights.checkpoint import Checkpoint
from autolora_jax.weights.errors import shorten
from autolora_jax.weights.lora.metadata import listing
from autolora_jax.weights.rules import flat_shapes
from autolora_jax.weights.streaming import Leaves

UNHELD = ("vae",)  # components that no LoRA file can change


class Remainder(NamedTuple):
    """A change that is left out: no LoRA holds it."""

    change: float  # ‖W_tuned − W_base‖, Frobenius
    size: float  # ‖W_base‖


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What an extracted LoRA holds of the difference between two checkpoints, and what it does not. print() it."""

    base: str
    tuned: str
    fits: Fits  # of the layers in the LoRA
    unchanged: Mapping[str, int]  # component -> layers that are the same in both
    left_out: Mapping[str, Remainder]  # "unet/conv_in/bias" -> how much it changed: biases, norms, embeddings, the VAE
    notes: tuple[str, ...]  # what else differs

    def __str__(self) -> str:
        rows = [
            ("base", self.base),
            *self.fits.rows(),
            *([("unchanged", ", ".join(f"{n} in {c}" for c, n in self.unchanged.items()))] if self.unchanged else []),
            *(("left out", line) for line in self._left_out()),
            *(("note", note) for note in self.notes),
        ]
        return listing(self.tuned, rows)

    def _left_out(self) -> Iterator[str]:
        """A line per component and kind of leaf: hundreds of biases are one."""
        groups: dict[tuple[str, str], list[Remainder]] = {}
        for path, remainder in self.left_out.items():
            component, kind = path.partition("/")[0], path.rpartition("/")[2]
            groups.setdefault((component, KINDS.get(kind, kind)), []).append(remainder)
        for (component, kind), found in groups.items():
            changed, size = (math.hypot(*values) for values in zip(*found, strict=True))
            share = f"by {percent(changed / size)} of their size" if size else "from zero"
            yield f"{len(found)} {kind} in {component}, changed {share}"


# Last name of a leaf's path -> what to call several.
KINDS: Mapping[str, str] = {
    "kernel": "kernels",
    "bias": "biases",
    "scale": "norms",
    "embedding": "embedding tables",
    "pos_embed": "position tables",
}


def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    truncation: Truncation,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> tuple[dict[str, Any], Extraction]:
    """(component -> delta tree, report) of the LoRA that, at scale 1, takes `base` as near to `tuned` as ranks allow.

    Every layer with a kernel gets ΔW = W_tuned − W_base, taken in float32, at the rank that `truncation` says. The
    trees are what lora.attach gives, for save_lora and the pipeline. Layers that are the same in both, but for the
    rounding to the narrower dtype of the two, are skipped. What is no layer's kernel is measured and left out.
    One tensor of each checkpoint is in memory at a time. on_progress: called with (tensors done, tensors, component).
    Raises ValueError for checkpoints of different architectures, and for two without a layer that differs; WeightsError
    for NaN and damaged files.
    """
    compared, notes = _comparable(base, tuned)
    found = _Found(truncation)
    shapes = {component: flat_shapes(shapes_of(base.networks[component])) for component in compared}
    total, done = sum(map(len, shapes.values())), 0
    for component in compared:
        with base.leaves(component) as before, tuned.leaves(component) as after:
            for path in shapes[component]:
                if on_progress:
                    on_progress(done, total, component)
                found.add(component, path, before, after)
                done += 1
    if not found.fits:
        raise ValueError(
            f"{tuned.name} has the layers of {base.name}, not one differs: there is nothing to extract"
            + (f" (other tensors do: {shorten(list(found.left_out), 3)})" if found.left_out else "")
        )
    if on_progress:
        on_progress(total, total, "")
    report = Extraction(
        base.name, tuned.name, Fits(found.fits), dict(found.unchanged), found.left_out, tuple(notes + found.notes())
    )
    return found.trees(), report


class _Found:
    """What has been compared so far."""

    def __init__(self, truncation: Truncation) -> None:
        self._truncation = truncation
        self._leaves: dict[str, dict[str, np.ndarray]] = {}  # "unet/…/to_q" -> leaf of the delta tree
        self.fits: dict[str, Fit] = {}
        self.unchanged: Counter[str] = Counter()
        self.left_out: dict[str, Remainder] = {}
        self._dtypes: dict[str, tuple[np.dtype, np.dtype]] = {}  # component -> of a layer that changed

    def add(self, component: str, path: str, before: Leaves, after: Leaves) -> None:
        """Compares one leaf of both."""
        old, new = before.read(path), after.read(path)
        layer, _, kind = f"{component}/{path}".rpartition("/")
        most = self._truncation.most(old.shape) if kind == "kernel" and component not in UNHELD else 0
        if _same(old, new):
            self.unchanged.update([component] if kind == "kernel" else [])
            return
        if old.dtype != new.dtype:
            self._dtypes[component] = old.dtype, new.dtype
        old = old.astype(np.float32)
        change = new.astype(np.float32) - old
        if most:
            (down, up), fit = best_product(change.reshape(-1, change.shape[-1]), self._truncation, most)
            self._leaves[layer] = low_rank(down.reshape(*change.shape[:-1], -1), up)
            self.fits[layer] = fit
        else:
            self.left_out[f"{component}/{path}"] = Remainder(_norm(change), _norm(old))

    def trees(self) -> dict[str, Any]:
        """component -> delta tree."""
        return dict(traverse_util.unflatten_dict(self._leaves, sep="/"))

    def notes(self) -> list[str]:
        return [
            f"{component} is stored as {old.name} in the base and as {new.name} in the tuned checkpoint: the rounding "
            "is part of what was extracted; give both in one precision if you can"
            for component, (old, new) in self._dtypes.items()
        ]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two tensors are equal once both have the narrower dtype of the two."""
    narrow = min(one.dtype, other.dtype, key=lambda dtype: ml_dtypes.finfo(dtype).nmant)
    with np.errstate(over="ignore"):
        return np.array_equal(one.astype(narrow), other.astype(narrow))


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


def _comparable(base: Checkpoint, tuned: Checkpoint) -> tuple[list[str], list[str]]:
    """(components that both have, notes on the rest). Raises ValueError when the two are different architectures."""
    if base.family != tuned.family:
        raise ValueError(
            f"{base.name} is {base.family.name}, {tuned.name} is {tuned.family.name}: a LoRA can only be the "
            "difference of two checkpoints of one architecture"
        )
    names = [name for name in base.family.parts if name in base.networks or name in tuned.networks]
    own = {name: [name in c.networks and name not in c.remote for c in (base, tuned)] for name in names}
    shared = [name for name, there in own.items() if all(there)]
    wrong = [line for name in shared for line in _differing_shapes(name, base, tuned)]
    if wrong:
        raise ValueError(
            f"{base.name} and {tuned.name} are different architectures: {shorten(wrong, 3)}; give the base model that "
            "the tuned one was made from"
        )
    notes = [
        f"{name} was not compared: {checkpoint.name} leaves it out"
        for name in names
        for checkpoint, there in zip((base, tuned), own[name], strict=True)
        if not there
    ]
    one, other = base.scheduler.prediction_type, tuned.scheduler.prediction_type
    if one != other:
        notes.append(f"the base model predicts {one}, the tuned one {other}: the LoRA needs that scheduler, too")
    return shared, notes


def _differing_shapes(component: str, base: Checkpoint, tuned: Checkpoint) -> list[str]:
    one, other = (flat_shapes(shapes_of(checkpoint.networks[component])) for checkpoint in (base, tuned))
    return [
        f"{component} {path} is {list(one.get(path, ())) or 'absent'} and {list(other.get(path, ())) or 'absent'}"
        for path in dict.fromkeys([*one, *other])
        if one.get(path) != other.get(path)
    ]
