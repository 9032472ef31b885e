"""Checkpoints: what `from_pretrained` stands on. Four kinds of sources, one way to ask for configs and weights."""

import dataclasses
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import DTypeLike

from autolora_jax.config import CLIPTextConfig, JsonConfig, SchedulerConfig, UNetConfig, VAEConfig
from autolora_jax.demo import builtin
from autolora_jax.weights import diffusers_folder, orbax_folder
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.folders import Folder, LocalFolder
from autolora_jax.weights.hub import is_hub_id, open_hub, split_hub_id
from autolora_jax.weights.networks import COMPONENTS, SDXL, Networks, check_together, shapes_of
from autolora_jax.weights.single_file import read_single_file
from autolora_jax.weights.streaming import Placement

SDXL_REPOSITORY = "stabilityai/stable-diffusion-xl-base-1.0"  # whose tokenizers a single file without any is used with

PathOrId = str | PathLike[str]


@runtime_checkable
class Weights(Protocol):
    """One component's stored parameters. targets: the tree of shapes that is expected."""

    def check(self, targets: Mapping[str, Any]) -> None:
        """Raises the WeightsError that `load` would raise, but for the values, without reading weights."""

    def load(self, targets: Mapping[str, Any], dtype: DTypeLike, placement: Placement) -> dict[str, Any]:
        """The parameter tree, on its devices."""

    def sources(self) -> dict[str, int]:
        """Name and size in bytes of the files it is read from."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its configs, and ways to its weights and tokenizers, which are read when asked for."""

    name: str
    networks: Networks
    scheduler: SchedulerConfig
    force_zeros_for_empty_prompt: bool
    weights: Mapping[str, Weights]
    find_tokenizers: Callable[[], tuple[Path, Path]]

    @property
    def tokenizers(self) -> tuple[Path, Path]:
        """The folders of both tokenizers, for transformers' CLIPTokenizer; fetched if need be. Raises WeightsError."""
        return self.find_tokenizers()

    @property
    def unet(self) -> UNetConfig:
        return self.networks.unet

    @property
    def vae(self) -> VAEConfig:
        return self.networks.vae

    @property
    def text_encoder(self) -> CLIPTextConfig:
        return self.networks.text_encoder

    @property
    def text_encoder_2(self) -> CLIPTextConfig:
        return self.networks.text_encoder_2

    def config(self, component: str) -> JsonConfig:
        """The config of one of COMPONENTS."""
        config: JsonConfig = getattr(self.networks, component)
        return config

    def load(self, component: str, dtype: DTypeLike = "float32", placement: Placement = None) -> dict[str, Any]:
        """A component's parameters as nested dicts of jax arrays of this dtype, placed leaf by leaf.

        component: one of COMPONENTS.
        placement: a sharding for all leaves, or a function of (path "a/b/kernel", shape) that gives one per leaf, or
            None for the default device.
        Raises WeightsError listing all names and shapes that do not fit, or naming a tensor with bad values.
        """
        return self.weights[component].load(shapes_of(self.config(component)), dtype, placement)

    def check(self) -> None:
        """Raises the WeightsError that loading would raise, but for bad values, without reading weights."""
        for component in COMPONENTS:
            self.weights[component].check(shapes_of(self.config(component)))


def open_checkpoint(
    source: PathOrId,
    *,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: PathOrId | None = None,
    tokenizer: PathOrId | None = None,
    networks: Networks = SDXL,
) -> Checkpoint:
    """An SDXL checkpoint; no weights are read yet.

    source: a diffusers folder, a hub id ("owner/name", or "owner/name/file.safetensors" for a single file in it), a
        single LDM/sgm-layout .safetensors, a converted Orbax folder, or "builtin".
    variant: "fp16" takes the `*.fp16.safetensors` of a diffusers folder. Default: the plain files, or fp16 where only
        those exist.
    revision, cache_dir: of hub repositories.
    tokenizer: folder or hub id with tokenizer/ and tokenizer_2/, instead of the checkpoint's. A single file holds none:
        its default is SDXL base's, from the hub.
    networks: the configs of a single file that is not as large as SDXL base; folders have their own.
    Raises WeightsError or ConfigError: what was expected, what came, what to do.
    """
    path = builtin(str(source)) or Path(source)
    if path.is_file():
        checkpoint = _single(path, networks, cache_dir)
    elif path.is_dir():
        checkpoint = _folder(LocalFolder(path), variant)
    elif not is_hub_id(str(source)):
        raise WeightsError(f"{source} does not exist; give a folder, a .safetensors file or a hub id (owner/name)")
    else:
        repository, file = split_hub_id(str(source))
        folder = open_hub(repository, revision, cache_dir)
        if file and file not in folder.names():
            there = sorted(name for name in folder.names() if name.endswith(".safetensors"))
            raise WeightsError(f"{folder.where} has no {file}; it has {shorten(there) or 'no .safetensors file'}")
        checkpoint = _single(folder.path(file), networks, cache_dir) if file else _folder(folder, variant)
    if tokenizer is not None:
        checkpoint = dataclasses.replace(checkpoint, find_tokenizers=lambda: _tokenizers(tokenizer, cache_dir))
    check_together(checkpoint.networks, checkpoint.name)
    if path.exists():
        checkpoint.check()  # all that is wrong with a local file shows before minutes of loading
    return checkpoint


def _single(path: Path, networks: Networks, cache_dir: PathOrId | None) -> Checkpoint:
    file = read_single_file(path, networks)
    return Checkpoint(
        name=str(path),
        networks=networks,
        scheduler=file.scheduler,
        force_zeros_for_empty_prompt=True,
        weights=file.weights,
        find_tokenizers=lambda: _tokenizers(SDXL_REPOSITORY, cache_dir),
    )


def _folder(folder: Folder, variant: str | None) -> Checkpoint:
    index = diffusers_folder.read_index(folder)
    networks = diffusers_folder.read_networks(folder)
    weights: Mapping[str, Weights]
    if orbax_folder.MANIFEST in folder.names():
        weights = orbax_folder.open_weights(folder)
    else:
        configs = networks._asdict()
        weights = {c: diffusers_folder.component_weights(folder, c, configs[c], variant) for c in COMPONENTS}
    return Checkpoint(
        name=folder.where,
        networks=networks,
        scheduler=diffusers_folder.read_scheduler(folder),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        weights=weights,
        find_tokenizers=lambda: _tokenizers_in(folder),
    )


def _tokenizers_in(folder: Folder) -> tuple[Path, Path]:
    first, second = (diffusers_folder.tokenizer_folder(folder, name) for name in ("tokenizer", "tokenizer_2"))
    return first, second


def _tokenizers(source: PathOrId, cache_dir: PathOrId | None) -> tuple[Path, Path]:
    path = Path(source)
    try:
        return _tokenizers_in(LocalFolder(path) if path.is_dir() else open_hub(str(source), None, cache_dir))
    except WeightsError as e:
        if source == SDXL_REPOSITORY:
            raise WeightsError(f"a single file holds no tokenizers; give tokenizer=a folder with both. {e}") from None
        raise
