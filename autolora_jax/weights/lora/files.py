"""LoRA files -> what they change. Every tensor is used exactly once, or one error says all that is wrong."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from autolora_jax.models.networks import Networks, shapes_of
from autolora_jax.weights import reads
from autolora_jax.weights.errors import WeightsError, printable
from autolora_jax.weights.files import TensorFiles, open_tensors
from autolora_jax.weights.lora.embeddings import Embeddings, read_embeddings
from autolora_jax.weights.lora.fused import SPLIT_QKV, is_split_qkv, piece, says_split_qkv
from autolora_jax.weights.lora.kinds import Change, read
from autolora_jax.weights.lora.kinds.low_rank import LowRank
from autolora_jax.weights.lora.match import DAMAGED, Match, configs_of, examine, raise_problems
from autolora_jax.weights.lora.names import Layer, Names, Targets
from autolora_jax.weights.lora.peft import LARGEST_ALPHA
from autolora_jax.weights.lora.source import find_lora, settings_beside

NO_CHANGE = "all of it is zeros, so it changes nothing"


@dataclasses.dataclass(frozen=True)
class LoraFile:
    """A LoRA that fits a model."""

    path: Path
    dialect: str
    layers: Mapping[Layer, Change]
    metadata: Mapping[str, str]  # the file's header
    embeddings: Embeddings = dataclasses.field(default_factory=dict)  # words that come with it
    notes: tuple[str, ...] = ()  # what was left out, or read in a way worth a word


def targets_of(networks: Networks) -> Targets:
    """What a LoRA for a checkpoint of these configs may change; for read_lora where no weights are loaded."""
    return {name: (shapes_of(config), config) for name, config in networks.items() if name != "vae"}


def read_lora(source: str | PathLike[str], targets: Targets) -> LoraFile:
    """The changes that a LoRA file holds for a model.

    source: a .safetensors file, a folder that holds one, or a hub id; see source.
    targets: component ("unet" or "transformer", "text_encoder", …) -> (its parameters or their shapes, its config).
    Raises WeightsError that names the file, its dialect, every key that can't be applied exactly, and what to do.
    Warns about what its `notes` say.
    """
    path = find_lora(source)
    reads.named(lambda: settings_beside(path))
    with open_tensors(path) as file:
        match = examine(path, file, targets)
        raise_problems(str(path), match)  # before the data is read: it may be large
        embeddings = read_embeddings(file, match.embeddings, configs_of(targets))
        modules = dict.fromkeys(match.layers.values())
        changes = {module: _read_module(file, match, module) for module in modules}
        raise_problems(str(path), match)
    made = {module: change for module, change in changes.items() if change}
    if made and not embeddings and all(change.nothing for change in made.values()):
        match.notes.append(NO_CHANGE)
    if match.notes:
        warnings.warn(f"{path}: {'; '.join(match.notes)}", stacklevel=2)
    assert match.names
    found = LoraFile(path, match.dialect, {}, file.metadata, embeddings, tuple(match.notes))
    return _share_out(made, match.names, found)


def _share_out(changes: Mapping[str, Change], known: Names, file: LoraFile) -> LoraFile:
    """The file with the changes of its modules as changes of layers."""
    one_alpha = len({change.matrix.alpha for change in changes.values() if change.matrix}) == 1
    said = says_split_qkv(file.metadata)
    dialect = file.dialect
    layers: dict[Layer, Change] = {}
    for module, change in changes.items():
        shares = known[module].shares
        matrix = change.matrix
        if isinstance(matrix, LowRank) and is_split_qkv(matrix, len(shares), said, one_alpha):
            assert matrix.alpha is not None
            change = dataclasses.replace(change, matrix=dataclasses.replace(matrix, alpha=matrix.alpha * len(shares)))
            dialect = f"{file.dialect}, {SPLIT_QKV}"
        layers |= {share.layer: part for share in shares if (part := piece(change, share.place))}
    return dataclasses.replace(file, dialect=dialect, layers=layers)


def read_alpha(file: TensorFiles, key: str) -> float:
    """The alpha in a tensor, which may be of any dtype. Raises WeightsError when it can't be one."""
    alpha = file.number(key)
    if abs(alpha) >= LARGEST_ALPHA:
        raise WeightsError(f"{file.where}: {printable(key)} is {alpha:g}, which is no alpha")
    return alpha


def _read_module(file: TensorFiles, match: Match, module: str) -> Change | None:
    """A module's change; None when a tensor can't be used, which match.problems then says."""
    assert match.names
    keys, name = match.modules[module], match.names[module]
    scaled = match.usable[module].scaled(keys)
    try:
        tensors = {part: file.read(key) for part, key in keys.items() if part != "alpha"}
        alpha = read_alpha(file, keys["alpha"]) if "alpha" in keys and scaled else None
    except WeightsError as e:
        match.problems.add("tensors that can't be used", "get another version of the file", str(e))
        return None
    if name.component in match.settings and scaled:
        said = match.settings[name.component].alpha(name.module)
        if alpha is not None and not math.isclose(alpha, said, rel_tol=1e-3):  # alpha may be stored in half precision
            match.problems.add(
                "alphas that differ from the file's own PEFT settings", DAMAGED, f"{module} ({alpha}, {said})"
            )
        alpha = said
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # attaching it will say so
            return read(tensors, name.kernel, alpha)
    except WeightsError as e:
        match.problems.add("tensors that do not fit the layer", DAMAGED, f"{module} ({e})")
        return None
