"""What pictures are drawn from: models, LoRAs and embeddings, known by what their files hold and not by their names.

Nothing is loaded. A file's SHA-256 takes about a second per GB, less than loading it; the hub's cache knows it already.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax.config import SchedulerConfig
from autolora_jax.demo import MODEL
from autolora_jax.pictures import lora_hash
from autolora_jax.request import Canvas
from autolora_jax.settings.pictures import ModelConfig
from autolora_jax.weights.checkpoint import Checkpoint, open_checkpoint
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.families import Family
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.source import PEFT_CONFIG, PEFT_WEIGHTS, find_lora


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint, unloaded."""

    config: ModelConfig  # how it is loaded
    name: str
    sha256: str  # of all that its pictures depend on: weights, configs, tokenizers
    family: Family
    networks: Mapping[str, Any]
    scheduler: SchedulerConfig

    @property
    def canvas(self) -> Canvas:
        """What it says of its pictures."""
        denoiser, vae = self.networks[self.family.denoiser], self.networks["vae"]
        return Canvas.of(denoiser, vae, self.family.guidance_scale, self.scheduler)


class File(NamedTuple):
    """A LoRA or an embedding."""

    source: str
    name: str
    sha256: str
    autov3: str = ""  # of a LoRA: civitai's name for it


class Sources:
    """What files hold, each looked at once. Its methods raise WeightsError or ConfigError for files of no use."""

    def __init__(self) -> None:
        self._models: dict[ModelConfig, Model] = {}
        self._files: dict[tuple[str, bool], File] = {}

    def model(self, config: ModelConfig) -> Model:
        """The model that a config loads."""
        if config not in self._models:
            checkpoint = open_checkpoint(config.source or MODEL, **config.files())
            if config.text_encoder_3 is None:
                checkpoint = checkpoint.without("text_encoder_3")
            self._models[config] = Model(
                config=config,
                name=Path(config.source or MODEL).name,
                sha256=_fingerprint(checkpoint),
                family=checkpoint.family,
                networks=checkpoint.networks,
                scheduler=checkpoint.scheduler,
            )
        return self._models[config]

    def lora(self, source: str) -> File:
        """A LoRA file that can be loaded."""
        if (source, True) not in self._files:
            path = usable_lora(source)
            beside = path.with_name(PEFT_CONFIG)  # says what PEFT's tensors mean
            parts = [path, beside] if path.name == PEFT_WEIGHTS and beside.exists() else [path]
            hashes = [file_sha256(part) for part in parts]
            sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
            self._files[source, True] = File(source, path.stem, sha256, lora_hash(path))
        return self._files[source, True]

    def embedding(self, source: str) -> File:
        """An embedding; its name is the word that a prompt calls it by."""
        if (source, False) not in self._files:
            path = find_lora(source)
            self._files[source, False] = File(source, path.stem, file_sha256(path))
        return self._files[source, False]


def usable_lora(source: str) -> Path:
    """A LoRA's file. Raises WeightsError for one that could not be loaded, before any model is."""
    path = find_lora(source)
    if problems := describe_lora(path).problems:
        raise WeightsError(f"{path}: " + "; ".join(problems))
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits. Raises WeightsError when it can't be read."""
    stored = path.resolve()
    if stored.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", stored.name):
        return stored.name  # the hub's cache names large files by it
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise WeightsError(f"{path} can't be read: {e.strerror}") from None


def digest(value: Any) -> str:
    """SHA-256 of a JSON value's canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _fingerprint(checkpoint: Checkpoint) -> str:
    known: dict[Path, str] = {}

    def of(path: Path) -> str:
        if path not in known:
            known[path] = file_sha256(path)
        return known[path]

    networks = {
        name: {"config": _said(config), "files": [of(path) for path in checkpoint.weights[name].paths()]}
        for name, config in checkpoint.networks.items()
    }
    tokenizers = {
        encoder: {path.name: of(path) for path in sorted(folder.iterdir()) if path.is_file()}
        for encoder, folder in checkpoint.tokenizers.items()
    }
    return digest(
        {
            "networks": networks,
            "tokenizers": tokenizers,
            "scheduler": _said(checkpoint.scheduler),
            "zeros": checkpoint.force_zeros_for_empty_prompt,
        }
    )


def _said(config: Any) -> dict[str, Any]:
    """What a config says beyond its defaults: a field that later versions add changes no fingerprint."""
    values = ((field, getattr(config, field.name)) for field in dataclasses.fields(config))
    return {field.name: value for field, value in values if value != field.default}
