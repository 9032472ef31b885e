"""What a LoRA training run is. Defaults are those that suit SDXL at 1024² and some dozen pictures."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from autolora_jax.config import ConfigError
from autolora_jax.demo import MODEL as BUILTIN
from autolora_jax.settings.fields import Checked, Table, setting
from autolora_jax.settings.model import ModelConfig
from autolora_jax.settings.pictures import OUTPUT
from autolora_jax.settings.values import Texts

DATA, LORA, TRAINING, LOSS = "Pictures and captions", "LoRA", "Training", "Loss"  # panels of --help


@dataclasses.dataclass(frozen=True)
class LoraConfig(Checked):
    """Which layers learn, and how much they can: the delta is (alpha / rank)·up·down."""

    PANEL: ClassVar[str] = LORA

    rank: int = setting(
        16, "How much it can learn: 4 to 64. The file grows with it.", least=1, advice="4 to 64 are usual"
    )
    alpha: float | None = setting(None, "The change is scaled by alpha / rank, as kohya's is.", shown="the rank")
    targets: Texts = setting(
        ("attention",),
        "Layers that learn: attention, cross_attention, feed_forward, projections, convolutions, embeddings, or a "
        "pattern of their published names, such as 'up_blocks.*attn2'. Repeat it for several.",
        flag="--target",
        metavar="GROUP|REGEX",
    )
    text_encoders: bool = setting(
        False,
        "Both CLIP text encoders learn, too, their attention by the same targets: slower; some subjects need it.",
        flag="--text-encoders/--no-text-encoders",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha = {self.alpha} should be above 0; the rank, or half of it, are usual")
        if not self.targets:
            raise ConfigError("targets is empty: name at least one group or pattern of layers")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """How pictures become batches."""

    PANEL: ClassVar[str] = DATA

    resolution: int | None = setting(
        None,
        "Side of a square picture; others have as many pixels. Latents are made once, and kept.",
        shown="the model's",
        metavar="PIXELS",
    )
    max_aspect: float = setting(2.0, "Of the shapes that are kept; 1 crops everything to squares.", flag=None)
    crop: str = setting(
        "center",
        "Part of a picture that fits no shape: center or random (once for a run).",
        choices=("center", "random"),
    )
    flip: bool = setting(False, "Train on mirrored pictures, too.", flag="--flip/--no-flip")
    upscale: bool = setting(True, "Enlarge pictures smaller than their shape.", flag=None)
    caption_extension: str = setting(".txt", "Of the text files.")
    default_caption: str | None = setting(None, "For pictures without one, which are else an error.")


@dataclasses.dataclass(frozen=True)
class LossConfig(Checked):
    """Which errors count how much; see training.objective.Objective, whose prediction type is the checkpoint's."""

    PANEL: ClassVar[str] = LOSS

    caption_dropout: float = setting(0.1, "Share of pictures trained without their caption, for guidance to work.")
    min_snr_gamma: float | None = setting(
        5.0,
        "Weighs down the easy timesteps of little noise (arXiv 2303.09556); none: all count alike.",
        metavar="NUMBER|none",
    )
    noise_offset: float = setting(0.0, "About 0.05 helps very dark and very light pictures.")
    min_timestep: int = setting(0, "The least that is trained on.", flag=None)
    max_timestep: int | None = setting(None, "The first that is not.", flag=None)
    logit_mean: float = setting(0.0, "(SD3) Of the timesteps' logits.", flag=None)
    logit_std: float = setting(1.0, "(SD3) Of the timesteps' logits.", flag=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.caption_dropout <= 1:
            raise ConfigError(f"caption_dropout = {self.caption_dropout} should be a share, 0 to 1")
        if not 0 <= self.noise_offset < math.inf:
            raise ConfigError(f"noise_offset = {self.noise_offset} should be 0 (none) or above; 0.05 is usual")
        if not (math.isfinite(self.logit_mean) and 0 < self.logit_std < math.inf):
            raise ConfigError(
                f"logit_mean = {self.logit_mean}, logit_std = {self.logit_std}: need a number and one above 0"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    """AdamW (arXiv 1711.05101) with a schedule. Defaults: those of diffusers' SDXL LoRA script, with a cosine."""

    PANEL: ClassVar[str] = TRAINING

    learning_rate: float = setting(1e-4, "Its highest value.")
    warmup_steps: int = setting(0, "Steps from 0 up to it, linearly.", flag="--warmup", metavar="STEPS")
    schedule: str = setting(
        "cosine", "After it: cosine, linear or constant.", choices=Table("training.optimizer", "SCHEDULES")
    )
    beta1: float = setting(0.9, "Of AdamW.", flag=None)
    beta2: float = setting(0.999, "Of AdamW.", flag=None)
    epsilon: float = setting(1e-8, "Of AdamW.", flag=None)
    weight_decay: float = setting(1e-2, "Of AdamW.", flag=None)
    max_grad_norm: float = setting(1.0, "Longer gradients are scaled down to this; 0 never.", flag=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.learning_rate < math.inf):
            raise ConfigError(f"learning_rate = {self.learning_rate} should be above 0; 1e-4 is usual")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if not (0 <= getattr(self, name) < math.inf):
                raise ConfigError(f"{name} = {getattr(self, name)} should not be below 0")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.epsilon > 0):
            raise ConfigError(f"need 0 <= beta1, beta2 < 1 and epsilon > 0, not {self}")


# What is learned from pictures and from a teacher alike.


def accumulated() -> Any:
    """The setting of gradient_accumulation_steps."""
    return setting(
        1,
        "Batches an optimizer step: as good as so many times the batch size, in the memory of one.",
        flag="--accumulate",
        least=1,
    )


def recomputing() -> Any:
    """The setting of gradient_checkpointing."""
    return setting(
        None,
        "Compute activations twice rather than keep them: less memory, a third more time.",
        flag="--gradient-checkpointing/--no-gradient-checkpointing",
        shown="above 512x512",
    )


def seeded() -> Any:
    """The setting of a seed that learning has."""
    return setting(0, "The same settings and seed give the same file.", least=0, most=2**31 - 1)


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """How a LoRA is trained. A step sees batch_size × devices × gradient_accumulation_steps pictures."""

    PANEL: ClassVar[str] = TRAINING

    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = setting(1000, "Optimizer steps. Fewer for few pictures.", least=1)
    batch_size: int = setting(1, "Pictures per device at once.", least=1)
    gradient_accumulation_steps: int = accumulated()
    gradient_checkpointing: bool | None = recomputing()
    seed: int = seeded()
    save_every: int = setting(250, "Steps between checkpoints.", panel=OUTPUT, metavar="STEPS", least=1)
    sample_every: int = setting(250, "Steps between samples; 0: none.", panel=OUTPUT, metavar="STEPS", least=0)
    sample_prompts: Texts = setting(
        (), "Repeat it for several prompts.", flag="--sample-prompt", panel=OUTPUT, shown="the first captions"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer.warmup_steps >= self.steps:
            raise ConfigError(f"warmup_steps = {self.optimizer.warmup_steps} should be fewer than steps = {self.steps}")


@dataclasses.dataclass(frozen=True)
class WrittenLora(Checked):
    """Where a LoRA goes that is made by training, and how it is written."""

    PANEL: ClassVar[str] = OUTPUT

    _: dataclasses.KW_ONLY
    out: str = setting("lora.safetensors", "The LoRA.", short="-o", metavar="FILE")
    work: str | None = setting(
        None,
        "Folder of all that a run keeps: checkpoints, what it learns from, log.jsonl, samples and config.json. A run "
        "found in it is resumed.",
        shown="FILE with .train at its end",
        metavar="DIR",
    )
    format: str = setting(
        "kohya",
        "Names in it: kohya (A1111, ComfyUI) or peft (diffusers).",
        choices=Table("weights.lora.export", "DIALECTS"),
    )
    save_dtype: str = setting(
        "float32",
        "Of the file: float32, or float16 or bfloat16 for half the size.",
        choices=Table("weights.lora.export", "DTYPES"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.out).suffix != ".safetensors":
            raise ConfigError(f"out = {self.out!r} should be a file whose name ends in .safetensors")

    def folder(self) -> Path:
        """The work folder."""
        return Path(self.work) if self.work is not None else Path(self.out).with_suffix(".train")


@dataclasses.dataclass(frozen=True)
class TrainingRun(WrittenLora):
    """A LoRA of a model, trained on a folder of captioned pictures, and where it goes."""

    PANEL: ClassVar[str] = OUTPUT

    model: ModelConfig = ModelConfig()
    data: str | None = setting(
        None,
        "Folder of pictures, each with its caption in a text file of the same name, or all in metadata.jsonl or .csv "
        "as file_name and text. Pictures in a subfolder 10_name count ten times. A dozen can be enough.",
        panel=DATA,
        metavar="DIR",
    )
    trigger: str | None = setting(None, "What calls the subject in a prompt; kept in the file.", metavar="PHRASE")
    training: TrainConfig = TrainConfig()

    @classmethod
    def start(cls, changes: Mapping[str, Any], preset: "TrainingRun | None" = None) -> "TrainingRun":
        """What these changes are made to. The built-in model is small: bfloat16 would save nothing."""
        start = preset or cls()
        return dataclasses.replace(start, model=in_float32(start.model, changes.get("model.source")))


def in_float32(model: ModelConfig, source: Any) -> ModelConfig:
    """The model that a run of a changed `source` begins with: the built-in one if there is none, in float32."""
    if (source or model.source or BUILTIN) == BUILTIN and model in (ModelConfig(), ModelConfig(BUILTIN)):
        return ModelConfig(BUILTIN, dtype="float32")
    return model
