"""The layout of transformers: one network, config.json and weights in a folder or a repository of the hub."""

import dataclasses
import hashlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from jaxtyping import DTypeLike

from autolora_jax.config import CLIPConfig, Dinov2Config, JsonConfig, read_json
from autolora_jax.models.networks import shapes_of
from autolora_jax.weights.diffusers_folder import TOKENIZER_FILES, open_weights, weights_file
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.hub import Folder, LocalFolder, is_hub_id, open_hub
from autolora_jax.weights.placing import Placement
from autolora_jax.weights.streaming import TensorWeights
from autolora_jax.weights.tables import stages_for
from autolora_jax.weights.tokenizer_files import check_tokenizer

CONFIG = "config.json"
# What config.json calls a network -> what we read it as.
MODEL_TYPES: Mapping[str, type[JsonConfig]] = {"dinov2": Dinov2Config, "clip": CLIPConfig}
SAMPLES, SAMPLE_BYTES = 64, 2**16  # of a file of weights, for its fingerprint


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """An opened network: its config, and a way to its weights, which are read (and fetched) when asked for."""

    name: str
    config: JsonConfig
    weights: TensorWeights
    folder: Folder

    def load(self, dtype: DTypeLike = "float32", placement: Placement = None) -> dict[str, Any]:
        """The parameters as nested dicts of jax arrays, as Checkpoint.load gives those of a component."""
        return self.weights.load(shapes_of(self.config), dtype, placement)

    def number(self, name: str) -> float:
        """What a tensor of one number holds that the network has no place for. Raises WeightsError without one."""
        with self.weights.files() as files:
            if name not in files.tensors:
                raise WeightsError(f"{self.name} has no {name}; give a model that was saved whole")
            return files.number(name)

    def fingerprint(self) -> str:
        """Of config and weights, wherever they lie: 64 places of each file are looked at, which takes no time."""
        digest = hashlib.sha256(repr(self.config).encode())
        with self.weights.files() as files:
            paths = {info.file for info in files.tensors.values()}
        for path in sorted(paths, key=lambda path: path.name):
            size = path.stat().st_size
            digest.update(str(size).encode())
            with path.open("rb") as file:
                for start in range(0, size, max(size // SAMPLES, SAMPLE_BYTES)):
                    file.seek(start)
                    digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()

    def tokenizer(self) -> Path:
        """The folder with its tokenizer on this machine, for transformers. Raises WeightsError when it has none."""
        wanted = [name for name in TOKENIZER_FILES if name in self.folder.names()]
        if not {"tokenizer.json"} & {*wanted} and not {"vocab.json", "merges.txt"} <= {*wanted}:
            raise WeightsError(f"{self.name} has no tokenizer.json, nor vocab.json with merges.txt; download them")
        paths = [self.folder.path(name) for name in wanted]  # fetches all of them
        check_tokenizer(paths)
        return paths[0].parent


def open_pretrained(
    source: str | PathLike[str], *, revision: str | None = None, cache_dir: str | PathLike[str] | None = None
) -> Pretrained:
    """Opens a network as transformers saves it, of a kind in MODEL_TYPES.

    source: a folder, or a hub id like "facebook/dinov2-giant".
    revision, cache_dir: of hub repositories.
    Raises WeightsError or ConfigError: what was expected, what came, what to do. A folder here is checked in full, but
    for its weights' values; one on the hub when it is loaded.
    """
    folder = _find(str(source), revision, cache_dir)
    if CONFIG not in folder.names():
        raise WeightsError(f"{folder.where} has no {CONFIG}; give a folder that holds {CONFIG} and model.safetensors")
    path = folder.path(CONFIG)
    raw = read_json(path)
    kind = str(raw.get("model_type"))
    if kind not in MODEL_TYPES:
        raise WeightsError(f"{folder.where} holds a network of the type {kind!r}; known are {', '.join(MODEL_TYPES)}")
    config = MODEL_TYPES[kind].from_dict(raw, str(path))
    file = weights_file(folder, "", "model", None)
    weights = TensorWeights(lambda: open_weights(folder, file), "", stages_for(config))
    if isinstance(folder, LocalFolder):
        weights.check(shapes_of(config))
    return Pretrained(folder.where, config, weights, folder)


def _find(source: str, revision: str | None, cache_dir: str | PathLike[str] | None) -> Folder:
    path = Path(source)
    if path.is_dir():
        return LocalFolder(path)
    if path.exists():
        raise WeightsError(f"{source} is a file; give the folder that holds it and {CONFIG}")
    if not is_hub_id(source) or source.endswith(".safetensors"):
        raise WeightsError(f"{source} does not exist; give a folder with {CONFIG}, or a hub id (owner/name)")
    return open_hub(source, revision, cache_dir)
