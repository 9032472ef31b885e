"""What a LoRA training run is, as a frozen dataclass. Defaults are those that suit SDXL at 1024² and some dozen
pictures."""

import dataclasses
import math
from collections.abc import Sequence

from autolora_jax.config import ConfigError
from autolora_jax.training.optimizer import OptimizerConfig

CROPS = ("center", "random")


def _several(name: str, values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str):  # whose letters would each be one
        raise ConfigError(f"{name} = {values!r} should be several: ({values!r},) is one of them")
    return tuple(values)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which layers learn, and how much they can.

    rank, alpha: the delta is (alpha / rank)·up·down; alpha None is rank.
    targets: groups (training.deltas.GROUPS) or patterns of layers' published names.
    text_encoders: whether both CLIP text encoders learn too, their attention by the same targets.
    """

    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ("attention",)
    text_encoders: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", _several("targets", self.targets))
        if self.rank < 1:
            raise ConfigError(f"rank = {self.rank} should be at least 1; 4 to 64 are usual")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha = {self.alpha} should be above 0; the rank, or half of it, are usual")
        if not self.targets:
            raise ConfigError("targets is empty: name at least one group or pattern of layers")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How pictures become batches.

    resolution: side of the square bucket in pixels; None is what the model was trained at.
    max_aspect: of buckets; 1 crops everything to squares.
    crop: which part of a picture that does not fit its bucket, "center" or "random" (once for a run).
    flip: also train on mirrored pictures. upscale: enlarge pictures smaller than their bucket.
    default_caption: for pictures without any.
    """

    resolution: int | None = None
    max_aspect: float = 2.0
    crop: str = "center"
    flip: bool = False
    upscale: bool = True
    caption_extension: str = ".txt"
    default_caption: str | None = None

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ConfigError(f"crop = {self.crop!r} is not known; there are {' and '.join(CROPS)}")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which errors count how much; see training.objective.Objective, whose prediction type is the checkpoint's."""

    caption_dropout: float = 0.1
    min_snr_gamma: float | None = 5.0
    noise_offset: float = 0.0
    min_timestep: int = 0
    max_timestep: int | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise ConfigError(f"caption_dropout = {self.caption_dropout} should be a share, 0 to 1")
        if not 0 <= self.noise_offset < math.inf:
            raise ConfigError(f"noise_offset = {self.noise_offset} should be 0 (none) or above; 0.05 is usual")
        if not (math.isfinite(self.logit_mean) and 0 < self.logit_std < math.inf):
            raise ConfigError(
                f"logit_mean = {self.logit_mean}, logit_std = {self.logit_std}: need a number and one above 0"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    steps: optimizer steps. batch_size: pictures per device and micro-batch; a step sees
    batch_size × devices × gradient_accumulation_steps of them.
    gradient_checkpointing: recompute activations in the backward pass; None does so where a picture is large.
    save_every: steps between checkpoints. sample_every: steps between sample pictures, 0 for none;
    sample_prompts: what they show; without any, the first captions.
    """

    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    steps: int = 1000
    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool | None = None
    seed: int = 0
    save_every: int = 250
    sample_every: int = 250
    sample_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample_prompts", _several("sample_prompts", self.sample_prompts))
        for name in ("steps", "batch_size", "gradient_accumulation_steps", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} should be at least 1")
        for name in ("seed", "sample_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)} should not be below 0")
        if self.seed >= 2**31:
            raise ConfigError(f"seed = {self.seed} should be below {2**31}")
        if self.optimizer.warmup_steps >= self.steps:
            raise ConfigError(f"warmup_steps = {self.optimizer.warmup_steps} should be fewer than steps = {self.steps}")
