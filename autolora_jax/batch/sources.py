"""What pictures are drawn from: models, LoRAs, embeddings and pictures, known by what their files hold and not by their
names.

Nothing is loaded. A file's SHA-256 takes about a second per GB, less than loading it; the hub's cache knows it already.

With stand-ins a job can be planned before anything is downloaded: what a published model is made of is known by its
name, and a plan needs no more than that. But keys of pictures come from what files hold, so such a plan can't tell
which of them are drawn already.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax.batch.storage import StorageError, read_anywhere
from autolora_jax.canvas import Canvas
from autolora_jax.config import ConfigError, SchedulerConfig
from autolora_jax.demo import MODEL, builtin
from autolora_jax.files import files_in
from autolora_jax.given import Given, Ground, check_mask, read_file, told
from autolora_jax.image_files import PictureError, read_size
from autolora_jax.models.networks import Networks
from autolora_jax.pictures import lora_hash
from autolora_jax.settings.jobs import Prompt
from autolora_jax.settings.model import ModelConfig
from autolora_jax.text import embeds_file
from autolora_jax.text.embeds import SAID
from autolora_jax.weights.checkpoint import Checkpoint, open_checkpoint, overridden
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.families import SD3, SDXL, Family
from autolora_jax.weights.files import sha256_of
from autolora_jax.weights.hub import cached_copy, is_hub_id, published_sha256, split_hub_id
from autolora_jax.weights.lora.describe import usable_lora
from autolora_jax.weights.lora.distilled import Distilled, distilled_in
from autolora_jax.weights.lora.source import find_lora, settings_beside
from autolora_jax.weights.published import SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM, SDXL_BASE

Hashes = tuple[tuple[Path, str], ...]  # SHA-256 of files


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint, unloaded."""

    config: ModelConfig  # how it is loaded
    name: str
    sha256: str  # of all that its pictures depend on: weights, configs, tokenizers
    family: Family
    networks: Mapping[str, Any]
    scheduler: SchedulerConfig
    zeros: bool = False  # see Checkpoint.force_zeros_for_empty_prompt
    read: Hashes = ()  # of the files that it is read from

    @property
    def canvas(self) -> Canvas:
        """What it says of its pictures."""
        denoiser, vae = self.networks[self.family.denoiser], self.networks["vae"]
        return Canvas.of(denoiser, vae, self.family.guidance_scale, self.scheduler)

    @property
    def configs(self) -> dict[str, Any]:
        """What its files say beside weights and tokenizers."""
        return {**self.networks, "scheduler": self.scheduler, "force_zeros_for_empty_prompt": self.zeros}


def found_at(source: str) -> str:
    """A source as it is found from any folder of this machine."""
    return os.path.abspath(source) if os.path.exists(source) else source


class File(NamedTuple):
    """A LoRA or an embedding."""

    source: str
    name: str
    sha256: str
    autov3: str = ""  # of a LoRA: civitai's name for it
    read: Hashes = ()  # of the files that it is read from
    distilled: Distilled | None = None  # what a LoRA says that stands for a guidance


class PictureFile(NamedTuple):
    """A picture that is changed, or a mask. size: (width, height), upright."""

    source: str
    name: str
    sha256: str
    size: tuple[int, int]

    def opened(self) -> Given:
        """Its pixels. Raises ConfigError when it can't be read, or is not what it was when this was made."""
        found = read_file(_content(self.source, "picture"), self.source, "picture")
        if found.sha256 != self.sha256:
            raise ConfigError(f"picture {self.source} is not what it was when the job was planned; run the job again")
        return found


class Base(NamedTuple):
    """What a picture is made from, instead of noise alone. mask: None where all of it is drawn anew."""

    image: PictureFile
    mask: PictureFile | None

    @property
    def ground(self) -> Ground:
        """What a recipe needs to know of it."""
        return Ground(self.image.size, self.mask is not None)

    @property
    def columns(self) -> dict[str, str | None]:
        """What a manifest, and a picture, says of it."""
        return told(self.image, self.mask)


class EmbedsFile(NamedTuple):
    """What is told in place of one of a job's prompts. number: of the prompt in its file.

    sha256: of the file. told: name, digest of each side's arrays. form: see text.embeds_file.form.
    """

    source: str
    number: int
    sha256: str
    told: tuple[tuple[str, str], ...]
    form: embeds_file.Form

    def opened(self) -> embeds_file.Arguments:
        """As a call takes it. Raises ConfigError when it can't be read, or is not what it was when this was made."""
        return embeds_file.one_of(_embeds(self.source, self.sha256), self.number)

    @property
    def columns(self) -> dict[str, str]:
        """What a manifest, and a picture, says of it."""
        return {name: digest[:SAID] for name, digest in self.told}

    @property
    def negative(self) -> bool:
        """Whether the negative prompt is among it."""
        return "negative_prompt_embeds" in dict(self.told)


class Sources:
    """What files hold, each looked at once. Its methods raise WeightsError or ConfigError for files of no use."""

    def __init__(self) -> None:
        self._models: dict[ModelConfig, Model] = {}
        self._files: dict[tuple[str, bool], File] = {}
        self._pictures: dict[str, PictureFile] = {}
        self._embeds: dict[str, list[EmbedsFile]] = {}

    def model(self, config: ModelConfig) -> Model:
        """The model that a config loads."""
        if config not in self._models:
            checkpoint = open_checkpoint(config.source or MODEL, **config.files())
            if config.text_encoder_3 is None:
                checkpoint = checkpoint.without("text_encoder_3")
            sha256, read = _fingerprint(checkpoint)
            self._models[config] = Model(
                config=config,
                name=Path(config.source or MODEL).name,
                sha256=sha256,
                family=checkpoint.family,
                networks=checkpoint.networks,
                scheduler=checkpoint.scheduler,
                zeros=checkpoint.force_zeros_for_empty_prompt,
                read=read,
            )
        return self._models[config]

    def lora(self, source: str) -> File:
        """A LoRA file that can be loaded."""
        if (source, True) not in self._files:
            path = usable_lora(source)
            read = {part: file_sha256(part) for part in (path, *settings_beside(path))}
            hashes = "".join(read.values())
            sha256 = hashes if len(read) == 1 else hashlib.sha256(hashes.encode()).hexdigest()
            self._files[source, True] = File(
                source, path.stem, sha256, lora_hash(path), (*read.items(),), distilled_in(path)
            )
        return self._files[source, True]

    def embedding(self, source: str) -> File:
        """An embedding; its name is the word that a prompt calls it by."""
        if (source, False) not in self._files:
            path = find_lora(source)
            sha256 = file_sha256(path)
            self._files[source, False] = File(source, path.stem, sha256, read=((path, sha256),))
        return self._files[source, False]

    def base(self, prompt: Prompt) -> Base | None:
        """What a prompt's pictures are made from. Raises ConfigError."""
        if prompt.image is None:
            if prompt.mask is not None:
                raise ConfigError(f"the prompt {prompt.text!r} has a mask {prompt.mask}, but no image; give that, too")
            return None
        image = self._picture(prompt.image, "image")
        mask = None if prompt.mask is None else self._picture(prompt.mask, "mask")
        if mask is not None:
            check_mask(image.size, mask.size, f"mask {mask.source} of image {image.source}")
        return Base(image, mask)

    def embeds(self, prompt: Prompt) -> list[EmbedsFile]:
        """What is told in place of a prompt: each of its file's. Raises ConfigError."""
        source = os.fspath(prompt.embeds or "")
        if source not in self._embeds:
            content = _content(source, "embeds")
            given, sha256 = embeds_file.parse_embeds(content, source), hashlib.sha256(content).hexdigest()
            each = [embeds_file.one_of(given, i) for i in range(embeds_file.prompts_of(given))]
            self._embeds[source] = [
                EmbedsFile(source, i, sha256, tuple(embeds_file.digests(one).items()), embeds_file.form(one))
                for i, one in enumerate(each)
            ]
        return self._embeds[source]

    def _picture(self, source: str, what: str) -> PictureFile:
        """A picture that can be read, at a path or URL: its head is looked at, and whether it is whole."""
        source = os.fspath(source)
        if source not in self._pictures:
            content = _content(source, "picture")
            try:
                height, width = read_size(BytesIO(content))
            except PictureError as e:
                raise ConfigError(f"{what} {source} {e}") from None
            sha256 = hashlib.sha256(content).hexdigest()
            self._pictures[source] = PictureFile(source, source.rpartition("/")[2], sha256, (width, height))
        return self._pictures[source]


@functools.lru_cache(maxsize=2)  # rows of one file stand together
def _embeds(source: str, sha256: str) -> embeds_file.Arguments:
    content = _content(source, "embeds")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ConfigError(f"embeds {source} are not what they were when the job was planned; run the job again")
    return embeds_file.parse_embeds(content, source)


def _content(source: str, what: str) -> bytes:
    try:
        return read_anywhere(source)
    except StorageError:
        raise
    except OSError as e:
        raise ConfigError(f"{what} {source} can't be read: {e.strerror or e}") from None


def check_read(
    model: Model, others: Iterable[File], configs: Mapping[str, Any], read: Iterable[tuple[Path, str]]
) -> None:
    """Raises WeightsError that names what was loaded and is not what a model, LoRAs and embeddings were planned as.

    configs: as Model.configs. read: (file, SHA-256) of all that was read for them.
    """
    planned = dict(itertools.chain(model.read, *(file.read for file in others)))
    known = {*planned.values()}
    # A file of another name, as a repository's next revision has it, may hold the same.
    changed = [str(path) for path, sha256 in read if planned.get(path, sha256) != sha256 or sha256 not in known]
    changed += [f"{model.name} ({name})" for name, config in configs.items() if config != model.configs.get(name)]
    if changed:
        raise WeightsError(
            f"{shorten(changed)}: not what it was when the job was planned, so nothing is drawn with it. The same "
            "command plans the job anew, with what is there then"
        )


class Published(NamedTuple):
    """What a checkpoint of the hub is, without looking."""

    family: Family
    networks: Networks
    scheduler: SchedulerConfig


_FLOW = SchedulerConfig(solver="flow_euler", prediction_type="flow_prediction")
PUBLISHED: Mapping[str, Published] = {
    SDXL.repository: Published(SDXL, SDXL_BASE, SchedulerConfig()),
    SD3.repository: Published(SD3, SD3_MEDIUM, _FLOW),
    "stabilityai/stable-diffusion-3.5-medium": Published(SD3, SD35_MEDIUM, _FLOW),
    "stabilityai/stable-diffusion-3.5-large": Published(SD3, SD35_LARGE, _FLOW),
}


class Standins(Sources):
    """Sources that never ask the hub for a published model or a LoRA. unseen: the stand-ins, and why each is one."""

    def __init__(self) -> None:
        super().__init__()
        self.unseen: dict[str, str] = {}

    def model(self, config: ModelConfig) -> Model:
        """The model of a config: from this machine or the hub's cache; else a published one by its name."""
        source = config.source or ""
        if source not in PUBLISHED or Path(source).exists():
            return super().model(config)
        if copy := cached_copy(source):
            try:
                found = super().model(dataclasses.replace(config, source=str(copy)))
            except WeightsError:
                pass  # not all of it is there
            else:
                return dataclasses.replace(found, config=config, name=Path(source).name)
        self.unseen[source] = "not on this machine: planned as the published model"
        family, networks, scheduler = PUBLISHED[source]
        scheduler = overridden(scheduler, config.prediction_type, config.rescale_betas_zero_snr)
        if config.text_encoder_3 is None:
            networks = {name: network for name, network in networks.items() if name != "text_encoder_3"}
        return Model(config, Path(source).name, digest(source), family, networks, scheduler)

    def lora(self, source: str) -> File:
        """A LoRA of this machine or the hub's cache; else one that is known by its name alone."""
        return self._there(source) or self._unseen(source) if _absent(source) else super().lora(source)

    def embedding(self, source: str) -> File:
        """An embedding, as a LoRA."""
        return self._unseen(source) if _absent(source) else super().embedding(source)

    def _there(self, source: str) -> File | None:
        """A LoRA from the hub's cache."""
        repository, name = split_hub_id(source) if is_hub_id(source) else ("", None)
        copy = cached_copy(repository) if repository else None
        try:
            return super().lora(str(copy / name if name else copy))._replace(source=source) if copy else None
        except WeightsError:
            return None

    def _unseen(self, source: str) -> File:
        self.unseen[source] = "not on this machine"
        return File(source, Path(source).name.removesuffix(".safetensors"), digest(source), digest(source)[:12])


def _absent(source: str) -> bool:
    return not Path(source).exists() and builtin(source) is None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits. Raises WeightsError when it can't be read."""
    return published_sha256(path) or sha256_of(path)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value's canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _fingerprint(checkpoint: Checkpoint) -> tuple[str, Hashes]:
    """(SHA-256 of all that it is, those of its files)."""
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
        encoder: {path.name: of(path) for path in files_in(folder)} for encoder, folder in checkpoint.tokenizers.items()
    }
    made_of = {
        "networks": networks,
        "tokenizers": tokenizers,
        "scheduler": _said(checkpoint.scheduler),
        "zeros": checkpoint.force_zeros_for_empty_prompt,
    }
    return digest(made_of), (*known.items(),)


def _said(config: Any) -> dict[str, Any]:
    """What a config says beyond its defaults: a field that later versions add changes no fingerprint."""
    values = ((field, getattr(config, field.name)) for field in dataclasses.fields(config))
    return {field.name: value for field, value in values if value != field.default}
