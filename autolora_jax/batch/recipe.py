"""A recipe: settings with every open choice made, so that it says by numbers and hashes all that a picture depends on
beside its prompt and seed."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from autolora_jax import guidance
from autolora_jax.batch.sources import File, Model, Sources, canonical
from autolora_jax.config import ConfigError
from autolora_jax.given import Ground
from autolora_jax.guidance import Segment
from autolora_jax.lora import over, read_blocks
from autolora_jax.settings.fields import settings_of, told
from autolora_jax.settings.jobs import Settings
from autolora_jax.settings.model import ModelConfig
from autolora_jax.settings.pictures import DrawingConfig
from autolora_jax.settings.rules import NEUTRAL, Rule, name_of, numbers
from autolora_jax.settings.values import Strength, strength_text, tells_apart
from autolora_jax.text.embeds_file import Form
from autolora_jax.weights.lora.distilled import usual_of
from autolora_jax.weights.lora.files import targets_of

VERSION = 1  # of what the settings mean: raised when the same ones draw other pictures, whose keys then differ, too
# Columns of version 0.1: they are part of a picture's key whatever they hold.
FIRST = frozenset(
    {"model_sha256", "dtype", "lora_sha256", "lora_scales", "embeddings", "embedding_sha256", "recipe"}
    | {"guidance", "gamma", "w1", "w2", "w", "omega", "start", "stop", "guidance_rescale", "base_text", "noise"}
    | {"steps", "scheduler", "timestep_spacing", "width", "height", "clip_skip", "max_sequence_length"}
)
USUAL = {**told(ModelConfig()), **told(DrawingConfig()), **NEUTRAL}


class Load(NamedTuple):
    """What has to be loaded before a picture can be drawn."""

    model: Model
    loras: tuple[File, ...]
    roles: tuple[str, ...]  # of the LoRAs
    blocks: tuple[str, ...]  # their block weights
    embeddings: tuple[File, ...]

    @property
    def names(self) -> tuple[Any, ...]:
        """What tells it from others."""
        sources = (file.source for file in self.loras)
        loras = tuple(zip(sources, self.roles, self.blocks, strict=True))
        return self.model.config, loras, tuple(file.source for file in self.embeddings)


class Program(NamedTuple):
    """What pictures share that are drawn as one batch."""

    drawing: DrawingConfig  # without what may differ among them
    segments: tuple[Segment, ...]
    masked: bool
    told: Form | None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings, resolved. drawing: every open choice is made; its lora_scale is in `scales`."""

    load: Load
    scales: tuple[Strength, ...]  # of the LoRAs
    drawing: DrawingConfig
    segments: tuple[Segment, ...]
    masked: bool = False  # whether a mask keeps a part of a given picture
    told: Form | None = None  # of embeddings in place of prompts

    @property
    def rule(self) -> Rule:
        """Of the guidance."""
        assert isinstance(self.drawing.guidance, Rule)
        return self.drawing.guidance

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        assert self.drawing.size is not None
        return self.drawing.size

    @functools.cached_property
    def program(self) -> Program:
        """What it shares with those that it is drawn with."""
        own = {field.name: field.default for field in settings_of(DrawingConfig) if field.said.by_picture}
        own["guidance_rescale"] = float(self.drawing.guidance_rescale != 0)  # whether there is any
        shared = dataclasses.replace(self.drawing, **own)
        return Program(shared, self.segments, self.masked, self.told)

    @property
    def evaluations(self) -> int:
        """Of the network, for one picture."""
        return guidance.evaluations(self.segments)

    @property
    def steps(self) -> int:
        """That are taken."""
        return self.load.model.canvas.steps(self.drawing)

    @property
    def one_scale(self) -> tuple[Strength, ...]:
        """What pictures of a batch agree in whose LoRA kernels are merged once for all of them."""
        weak = any(branch.weights == "weak" for segment in self.segments for branch in segment.branches)
        return (*self.scales, *([float(self.rule.weak_factor())] if weak else []))

    @functools.cached_property
    def columns(self) -> dict[str, Any]:
        """It as JSON values, one for each column of the manifest."""
        model, loras, roles, blocks, embeddings = self.load
        changes = any(isinstance(scale, tuple) for scale in self.scales)
        return {
            "model": model.name,
            "model_sha256": model.sha256,
            "loras": [lora.name for lora in loras],
            "lora_sha256": [lora.sha256 for lora in loras],
            "lora_scales": [
                float(np.mean(over(scale, self.steps))) if isinstance(scale, tuple) else scale for scale in self.scales
            ],
            "lora_roles": list(roles) if {*roles} - {"tuned"} else None,
            "lora_strengths": list(map(strength_text, self.scales)) if changes else None,
            "lora_blocks": list(blocks) if any(blocks) else None,
            "embeddings": [word.name for word in embeddings],
            "embedding_sha256": [word.sha256 for word in embeddings],
            "guidance": name_of(self.rule),
            **{name: None if (x := getattr(self.rule, name, None)) is None else float(x) for name in numbers()},
            "width": self.size[0],
            "height": self.size[1],
            **told(model.config),
            **told(self.drawing),
            **({} if "text_encoder_3" in model.networks else {"max_sequence_length": None}),
            "recipe": VERSION,
        }

    @functools.cached_property
    def identity(self) -> str:
        """Canonical JSON of what decides a picture. Names of files do not, but for that of an embedding: a word.

        Settings that are younger than version 0.1 are left out at their defaults: older pictures keep their keys. So
        are numbers that a rule has not.
        """
        names = {name: value for name, value in self.columns.items() if name not in ("model", "loras")}
        said = {name: value for name, value in names.items() if name in FIRST or value not in (None, USUAL.get(name))}
        return canonical(said)


def resolve(settings: Settings, sources: Sources, ground: Ground | None = None, told: Form | None = None) -> Recipe:
    """The recipe of settings. ground: what the pictures are made from; None: from noise. told: the form of what is told
    in place of texts; None: texts.

    Raises ConfigError, WeightsError or ValueError for what could not be drawn.
    """
    model = sources.model(settings.model)
    masked = ground is not None and ground.masked
    if told is not None and settings.clip_skip is not None:
        raise ConfigError(f"clip_skip = {settings.clip_skip} is of texts that are encoded here, and embeds are none")
    tuned = tells_apart(settings.loras)
    loras = tuple(sources.lora(lora.source) for lora in settings.loras)
    usual = usual_of((file.distilled, lora.role) for file, lora in zip(loras, settings.loras, strict=True))
    drawing = model.canvas.resolved(DrawingConfig(**settings.drawing()), tuned, ground, usual)
    drawing = dataclasses.replace(drawing, lora_scale=None)
    model.canvas.schedule(drawing, masked)  # raises what it must
    assert isinstance(drawing.guidance, Rule)
    rescaling, steps = drawing.guidance_rescale != 0, model.canvas.steps(drawing)
    plan = guidance.plan(drawing.guidance, 1, steps, reference=rescaling, skip=drawing.skip)
    if "base" in plan.weights and not tuned:
        why = "all LoRAs act on both (@all)" if settings.loras else "there is no LoRA"
        raise ConfigError(f"{drawing.guidance} compares a tuned model with its base, but {why}")
    for lora in settings.loras:
        if (blocks := lora.block_weights) is not None:
            targets = targets_of(model.networks)
            read_blocks(blocks, {component: shapes for component, (shapes, _) in targets.items()})
    load = Load(
        model,
        loras,
        tuple(lora.role for lora in settings.loras),
        tuple(lora.blocks for lora in settings.loras),
        tuple(sources.embedding(source) for source in settings.embeddings),
    )
    return Recipe(load, settings.scales(), drawing, plan.segments, masked, told)
