"""LoRA files -> what they change. Every tensor is used exactly once, or one error says all that is wrong."""

import dataclasses
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import FLOATS, TensorFiles, open_tensors
from autolora_jax.weights.lora.change import LowRank
from autolora_jax.weights.lora.dialects import kind_of
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
    layers: Mapping[Layer, LowRank]
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
        layers = {layer: _read_layer(file, match, known[module], settings) for layer, module in match.layers.items()}
        raise_problems(str(path), match)
    return LoraFile(path, match.dialect, {k: v for k, v in layers.items() if v}, file.metadata)


def _read_layer(file: TensorFiles, match: Match, name: Name, settings: Mapping[str, PeftSettings]) -> LowRank | None:
    """A layer's change; None when a tensor can't be used, which match.problems then says."""
    module = match.layers[name.layer]
    try:
        tensors = {part: file.read(key) for part, key in match.modules[module].items()}
    except WeightsError as e:
        match.problems.add("tensors that can't be used", "get another version of the file", str(e))
        return None
    alpha = float(tensors["alpha"].reshape(())) if "alpha" in tensors else None
    if name.layer.component in settings:
        said = settings[name.layer.component].alpha(name.module)
        if alpha is not None and not math.isclose(alpha, said, rel_tol=1e-3):  # alpha may be stored in half precision
            match.problems.add(
                "alphas that differ from the file's own PEFT settings", DAMAGED, f"{module} ({alpha}, {said})"
            )
        alpha = said
    kind = kind_of(match.modules[module])
    assert kind is not None
    return kind.build(tensors, name.layer.kernel, alpha)
