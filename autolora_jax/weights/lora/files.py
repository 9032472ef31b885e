"""LoRA files -> what they change. Every tensor is used exactly once, or one error says all that is wrong."""

import dataclasses
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import FLOATS, TensorFiles, open_tensors
from autolora_jax.weights.lora import building
from autolora_jax.weights.lora.change import Change, LowRank
from autolora_jax.weights.lora.fused import SPLIT_QKV, is_split_qkv, piece, says_split_qkv
from autolora_jax.weights.lora.kinds import kind_of
from autolora_jax.weights.lora.match import DAMAGED, NOT_APPLIED, Match, match_layers, raise_problems
from autolora_jax.weights.lora.names import Layer, Name, Targets, names
from autolora_jax.weights.lora.peft import PeftSettings, peft_settings
from autolora_jax.weights.lora.source import find_lora
from autolora_jax.weights.networks import Networks, shapes_of


@dataclasses.dataclass(frozen=True)
class LoraFile:
    """A LoRA that fits a model."""

    path: Path
    dialect: str
    layers: Mapping[Layer, Change]
    metadata: Mapping[str, str]  # the file's header


def targets_of(networks: Networks) -> Targets:
    """What a LoRA for a checkpoint of these configs may change; for read_lora where no weights are loaded."""
    return {name: (shapes_of(config), config) for name, config in networks.items() if name != "vae"}


def read_lora(source: str | PathLike[str], targets: Targets) -> LoraFile:
    """The changes that a LoRA file holds for a model.

    source: a .safetensors file, a folder that holds one, or a hub id; see source.
    targets: component ("unet" or "transformer", "text_encoder", …) -> (its parameters or their shapes, its config).
    Raises WeightsError that names the file, its dialect, every key that can't be applied exactly, and what to do.
    """
    path = find_lora(source)
    with open_tensors(path) as file:
        try:
            settings, unusable = peft_settings(path, file.metadata, list(targets)), ""
        except WeightsError as e:
            settings, unusable = {}, str(e)
        known = names(targets)
        match = match_layers({key: info.shape for key, info in file.tensors.items()}, known, settings)
        if unusable:
            match.problems.add(unusable, NOT_APPLIED)
        for key, info in file.tensors.items():
            if info.dtype not in FLOATS and not key.endswith(".alpha"):
                remedy = f"get a version in {', '.join(FLOATS)}"
                match.problems.add("tensors that are no floats", remedy, f"{key} ({info.dtype})")
        raise_problems(str(path), match)  # before the data is read: it may be large
        modules = dict.fromkeys(match.layers.values())
        changes = {module: _read_module(file, match, module, known[module], settings) for module in modules}
        raise_problems(str(path), match)
    return _share_out({k: v for k, v in changes.items() if v}, known, LoraFile(path, match.dialect, {}, file.metadata))


def _share_out(changes: Mapping[str, Change], known: Mapping[str, Name], file: LoraFile) -> LoraFile:
    """The file with the changes of its modules as changes of layers."""
    one_alpha = len({change.alpha for change in changes.values() if change.matrix}) == 1
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


def _read_module(
    file: TensorFiles, match: Match, module: str, name: Name, settings: Mapping[str, PeftSettings]
) -> Change | None:
    """A module's change; None when a tensor can't be used, which match.problems then says."""
    try:
        tensors = {part: file.read(key) for part, key in match.modules[module].items()}
    except WeightsError as e:
        match.problems.add("tensors that can't be used", "get another version of the file", str(e))
        return None
    alpha = float(tensors["alpha"].reshape(())) if "alpha" in tensors else None
    if name.component in settings:
        said = settings[name.component].alpha(name.module)
        if alpha is not None and not math.isclose(alpha, said, rel_tol=1e-3):  # alpha may be stored in half precision
            match.problems.add(
                "alphas that differ from the file's own PEFT settings", DAMAGED, f"{module} ({alpha}, {said})"
            )
        alpha = said
    kind = kind_of(match.modules[module])
    assert kind is not None
    return building.change(tensors, name.kernel, kind.build(tensors, name.kernel, alpha))
