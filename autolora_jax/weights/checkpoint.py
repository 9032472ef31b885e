"""Checkpoints: what `from_pretrained` stands on. Four kinds of sources, one way to ask for configs and weights."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any

from jaxtyping import DTypeLike

from autolora_jax.config import ConfigError, SchedulerConfig
from autolora_jax.demo import builtin
from autolora_jax.files import files_in
from autolora_jax.models.networks import Networks, shapes_of
from autolora_jax.settings.fields import choose
from autolora_jax.settings.model import PREDICTIONS
from autolora_jax.weights import diffusers_folder, orbax_folder, reads
from autolora_jax.weights.encoders import Encoders, encoders_for
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.families import Family, check_together
from autolora_jax.weights.hub import Folder, LocalFolder, is_hub_id, open_folder, open_hub, split_hub_id
from autolora_jax.weights.orbax_folder import OrbaxWeights
from autolora_jax.weights.placing import Kept, Placement, as_it_is
from autolora_jax.weights.single_file import SingleFile, read_single_file
from autolora_jax.weights.streaming import Leaves, TensorWeights
from autolora_jax.weights.vae import open_vae

PathOrId = str | PathLike[str]
Weights = TensorWeights | OrbaxWeights  # of one component, with the same methods


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its configs, and ways to its weights and tokenizers, which are read when asked for."""

    name: str
    family: Family
    networks: Networks
    scheduler: SchedulerConfig
    force_zeros_for_empty_prompt: bool
    weights: Mapping[str, Weights]
    find_tokenizers: Callable[[tuple[str, ...]], dict[str, Path]]
    remote: frozenset[str] = frozenset()  # components from elsewhere that a hub has, fetched if loaded

    @property
    def encoders(self) -> tuple[str, ...]:
        """The text encoders that it has."""
        return tuple(name for name in self.family.encoders if name in self.networks)

    @property
    def tokenizers(self) -> dict[str, Path]:
        """Text encoder -> the folder of its tokenizer, for transformers; fetched if need be. Raises WeightsError."""
        names = {encoder: encoder.replace("text_encoder", "tokenizer") for encoder in self.encoders}
        found = self.find_tokenizers(tuple(names.values()))
        reads.named(lambda: [path for folder in found.values() for path in files_in(folder)])
        return {encoder: found[name] for encoder, name in names.items()}

    def without(self, component: str) -> "Checkpoint":
        """The same without an optional component. Raises WeightsError for one that is needed."""
        if component not in self.family.optional:
            optional = ", ".join(name for name in self.family.parts if name in self.family.optional) or "none is"
            raise WeightsError(f"{self.family.name} can't be run without its {component}; optional: {optional}")
        networks = {name: config for name, config in self.networks.items() if name != component}
        return dataclasses.replace(self, networks=networks)

    def load(
        self, component: str, dtype: DTypeLike = "float32", placement: Placement = None, kept: Kept = as_it_is
    ) -> dict[str, Any]:
        """A component's parameters as nested dicts of jax arrays of this dtype, placed leaf by leaf.

        component: one of `networks`.
        placement: a sharding for all leaves, or a function of (path "a/b/kernel", shape) that gives one per leaf, or
            None for the default device.
        kept: what is made of each leaf (path, array on its devices) before the next ones come.
        Raises WeightsError listing all names and shapes that do not fit, or naming a tensor with bad values.
        """
        return self.weights[component].load(shapes_of(self.networks[component]), dtype, placement, kept)

    def leaves(self, component: str) -> AbstractContextManager[Leaves]:
        """Ways to a component's leaves, one by one: `with checkpoint.leaves("unet") as leaves: leaves.read(path)`."""
        return self.weights[component].leaves(shapes_of(self.networks[component]))

    def check(self) -> None:
        """Raises the WeightsError that loading would raise, but for bad values, without reading or fetching weights."""
        for component, config in self.networks.items():
            if component not in self.remote:
                self.weights[component].check(shapes_of(config))


def open_checkpoint(
    source: PathOrId,
    *,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: PathOrId | None = None,
    tokenizer: PathOrId | None = None,
    text_encoders: PathOrId | None = None,
    networks: Networks | None = None,
    vae: PathOrId | None = None,
    prediction_type: str | None = None,
    rescale_betas_zero_snr: bool | None = None,
) -> Checkpoint:
    """A checkpoint of one of families.FAMILIES; no weights are read yet.

    source: a diffusers folder, a hub id ("owner/name", or "owner/name/file.safetensors" for a single file in it), a
        single .safetensors, a converted Orbax folder, or "builtin".
    variant: "fp16" takes the `*.fp16.safetensors` of a diffusers folder. Default: the plain files, or fp16 where only
        those exist.
    revision, cache_dir: of hub repositories.
    tokenizer: folder or hub id with tokenizer/, tokenizer_2/, …, instead of the checkpoint's. A single file holds none:
        its default are those beside `text_encoders`, or those of the family's repository on the hub.
    text_encoders: where the text encoders are that a single file leaves out: a diffusers folder, a folder with (or with
        a text_encoders/ with) clip_l.safetensors, t5xxl_fp16.safetensors, …, one such file, or a hub id. Default: the
        family's repository on the hub; an optional one (SD3's T5) then stays out.
    networks: the configs of a single file that is as large as no published model; folders have their own.
    vae: another VAE, see vae.open_vae.
    prediction_type, rescale_betas_zero_snr: of the noise schedule, whatever the checkpoint says.
    Raises WeightsError or ConfigError: what was expected, what came, what to do.
    """
    path = builtin(str(source)) or Path(source)
    place = path if path.is_file() else _find_folder(path, str(source), revision, cache_dir)
    if isinstance(place, Path):
        file = read_single_file(place, networks)
        encoders = encoders_for(place, file, text_encoders, variant, cache_dir)
        checkpoint = _single(place, file, encoders, cache_dir)
    elif text_encoders is not None:
        raise WeightsError(f"{place.where} is a folder, which has its own text encoders; leave out text_encoders")
    else:
        checkpoint = _folder(place, variant)
    if tokenizer is not None:
        given = _tokenizers_at(checkpoint.family, tokenizer, cache_dir)
        checkpoint = dataclasses.replace(checkpoint, find_tokenizers=given)
    if vae is not None:
        checkpoint = _with_vae(checkpoint, vae, variant, cache_dir)
    scheduler = overridden(checkpoint.scheduler, prediction_type, rescale_betas_zero_snr)
    checkpoint = dataclasses.replace(checkpoint, scheduler=scheduler)
    check_together(checkpoint.networks, checkpoint.name)
    if path.exists():
        checkpoint.check()  # all that is wrong with a local file shows before minutes of loading
    return checkpoint


def overridden(
    scheduler: SchedulerConfig, prediction_type: str | None, rescale_betas_zero_snr: bool | None
) -> SchedulerConfig:
    """The same noise schedule with what is not None. Raises ConfigError for a flow, and for unknown predictions."""
    both = {"prediction_type": prediction_type, "rescale_betas_zero_snr": rescale_betas_zero_snr}
    given: dict[str, Any] = {name: value for name, value in both.items() if value is not None}
    if scheduler.flow and given:
        raise ConfigError(f"{' and '.join(given)} can't be given for a model that predicts a flow; leave it out")
    if prediction_type is not None:
        choose(PREDICTIONS, prediction_type, "prediction_type")
    return dataclasses.replace(scheduler, **given)


def _with_vae(checkpoint: Checkpoint, source: PathOrId, variant: str | None, cache_dir: PathOrId | None) -> Checkpoint:
    config, weights, remote = open_vae(source, checkpoint.family, checkpoint.networks["vae"], variant, cache_dir)
    return dataclasses.replace(
        checkpoint,
        networks={**checkpoint.networks, "vae": config},
        weights={**checkpoint.weights, "vae": weights},
        remote=checkpoint.remote | ({"vae"} if remote else set()),
    )


def _find_folder(path: Path, source: str, revision: str | None, cache_dir: PathOrId | None) -> Folder | Path:
    """The folder, or the single file that a hub id names."""
    if path.is_dir():
        return LocalFolder(path)
    if not is_hub_id(source):
        raise WeightsError(f"{source} does not exist; give a folder, a .safetensors file or a hub id (owner/name)")
    repository, file = split_hub_id(source)
    folder = open_hub(repository, revision, cache_dir)
    if file and file not in folder.names():
        there = sorted(name for name in folder.names() if name.endswith(".safetensors"))
        raise WeightsError(f"{folder.where} has no {file}; it has {shorten(there) or 'no .safetensors file'}")
    return folder.path(file) if file else folder


def _single(path: Path, file: SingleFile, encoders: Encoders, cache_dir: PathOrId | None) -> Checkpoint:
    family, beside = file.layout.family, encoders.tokenizers
    networks = {**file.networks, **encoders.networks}
    return Checkpoint(
        name=str(path),
        family=family,
        networks={name: networks[name] for name in family.parts if name in networks},
        scheduler=file.scheduler,
        force_zeros_for_empty_prompt=family.zeros_for_no_prompt,
        weights={**file.weights, **encoders.weights},
        find_tokenizers=(lambda names: _tokenizers_in(beside, family, names))
        if beside
        else _tokenizers_at(family, family.repository, cache_dir),
        remote=frozenset(encoders.networks) if encoders.remote else frozenset(),
    )


def _folder(folder: Folder, variant: str | None) -> Checkpoint:
    family, index = diffusers_folder.read_index(folder)
    networks = diffusers_folder.read_networks(folder, family)
    weights: Mapping[str, Weights]
    if orbax_folder.MANIFEST in folder.names():
        weights = orbax_folder.open_weights(folder, networks)
    else:
        weights = {
            name: diffusers_folder.component_weights(folder, family, name, config, variant)
            for name, config in networks.items()
        }
    return Checkpoint(
        name=folder.where,
        family=family,
        networks=networks,
        scheduler=diffusers_folder.read_scheduler(folder),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", family.zeros_for_no_prompt)),
        weights=weights,
        find_tokenizers=lambda names: _tokenizers_in(folder, family, names),
    )


def _tokenizers_in(folder: Folder, family: Family, names: tuple[str, ...]) -> dict[str, Path]:
    return {name: diffusers_folder.tokenizer_folder(folder, family, name) for name in names}


def _tokenizers_at(
    family: Family, source: PathOrId, cache_dir: PathOrId | None
) -> Callable[[tuple[str, ...]], dict[str, Path]]:
    def find(names: tuple[str, ...]) -> dict[str, Path]:
        try:
            return _tokenizers_in(open_folder(source, cache_dir), family, names)
        except WeightsError as e:
            if source == family.repository:
                advice = f"give tokenizer=a folder with {', '.join(names)}"
                raise WeightsError(f"a single file holds no tokenizers; {advice}. {e}") from None
            raise

    return find
