"""What a LoRA file is, told without a base model and without failing: for `autolora info`."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from autolora_jax.weights.errors import WeightsError, printable
from autolora_jax.weights.files import TensorFiles, open_tensors
from autolora_jax.weights.lora import metadata
from autolora_jax.weights.lora.dialects import UNKNOWN, component_of
from autolora_jax.weights.lora.distilled import distilled_of
from autolora_jax.weights.lora.files import NO_CHANGE, read_alpha
from autolora_jax.weights.lora.kinds import DORA, Sizes, kind_of, sizes_of
from autolora_jax.weights.lora.kinds.matrix import Shapes
from autolora_jax.weights.lora.match import DAMAGED, Match, Parts, examine
from autolora_jax.weights.lora.names import Targets
from autolora_jax.weights.lora.source import find_lora
from autolora_jax.weights.rules import Shape

SUPPORTED = ("SDXL", "Stable Diffusion 3")  # how families of dialects.FAMILIES begin that a model here can be
_MOST = 4  # ranks, alphas and factors that a line shows
_PLAIN = "LoRA"

Counts = Mapping[Any, int]  # what -> how often


@dataclasses.dataclass(frozen=True)
class KindFound:
    """The modules of a file that are of one kind."""

    modules: int
    ranks: Counts = dataclasses.field(default_factory=dict)  # rank -> modules that have it
    alphas: Counts = dataclasses.field(default_factory=dict)  # None: no alpha tensor
    factors: Mapping[str, int] = dataclasses.field(default_factory=dict)  # LoKr's, "8x8 ⊗ 384x96" -> modules

    def __str__(self) -> str:
        parts = [f"{self.modules} module{'s'[: self.modules > 1]}"]
        parts += [f"rank {metadata.histogram(self.ranks, _MOST)}"] if self.ranks else []
        parts += (
            [f"alpha {metadata.alpha_histogram(self.alphas, _MOST)}"]
            if self.ranks or self.alphas.keys() - {None}
            else []
        )
        parts += [f"factors {metadata.histogram(self.factors, _MOST)}"] if self.factors else []
        return "; ".join(parts)


@dataclasses.dataclass(frozen=True)
class LoraDescription:
    """What a file says about itself. print() it."""

    path: str
    dialect: str = "unreadable"
    family: str = "unknown"  # the base model that it looks made for
    modules: Counts = dataclasses.field(default_factory=dict)  # component -> modules
    kinds: Mapping[str, KindFound] = dataclasses.field(default_factory=dict)  # "LoRA", "LoHa (LyCORIS) with DoRA", …
    embeddings: tuple[str, ...] = ()  # words that come with it
    parameters: int = 0
    dtypes: Counts = dataclasses.field(default_factory=dict)  # safetensors' dtype -> tensors
    size: int = 0  # bytes
    trigger_words: tuple[str, ...] = ()
    training: Mapping[str, str] = dataclasses.field(default_factory=dict)
    model_hash: str | None = None  # what the header says of the tensors' sha256 (sshs_model_hash)
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)  # the whole header, as it stands
    layers: int | None = None  # how many layers of a model it changes; None: no model was named
    notes: tuple[str, ...] = ()  # what of it is left out, or read in a way worth a word
    problems: tuple[str, ...] = ()  # why it would be refused; empty: nothing known against it

    @property
    def ranks(self) -> Counts:
        """rank -> modules, of all kinds."""
        return sum((Counter(kind.ranks) for kind in self.kinds.values()), Counter())

    @property
    def alphas(self) -> Counts:
        """alpha -> modules, of all kinds; None: no alpha tensor."""
        return sum((Counter(kind.alphas) for kind in self.kinds.values()), Counter())

    def rows(self, also: Iterable[tuple[str, str]] = ()) -> list[tuple[str, str]]:
        """(heading, what there is to say), line by line. also: further ones, said before the bad news."""
        return [
            *self._rows(),
            *also,
            *(("note", note) for note in self.notes),
            *(("can't be used", problem) for problem in self.problems),
        ]

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "dialect", self.dialect
        yield "made for", self.family
        yield "modules", ", ".join(f"{n} in {component}" for component, n in self.modules.items()) or "none"
        for name, kind in self.kinds.items():
            yield "holds", f"{name}: {kind}"
        if self.size:
            size = f"{self.size / 1e6:,.1f} MB" if self.size >= 1e5 else f"{self.size / 1e3:,.1f} kB"
            yield "tensors", f"{self.parameters:,} parameters, {' and '.join(self.dtypes)}, {size}"
        if self.embeddings:
            yield "embeddings", ", ".join(printable(word) for word in self.embeddings)
        yield "trigger words", ", ".join(self.trigger_words) or "none in the file"
        if said := distilled_of(self.metadata):
            yield "stands for", printable(str(said))
        yield from self.training.items()
        if self.model_hash:
            yield "tensors' hash", f"{printable(self.model_hash)}, says the header"
        if self.layers is not None and not self.problems:
            yield "fits", f"the model: it changes {self.layers} of its layers"

    def __str__(self) -> str:
        return metadata.listing(self.path, self.rows())


def describe_lora(path: str | PathLike[str], targets: Targets | None = None) -> LoraDescription:
    """What a LoRA file is and why it would be refused. Bad content is described, never raised.

    targets: a model as read_lora takes it, to say also whether the file fits that one.
    """
    path = Path(path)
    try:
        with open_tensors(path) as file:
            return _describe(path, file, targets)
    except WeightsError as e:
        return LoraDescription(str(path), problems=(str(e),))


def usable_lora(source: str) -> Path:
    """A LoRA's file. Raises WeightsError for one that could not be loaded, before any model is."""
    path = find_lora(source)
    if problems := describe_lora(path).problems:
        raise WeightsError(f"{path}: " + "; ".join(problems))
    return path


def _describe(path: Path, file: TensorFiles, targets: Targets | None) -> LoraDescription:
    match = examine(path, file, targets)
    if not match.family.startswith((*SUPPORTED, UNKNOWN)) and not targets:
        match.problems.add(
            f"made for {match.family}, it seems", f"only LoRAs for {' and '.join(SUPPORTED)} can be used"
        )
    shapes = {key: info.shape for key, info in file.tensors.items()}
    return LoraDescription(
        path=str(path),
        notes=(*match.notes, *([NO_CHANGE] if _changes_nothing(match) else [])),
        dialect=match.dialect,
        family=match.family,
        modules=metadata.by_component(component_of(module, match.family) for module in match.modules),
        kinds=_kinds(match, shapes, file),
        embeddings=tuple(match.embeddings),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        dtypes=dict(Counter(info.dtype for info in file.tensors.values())),
        size=path.stat().st_size,
        trigger_words=metadata.trigger_words(file.metadata),
        training=metadata.training_summary(file.metadata),
        model_hash=file.metadata.get("sshs_model_hash"),
        metadata=file.metadata,
        layers=len(match.layers) if targets else None,
        problems=tuple(match.problems.lines()),
    )


def _kinds(match: Match, shapes: Mapping[str, Shape], file: TensorFiles) -> dict[str, KindFound]:
    """What the modules of each kind say; the most frequent kind first."""
    found: dict[str, list[tuple[Sizes, float | None]]] = {}
    for parts in match.modules.values():
        own = {part: shapes[key] for part, key in parts.items()}
        sizes = sizes_of(own)
        found.setdefault(_kind_name(own), []).append((sizes, _alpha(file, parts, match)))
    return {
        name: KindFound(
            len(modules),
            dict(Counter(sizes.rank for sizes, _ in modules if sizes.rank is not None)),
            dict(Counter(alpha for _, alpha in modules)),
            dict(Counter(sizes.factors for sizes, _ in modules if sizes.factors)),
        )
        for name, modules in sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    }


def _kind_name(shapes: Shapes) -> str:
    kind = kind_of(shapes)
    name = kind.beyond(shapes) or kind.name if kind else "unknown"
    if not DORA.keys() & shapes.keys():
        return name
    return "DoRA" if name == _PLAIN else f"{name} with DoRA"


def _changes_nothing(match: Match) -> bool:
    """Whether all of its modules are zeros; the first that is not ends the search."""
    changes = [parts for parts in match.modules.values() if kind_of(parts)]
    return bool(changes) and not match.problems and not match.embeddings and all(map(match.nothing, changes))


def _alpha(file: TensorFiles, parts: Parts, match: Match) -> float | None:
    key, kind = parts.get("alpha"), kind_of(parts)
    if key is None or not kind or not kind.scaled(parts):
        return None
    try:
        return read_alpha(file, key)
    except WeightsError as e:
        match.problems.add("alphas that can't be used", DAMAGED, str(e))
        return None
