"""Text encoders that a single file leaves out: from a diffusers folder, or from the files published beside it."""

from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from autolora_jax.config import JsonConfig
from autolora_jax.models.networks import Networks
from autolora_jax.weights import diffusers_folder
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.families import Family
from autolora_jax.weights.files import TensorFiles
from autolora_jax.weights.hub import Folder, LocalFolder, open_folder, open_hub
from autolora_jax.weights.layouts import Layout
from autolora_jax.weights.single_file import SingleFile
from autolora_jax.weights.streaming import TensorWeights
from autolora_jax.weights.tables import stages_for

PathOrId = str | PathLike[str]
BESIDE = "text_encoders/"  # folder of the files that hold one encoder each, in repositories of single files


class Encoders(NamedTuple):
    """What was found."""

    networks: Networks
    weights: Mapping[str, TensorWeights]
    remote: bool  # on a hub, to be fetched when they are loaded
    tokenizers: Folder | None = None  # that has tokenizers, too


def encoders_for(
    path: Path, file: SingleFile, source: PathOrId | None, variant: str | None, cache_dir: PathOrId | None
) -> Encoders:
    """The text encoders that the single file at `path` leaves out.

    source: a diffusers folder; a folder with files of one encoder each, named as they are published, or with a
        text_encoders/ that holds them; one such file; a hub id; None: those of the family's repository that are needed.
    Raises WeightsError when one that is needed is not there, or when `source` has none at all or none is left out.
    """
    family = file.layout.family
    if source is None:
        needed = {name: config for name, config in file.absent.items() if name not in family.optional}
        return _published(family, needed, variant, cache_dir)
    if not file.absent:
        raise WeightsError(f"{path} has all text encoders of {family.name}; leave out text_encoders")
    return _find(source, file.layout, file.absent, variant, cache_dir)


def _find(
    source: PathOrId, layout: Layout, lacking: Mapping[str, JsonConfig], variant: str | None, cache_dir: PathOrId | None
) -> Encoders:
    """Those that `source` has of the encoders in `lacking`, whose configs are for files without one."""
    path = Path(source)
    folder: Folder = LocalFolder(path.parent) if path.is_file() else open_folder(source, cache_dir)
    names = frozenset({path.name}) if path.is_file() else folder.names()
    found: dict[str, tuple[JsonConfig, TensorWeights]] = {}
    for component, config in lacking.items():
        choices = [f"{place}{name}" for name in layout.separate[component] for place in ("", BESIDE)]
        if f"{component}/config.json" in names:
            config = diffusers_folder.read_config(folder, layout.family, component)
            weights = diffusers_folder.component_weights(folder, layout.family, component, config, variant)
            found[component] = config, weights
        elif there := [file for file in choices if file in names]:
            alone = partial(diffusers_folder.open_weights, folder, there[0])
            defaults = layout.defaults(component, config)
            found[component] = config, TensorWeights(alone, "", stages_for(config), defaults)
    needed = [component for component in lacking if component not in layout.family.optional or not found]
    if missing := [component for component in needed if component not in found]:
        wanted = ", ".join(f"{c} ({c}/ or {' or '.join(layout.separate[c])})" for c in missing)
        raise WeightsError(f"{source} has no {wanted}; give a folder or hub id with all that the checkpoint leaves out")
    return Encoders(
        {component: config for component, (config, _) in found.items()},
        {component: weights for component, (_, weights) in found.items()},
        remote=not isinstance(folder, LocalFolder),
        tokenizers=folder if any(name.startswith("tokenizer/") for name in names) else None,
    )


def _published(
    family: Family, lacking: Mapping[str, JsonConfig], variant: str | None, cache_dir: PathOrId | None
) -> Encoders:
    """The text encoders of the family's repository. The hub is not asked before they are loaded."""

    def fetch(component: str, config: JsonConfig) -> TensorFiles:
        try:
            folder = open_hub(family.repository, None, cache_dir)
            return diffusers_folder.component_weights(folder, family, component, config, variant).files()
        except WeightsError as e:
            raise WeightsError(
                f"the checkpoint leaves out its {component}; give text_encoders= (--text-encoders-from), a folder or "
                f"hub id that has it. {e}"
            ) from None

    weights = {c: TensorWeights(partial(fetch, c, config), "", stages_for(config)) for c, config in lacking.items()}
    return Encoders(lacking, weights, remote=True)
