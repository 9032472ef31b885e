"""What a LoRA file is, told without a base model and without failing: for `autolora info`."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import TensorFiles, open_tensors
from autolora_jax.weights.lora.dialects import component_of
from autolora_jax.weights.lora.match import NOT_APPLIED, Match, examine_modules, match_layers
from autolora_jax.weights.lora.metadata import (
    alpha_histogram,
    by_component,
    histogram,
    listing,
    training_summary,
    trigger_words,
)
from autolora_jax.weights.lora.names import SPELLINGS, Targets, names
from autolora_jax.weights.lora.peft import peft_settings

SUPPORTED = ("SDXL", "Stable Diffusion 3")  # how families of dialects.FAMILIES begin that a model here can be


@dataclasses.dataclass(frozen=True)
class LoraDescription:
    """What a file says about itself. print() it."""

    path: str
    dialect: str = "unreadable"
    family: str = "unknown"  # the base model that it looks made for
    modules: Mapping[str, int] = dataclasses.field(default_factory=dict)  # component -> modules
    ranks: Mapping[int, int] = dataclasses.field(default_factory=dict)  # rank -> modules, of plain LoRAs
    alphas: Mapping[float | None, int] = dataclasses.field(default_factory=dict)  # None: no alpha tensor
    trigger_words: tuple[str, ...] = ()
    training: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)  # the whole header, as it stands
    problems: tuple[str, ...] = ()  # why it would be refused; empty: nothing known against it

    def __str__(self) -> str:
        rows = [
            ("dialect", self.dialect),
            ("made for", self.family),
            ("modules", ", ".join(f"{n} in {component}" for component, n in self.modules.items()) or "none"),
            ("rank", histogram(self.ranks)),
            ("alpha", alpha_histogram(self.alphas)),
            ("trigger words", ", ".join(self.trigger_words) or "none in the file"),
            *self.training.items(),
            *(("can't be used", problem) for problem in self.problems),
        ]
        return listing(self.path, rows)


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


def _describe(path: Path, file: TensorFiles, targets: Targets | None) -> LoraDescription:
    shapes = {key: info.shape for key, info in file.tensors.items()}
    settings, unusable = {}, ""
    try:
        settings = peft_settings(path, file.metadata, list(SPELLINGS))
    except WeightsError as e:
        unusable = str(e)
    match = match_layers(shapes, names(targets), settings) if targets else examine_modules(shapes)
    if unusable:
        match.problems.add(unusable, NOT_APPLIED)
    if not match.family.startswith((*SUPPORTED, "unknown")) and not targets:
        match.problems.add(
            f"made for {match.family}, it seems", f"only LoRAs for {' and '.join(SUPPORTED)} can be used"
        )
    alphas = [_alpha(file, parts.get("alpha"), match) for parts in match.modules.values()]
    return LoraDescription(
        path=str(path),
        dialect=match.dialect,
        family=match.family,
        modules=by_component(component_of(module) for module in match.modules),
        ranks=_ranks(match, shapes),
        alphas=dict(Counter(alphas)),
        trigger_words=trigger_words(file.metadata),
        training=training_summary(file.metadata),
        metadata=file.metadata,
        problems=tuple(match.problems.lines()),
    )


def _ranks(match: Match, shapes: Mapping[str, tuple[int, ...]]) -> dict[int, int]:
    downs = (shapes[parts["down"]] for parts in match.modules.values() if "down" in parts)
    return dict(Counter(shape[0] for shape in downs if shape))


def _alpha(file: TensorFiles, key: str | None, match: Match) -> float | None:
    if key is None:
        return None
    try:
        return float(file.read(key).reshape(()))
    except ValueError as e:  # a WeightsError, or more numbers than one
        match.problems.add("alphas that can't be used", "get another version of the file", f"{key} ({e})")
        return None
