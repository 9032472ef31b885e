"""What a file or folder is and what would load of it, told without reading weights and without failing."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from autolora_jax.config import ConfigError, JsonConfig, SchedulerConfig
from autolora_jax.demo import MODEL, builtin
from autolora_jax.models.networks import Networks, shapes_of
from autolora_jax.weights import diffusers_folder, orbax_folder
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.families import Family, check_together
from autolora_jax.weights.files import OnBytes, kind_of, open_tensors, sha256_of
from autolora_jax.weights.hub import LocalFolder
from autolora_jax.weights.lora.describe import LoraDescription, describe_lora
from autolora_jax.weights.lora.embeddings import embedding_problems
from autolora_jax.weights.lora.files import targets_of
from autolora_jax.weights.lora.metadata import listing
from autolora_jax.weights.lora.source import find_lora
from autolora_jax.weights.orbax_folder import OrbaxWeights
from autolora_jax.weights.single_file import LORA, TEXTUAL_INVERSION, read_single_file, what_else
from autolora_jax.weights.streaming import TensorWeights

T = TypeVar("T")

FOLDER, CONVERTED, SINGLE = "diffusers folder", "converted folder (Orbax)", "single file"
OTHER_FOLDER = "folder"  # of a LoRA, perhaps


@dataclasses.dataclass(frozen=True)
class Component:
    """One network's stored parameters."""

    parameters: int
    dtypes: Mapping[str, int]  # dtype -> tensors
    dropped: Mapping[str, str] = dataclasses.field(default_factory=dict)  # tensor -> why it is left out
    filled: Mapping[str, str] = dataclasses.field(default_factory=dict)  # parameter that it lacks -> what it is then
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = (("left out", self.dropped), ("not in it", self.filled))
        said = (f"; {what}: {line}" for what, names in notes for line in _by_reason(names))
        return f"{self.parameters:,} parameters, {', '.join(self.dtypes)}" + "".join(said)


@dataclasses.dataclass(frozen=True)
class Description:
    """What something on disk is. print() it."""

    path: str
    kind: str
    components: Mapping[str, Component] = dataclasses.field(default_factory=dict)
    scheduler: SchedulerConfig | None = None
    dropped: Mapping[str, str] = dataclasses.field(default_factory=dict)  # tensors of no component
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)  # component that it leaves out -> what to do
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)  # a safetensors header's, as it stands
    lora: LoraDescription | None = None
    sha256: str | None = None  # of a file, when it has been asked for
    verified: tuple[str, ...] = ()  # what was found right when that was asked for
    problems: tuple[str, ...] = ()  # why it can't be loaded

    @property
    def loads(self) -> bool:
        """Whether nothing is known against loading it. (Bad values show only when they are read: `verify`.)"""
        return not (self.problems or any(c.problems for c in self.components.values()))

    @property
    def autov2(self) -> str | None:
        """The name that civitai knows the file by."""
        return autov2(self.sha256) if self.sha256 else None

    def hashed(self, on_bytes: OnBytes | None = None) -> "Description":
        """The same with the file's sha256, good or bad; unchanged where there is no file to read."""
        if not Path(self.path).is_file():
            return self
        return dataclasses.replace(self, sha256=sha256_of(Path(self.path), on_bytes))

    def rows(self) -> list[tuple[str, str]]:
        """(heading, what there is to say), line by line."""
        hashes = [("sha256", self.sha256), ("AutoV2", self.autov2)] if self.sha256 and self.autov2 else []
        if self.lora:
            return self.lora.rows(hashes)
        return [
            ("is", self.kind),
            *((name, str(component)) for name, component in self.components.items()),
            *(("scheduler", _said(s)) for s in [self.scheduler] if s),
            *(("not in it", line) for line in _by_reason(self.absent)),
            *(("left out", line) for line in _by_reason(self.dropped)),
            *hashes,
            *(("verified", line) for line in self.verified),
            *((f"{name}: can't be loaded", p) for name, c in self.components.items() for p in c.problems),
            *(("can't be loaded", problem) for problem in self.problems),
        ]

    def __str__(self) -> str:
        return listing(self.path, self.rows())


def _said(scheduler: SchedulerConfig) -> str:
    solver = f"{scheduler.unknown}, which is no solver of ours: name another" if scheduler.unknown else scheduler.solver
    zero = ", to zero terminal SNR" if scheduler.rescale_betas_zero_snr else ""
    return f"{solver}, {scheduler.prediction_type}{zero}"


def _by_reason(dropped: Mapping[str, str]) -> list[str]:
    """One line per reason: an average of the weights alone is hundreds of tensors."""
    names: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        names.setdefault(reason, []).append(name)
    return [f"{shorten(found, 2)} ({reason})" for reason, found in names.items()]


def _attempt(problems: list[str], function: Callable[..., T], *args: Any) -> T | None:
    """What a function returns; None when it complains, which then is one of the problems."""
    try:
        return function(*args)
    except (WeightsError, ConfigError) as e:
        problems.append(str(e))
        return None


def describe(source: str | PathLike[str], networks: Networks | None = None) -> Description:
    """What a file or folder is, and what would load of it. Bad ones are described, never raised.

    source: a path; of LoRAs also a hub id or "builtin:character", which are fetched or found as load_lora does.
    networks: configs of a model's components, to say also whether a LoRA fits it.
    """
    path, kind = Path(source), "unreadable"
    try:
        path = _located(source)
        if path.is_dir():
            kind = _folder_kind(path)
            return describe(find_lora(path), networks) if kind == OTHER_FOLDER else _folder(path, kind)
        kind, why = kind_of(path)
        if why:
            return Description(str(path), kind, problems=(why,))
        kind = "safetensors file"
        with open_tensors(path) as files:
            other, metadata = what_else(files.tensors), files.metadata
            shapes = {name: info.shape for name, info in files.tensors.items()}
        if other is None:
            return _single(path, metadata)
        what, advice = other
        lora, problems = None, [advice]
        if what == LORA:
            lora = describe_lora(path, targets_of(networks) if networks else None)
            problems = list(lora.problems)
        elif what == TEXTUAL_INVERSION:
            problems = embedding_problems({path.stem: {name: name for name in shapes}}, shapes, networks)
        return Description(str(path), what, metadata=metadata, lora=lora, problems=tuple(problems))
    except (WeightsError, ConfigError) as e:
        return Description(str(path), kind, problems=(str(e),))


def _located(source: str | PathLike[str]) -> Path:
    """The file or folder on this machine. Raises WeightsError."""
    return (builtin(MODEL) if str(source) == MODEL else None) or (
        Path(source) if Path(source).exists() else find_lora(source)
    )


def _folder_kind(path: Path) -> str:
    names = LocalFolder(path).names()
    if orbax_folder.MANIFEST in names:
        return CONVERTED
    return FOLDER if diffusers_folder.INDEX in names else OTHER_FOLDER


def _folder(path: Path, kind: str) -> Description:
    folder = LocalFolder(path)
    family, _ = diffusers_folder.read_index(folder)
    networks = diffusers_folder.read_networks(folder, family)
    problems: list[str] = []
    _attempt(problems, check_together, networks, folder.where)
    scheduler = _attempt(problems, diffusers_folder.read_scheduler, folder)
    for name in family.tokenizers:
        if name.replace("tokenizer", "text_encoder") in networks:
            _attempt(problems, diffusers_folder.tokenizer_folder, folder, family, name)
    if kind == CONVERTED:
        stored = orbax_folder.open_weights(folder, networks)
        found = {name: _attempt(problems, _stored, stored[name], config) for name, config in networks.items()}
    else:

        def examined(name: str, config: JsonConfig) -> Component:
            return _tensors(diffusers_folder.component_weights(folder, family, name, config, None), config)

        found = {name: _attempt(problems, examined, name, config) for name, config in networks.items()}
    return Description(
        str(path),
        f"{family.name}, {kind}",
        components={name: component for name, component in found.items() if component},
        scheduler=scheduler,
        problems=tuple(problems),
    )


def _single(path: Path, metadata: Mapping[str, str]) -> Description:
    file = read_single_file(path)
    components = {name: _tensors(weights, file.networks[name]) for name, weights in file.weights.items()}
    family = file.layout.family
    absent = {name: _elsewhere(family, name) for name in file.absent}
    kind = f"{family.name}, {SINGLE}"
    return Description(str(path), kind, components, file.scheduler, file.dropped, absent, metadata)


def _elsewhere(family: Family, component: str) -> str:
    """Where an absent component comes from."""
    place = "--text-encoders-from"
    if component in family.optional:
        return f"optional; give it with {place}"
    return f"give it with {place}, or it is fetched from {family.repository} on the hub"


def _tensors(weights: TensorWeights, config: JsonConfig) -> Component:
    targets = shapes_of(config)
    found, infos = weights.examine(targets), weights.infos()
    problems = list(found.problems)
    if not problems:
        _attempt(problems, weights.check, targets)  # dtypes, too
    kept = [info for name, info in infos.items() if name not in found.dropped]
    return Component(
        sum(math.prod(info.shape) for info in kept),
        Counter(f"{info.dtype}{'' if info.factor is None else ' with factors'}" for info in kept),
        found.dropped,
        found.filled,
        tuple(problems),
    )


def _stored(weights: OrbaxWeights, config: JsonConfig) -> Component:
    arrays = weights.stored().values()
    problems: list[str] = []
    _attempt(problems, weights.check, shapes_of(config))
    parameters, dtypes = sum(math.prod(shape) for shape, _ in arrays), Counter(dtype for _, dtype in arrays)
    return Component(parameters, dtypes, problems=tuple(problems))


def autov2(sha256: str) -> str:
    """civitai's AutoV2 of a file: the first ten digits, in capitals."""
    return sha256[:10].upper()
