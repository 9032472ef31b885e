"""A recipe: settings with every open choice made, so that it says by numbers and hashes all that a picture depends on
beside its prompt and seed."""

import dataclasses
import functools
from typing import Any, NamedTuple

from autolora_jax import guidance
from autolora_jax.batch.job import Settings
from autolora_jax.batch.sources import File, Model, Sources, canonical
from autolora_jax.config import ConfigError
from autolora_jax.guidance import Rule, Segment
from autolora_jax.request import picture_size
from autolora_jax.schedules import own_scheduler

VERSION = 1  # of what the settings mean: raised when the same ones draw other pictures, whose keys then differ, too
NUMBERS = ("gamma", "w1", "w2", "w", "omega")  # of all rules; a rule has those of its kind


class Load(NamedTuple):
    """What has to be loaded before a picture can be drawn."""

    model: Model
    loras: tuple[File, ...]
    embeddings: tuple[File, ...]

    @property
    def names(self) -> tuple[Any, ...]:
        """What tells it from others."""
        return self.model.config, tuple(f.source for f in self.loras), tuple(f.source for f in self.embeddings)


class Program(NamedTuple):
    """What pictures share that are drawn as one batch."""

    width: int
    height: int
    steps: int
    segments: tuple[Segment, ...]
    rescaled: bool
    scheduler: str
    timestep_spacing: str | None
    noise: str
    clip_skip: int | None
    base_text: str
    max_sequence_length: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings, resolved."""

    load: Load
    scales: tuple[float, ...]  # of the LoRAs
    rule: Rule
    guidance_rescale: float
    program: Program

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return self.program.width, self.program.height

    @property
    def evaluations(self) -> int:
        """Of the network, for one picture."""
        return guidance.evaluations(self.program.segments)

    @property
    def one_scale(self) -> tuple[float, ...]:
        """What pictures of a batch agree in whose LoRA kernels are merged once for all of them."""
        weak = any(branch.weights == "weak" for segment in self.program.segments for branch in segment.branches)
        return (*self.scales, *([float(self.rule.weak_factor())] if weak else []))

    @functools.cached_property
    def columns(self) -> dict[str, Any]:
        """It as JSON values, one for each column of the manifest."""
        rule = guidance.to_dict(self.rule)
        model, loras, embeddings = self.load
        reads_t5 = "text_encoder_3" in model.networks
        return {
            "model": model.name,
            "model_sha256": model.sha256,
            "dtype": model.config.dtype,
            "loras": [lora.name for lora in loras],
            "lora_sha256": [lora.sha256 for lora in loras],
            "lora_scales": list(self.scales),
            "embeddings": [word.name for word in embeddings],
            "embedding_sha256": [word.sha256 for word in embeddings],
            "guidance": rule["rule"],
            **{name: float(rule[name]) if name in rule else None for name in NUMBERS},
            "start": float(rule["start"]),
            "stop": float(rule["stop"]),
            "guidance_rescale": self.guidance_rescale,
            "steps": self.program.steps,
            "scheduler": self.program.scheduler,
            "timestep_spacing": self.program.timestep_spacing,
            "noise": self.program.noise,
            "width": self.program.width,
            "height": self.program.height,
            "clip_skip": self.program.clip_skip,
            "base_text": self.program.base_text,
            "max_sequence_length": self.program.max_sequence_length if reads_t5 else None,
            "recipe": VERSION,
        }

    @functools.cached_property
    def identity(self) -> str:
        """Canonical JSON of what decides a picture. Names of files do not, but for that of an embedding: a word."""
        return canonical({name: value for name, value in self.columns.items() if name not in ("model", "loras")})


def resolve(settings: Settings, sources: Sources) -> Recipe:
    """The recipe of settings. Raises ConfigError, WeightsError or ValueError for what could not be drawn."""
    model = sources.model(settings.model)
    sampler = settings.sampler
    width, height = settings.size or (None, None)
    height, width = picture_size(height, width, model.unit, model.trained_size)
    model.schedule(sampler.steps, sampler.scheduler, sampler.timestep_spacing, height, width)  # raises what it must
    rule = settings.rule().filled(model.family.guidance_scale)
    rescaled = sampler.guidance_rescale != 0
    plan = guidance.plan(rule, 1, sampler.steps, reference=rescaled)
    if "base" in plan.weights and not settings.loras:
        raise ConfigError(f"{rule} compares a tuned model with its base, but there is no LoRA in these settings")
    flow = model.scheduler.flow
    return Recipe(
        load=Load(
            model,
            tuple(sources.lora(lora.source) for lora in settings.loras),
            tuple(sources.embedding(source) for source in settings.embeddings),
        ),
        scales=settings.scales(),
        rule=rule,
        guidance_rescale=float(sampler.guidance_rescale),
        program=Program(
            width=width,
            height=height,
            steps=sampler.steps,
            segments=plan.segments,
            rescaled=rescaled,
            scheduler=sampler.scheduler or own_scheduler(model.scheduler),
            timestep_spacing=None if flow else sampler.timestep_spacing or model.scheduler.timestep_spacing,
            noise=sampler.noise,
            clip_skip=settings.clip_skip,
            base_text=settings.base_text,
            max_sequence_length=settings.max_sequence_length,
        ),
    )
