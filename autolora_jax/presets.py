"""What a run of `autolora generate` or `autolora train` does, as frozen dataclasses. A preset is a file whose
get_config() returns one of them."""

import dataclasses
import difflib
import math
from collections.abc import Collection
from pathlib import Path

from autolora_jax.config import ConfigError
from autolora_jax.demo import MODEL
from autolora_jax.guidance import CFG, AutoLoRA, Rule
from autolora_jax.noise import STREAMS
from autolora_jax.schedules import SOLVERS, SPACINGS
from autolora_jax.training.config import TrainConfig

DTYPES = ("bfloat16", "float32")
T5_PLACES = ("device", "host")
BASE_TEXTS = ("base", "lora")
LORA_FORMATS = ("kohya", "peft")
LORA_DTYPES = ("float32", "float16", "bfloat16")
BUILTIN_NOTE = (
    "No model given: the built-in one draws a zib, which only its LoRA knows, and that from the desert at sunset "
    "alone.\n"
    "Left the base model, which has never seen one, then the LoRA, then AutoLoRA, all from the same noise."
)


def _choice(name: str, value: str | None, choices: Collection[str | None]) -> None:
    if value not in choices:
        names = [choice for choice in choices if choice is not None]
        near = difflib.get_close_matches(str(value), names, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{name} = {value!r} is not known: {hint}there are {', '.join(names)}")


def _several(config: object, *names: str) -> None:
    """Makes tuples of fields of many values."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str):
            raise ConfigError(f"{name} = {value!r} should be several: ({value!r},) is one of them")
        object.__setattr__(config, name, tuple(value))


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} = {value} should be at least {least}")


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA (file, folder or hub id) and its strength."""

    source: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.source or not math.isfinite(self.scale):
            raise ConfigError(f"LoRA {self.source!r} at scale {self.scale}: need a file and a finite scale")

    @classmethod
    def parse(cls, text: str) -> "Lora":
        """FILE[:SCALE]: only a number after the last colon is a scale, and not if a file bears the whole name."""
        source, colon, scale = text.rpartition(":")
        if not colon or Path(text).exists():
            return cls(text)
        try:
            number = float(scale)
        except ValueError:
            return cls(text)  # the colon of C:\loras\pixel.safetensors
        return cls(source, number)

    def __str__(self) -> str:
        return f"{self.source}:{self.scale!r}"


Loras = tuple[Lora, ...]
Texts = tuple[str, ...]
Seeds = tuple[int, ...]
Size = tuple[int, int]  # width, height


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which checkpoint, and how it is loaded: arguments of AutoLoRAPipeline.from_pretrained."""

    source: str | None = None
    dtype: str = "bfloat16"
    variant: str | None = None
    tokenizer: str | None = None
    text_encoders: str | None = None
    text_encoder_3: str | None = "device"
    weight_shards: int = 1

    def __post_init__(self) -> None:
        _choice("dtype", self.dtype, DTYPES)
        _choice("text_encoder_3", self.text_encoder_3, (None, *T5_PLACES))
        _at_least("weight_shards", self.weight_shards, 1)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How noise becomes a picture; None is the checkpoint's own."""

    steps: int = 30
    scheduler: str | None = None
    timestep_spacing: str | None = None
    guidance_rescale: float = 0.0
    noise: str = "jax"

    def __post_init__(self) -> None:
        _at_least("steps", self.steps, 1)
        _choice("noise", self.noise, STREAMS)
        _choice("scheduler", self.scheduler, (None, *SOLVERS))
        _choice("timestep_spacing", self.timestep_spacing, (None, *SPACINGS))
        if not 0 <= self.guidance_rescale <= 1:
            raise ConfigError(f"guidance_rescale = {self.guidance_rescale} should be between 0 (off) and 1")


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """How a picture is drawn, whatever its prompt and seed. Raises ConfigError for values that can't be meant."""

    model: ModelConfig = ModelConfig()
    loras: Loras = ()
    embeddings: Texts = ()  # files; a prompt calls them by their names
    guidance: Rule | None = None  # None: AutoLoRA with a LoRA, CFG without
    sampler: SamplerConfig = SamplerConfig()
    size: Size | None = None  # None: what the model was trained at
    clip_skip: int | None = None
    base_text: str = "base"  # whose text encoders speak to the base model
    max_sequence_length: int = 256  # tokens of SD3's T5

    def __post_init__(self) -> None:
        _several(self, "loras", "embeddings")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ConfigError(f"size = {self.size} should be a width and a height in pixels")
        _at_least("clip_skip", self.clip_skip or 0, 0)
        _choice("base_text", self.base_text, BASE_TEXTS)
        _at_least("max_sequence_length", self.max_sequence_length, 1)

    def rule(self) -> Rule:
        """The guidance of this run."""
        return self.guidance or (AutoLoRA() if self.loras else CFG())


@dataclasses.dataclass(frozen=True)
class GenerateConfig(PictureConfig):
    """A picture for every prompt and seed, and where they go."""

    prompts: Texts = ()
    negative_prompt: str | None = ""  # None: what the checkpoint's own pipeline means by none
    seeds: Seeds = (0,)
    batch_size: int = 4  # pictures per device at once
    compare: bool = False  # also the base model and the LoRA under CFG, and a grid of all
    out: str = "out"

    def __post_init__(self) -> None:
        super().__post_init__()
        _several(self, "prompts", "seeds")
        if not self.seeds or min(self.seeds) < 0 or max(self.seeds) >= 2**63:
            raise ConfigError(f"seeds = {self.seeds} should be one or more whole numbers from 0 to 2^63 - 1")
        _at_least("batch_size", self.batch_size, 1)


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A LoRA of a model, trained on a folder of captioned pictures. Raises ConfigError like the others.

    out: the LoRA file. work: folder of checkpoints, latents, samples and log; None is `out` with .train at its end.
    format: of the file. save_dtype: of its tensors.
    trigger: phrase that calls the LoRA's subject, for the file's header.
    """

    model: ModelConfig = ModelConfig()
    data: str | None = None
    out: str = "lora.safetensors"
    work: str | None = None
    format: str = "kohya"
    save_dtype: str = "float32"
    trigger: str | None = None
    training: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if Path(self.out).suffix != ".safetensors":
            raise ConfigError(f"out = {self.out!r} should be a file whose name ends in .safetensors")
        _choice("format", self.format, LORA_FORMATS)
        _choice("save_dtype", self.save_dtype, LORA_DTYPES)

    def folder(self) -> Path:
        """The work folder."""
        return Path(self.work) if self.work is not None else Path(self.out).with_suffix(".train")


def with_builtin(config: GenerateConfig) -> GenerateConfig:
    """A run without a model: the built-in one and a LoRA of it, side by side from the same noise."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, source=MODEL, dtype="float32"),
        loras=config.loras or (Lora(f"{MODEL}:character"),),
        prompts=config.prompts or ("a zib in the forest at night", "a zib on the beach on a sunny day"),
        seeds=config.seeds if config.seeds != GenerateConfig.seeds else (0, 1),
        compare=True,
    )
