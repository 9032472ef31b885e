"""A VAE on its own, in place of a checkpoint's."""

from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from autolora_jax.config import JsonConfig
from autolora_jax.models.networks import shapes_of
from autolora_jax.weights import diffusers_folder, ldm, orbax_folder
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.families import Family
from autolora_jax.weights.files import open_tensors
from autolora_jax.weights.hub import Folder, LocalFolder, is_hub_id, open_hub, split_hub_id
from autolora_jax.weights.orbax_folder import OrbaxWeights
from autolora_jax.weights.rules import flat_shapes
from autolora_jax.weights.streaming import TensorWeights
from autolora_jax.weights.tables import stages_for, torch_name

PathOrId = str | PathLike[str]
VAE = "vae"


class Found(NamedTuple):
    """What was found. remote: on a hub, to be fetched when it is loaded."""

    config: JsonConfig
    weights: TensorWeights | OrbaxWeights
    remote: bool


def open_vae(
    source: PathOrId, family: Family, usual: JsonConfig, variant: str | None, cache_dir: PathOrId | None
) -> Found:
    """The VAE at a place.

    source: a folder with a VAE's config.json and weights, or with a vae/ (a diffusers folder, also a converted one); a
        .safetensors file of a VAE, in LDM's names or diffusers', or of a whole checkpoint; a hub id of either.
    usual: its config where the place has none, as a file.
    variant: of the files of a folder; where there is no such file, the plain one.
    Raises WeightsError or ConfigError. A local one is checked in full, but for its values.
    """
    path = Path(source)
    if path.is_file():
        return _checked(Found(usual, _of_file(path, usual), False))
    if not path.is_dir() and not is_hub_id(str(source)):
        raise WeightsError(f"vae = {source} does not exist; give a folder, a .safetensors file or a hub id")
    repository, file = (str(source), None) if path.is_dir() else split_hub_id(str(source))
    folder: Folder = LocalFolder(path) if path.is_dir() else open_hub(repository, None, cache_dir)
    if file is not None:
        if file not in folder.names():
            raise WeightsError(f"{folder.where} has no {file}")
        return _checked(Found(usual, _of_file(folder.path(file), usual), False))
    return _of_folder(folder, family, variant)


def _of_folder(folder: Folder, family: Family, variant: str | None) -> Found:
    names, part = folder.names(), family.parts[VAE]
    where = VAE if f"{VAE}/config.json" in names else ""
    if not where and "config.json" not in names:
        raise WeightsError(f"{folder.where} has neither a VAE's config.json nor {VAE}/config.json; give a VAE's folder")
    config = diffusers_folder.read_config(folder, family, VAE, where)
    if orbax_folder.MANIFEST in names:
        return _checked(Found(config, orbax_folder.open_weights(folder, {VAE: config})[VAE], False))
    has_variant = any(f"{part.stem}.{variant}." in name for name in names)
    file = diffusers_folder.weights_file(folder, where, part.stem, variant if has_variant else None)
    weights = TensorWeights(partial(diffusers_folder.open_weights, folder, file), "", stages_for(config))
    found = Found(config, weights, not isinstance(folder, LocalFolder))
    return found if found.remote else _checked(found)


def _of_file(path: Path, config: JsonConfig) -> TensorWeights:
    """Names of diffusers pass LDM's rules as they are."""
    canonical = [torch_name(leaf, len(shape)) for leaf, shape in flat_shapes(shapes_of(config)).items()]
    with open_tensors(path) as files:
        whole = any(name.startswith(ldm.PREFIXES[VAE]) for name in files.tensors)
    stages = (*ldm.stages_for(VAE, config, canonical), *stages_for(config))
    return TensorWeights(partial(open_tensors, path), ldm.PREFIXES[VAE] if whole else "", stages)


def _checked(found: Found) -> Found:
    found.weights.check(shapes_of(found.config))
    return found
