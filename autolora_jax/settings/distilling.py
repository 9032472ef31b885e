"""What distilling a guidance into a LoRA is: the teacher's settings are a drawing's, the student's stand here."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autolora_jax.config import ConfigError
from autolora_jax.settings.fields import Checked, setting
from autolora_jax.settings.pictures import OUTPUT, PICTURES, LoadedConfig, negative_setting
from autolora_jax.settings.training import (
    TRAINING,
    OptimizerConfig,
    WrittenLora,
    accumulated,
    in_float32,
    recomputing,
    seeded,
)
from autolora_jax.settings.values import Texts

STUDENT = "Student"  # panel of --help
TARGETS = ("full", "cfg", "dial")


@dataclasses.dataclass(frozen=True)
class DistillConfig(Checked):
    """How a student learns what a teacher draws. Each round draws pictures, and learns from all that were drawn so far;
    the teacher leads through those of the first round, the student through the others, and the teacher says what it
    would have done there.
    """

    PANEL: ClassVar[str] = TRAINING

    optimizer: OptimizerConfig = OptimizerConfig(warmup_steps=20, weight_decay=0.0)
    target: str = setting(
        "full",
        "What the LoRA learns. full: to draw without guidance as the teacher does with it, 1 evaluation a step; cfg: "
        "to be guided by CFG as the teacher is by AutoLoRA, at any w1 = w2 = w, 2 evaluations; dial: what to add to "
        "the LoRA, which stays beside it: from itself at strength 0 to the teacher at 1.",
        panel=STUDENT,
        choices=TARGETS,
    )
    student_steps: int | None = setting(
        None,
        "Steps that the student draws in: each goes as far as several of the teacher's, of which there are a multiple.",
        panel=STUDENT,
        shown="the teacher's --steps",
        metavar="STEPS",
        least=1,
    )
    rank: int = setting(
        16,
        "Ranks that are added to the LoRA's own. The file grows with them.",
        panel=STUDENT,
        least=1,
        advice="16 to 64 are usual",
    )
    layers: Texts = setting(
        ("attention", "feed_forward"),
        "Layers that learn beside those that the LoRA changes: groups or patterns, as train's --target. Repeat it.",
        panel=STUDENT,
        metavar="GROUP|REGEX",
    )
    rounds: int = setting(3, "Of drawing and learning; the student leads from the second on.", least=1)
    trajectories: int = setting(
        256, "Pictures that a round draws, the prompts in turn, each from noise of its own.", least=1
    )
    updates: int = setting(500, "Optimizer steps a round.", least=1)
    batch_size: int = setting(4, "Pictures, or steps of them to learn from, per device at once.", least=1)
    gradient_accumulation_steps: int = accumulated()
    gradient_checkpointing: bool | None = recomputing()
    seed: int = seeded()
    save_every: int = setting(250, "Optimizer steps between checkpoints.", panel=OUTPUT, metavar="STEPS", least=1)
    sample_every: int = setting(
        250, "Optimizer steps between samples; 0: none.", panel=OUTPUT, metavar="STEPS", least=0
    )
    sample_prompts: Texts = setting(
        (), "Repeat it for several prompts.", flag="--sample-prompt", panel=OUTPUT, shown="the first prompts"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer.warmup_steps >= self.total:
            raise ConfigError(f"warmup_steps = {self.optimizer.warmup_steps} should be fewer than all {self.total}")

    @property
    def total(self) -> int:
        """Optimizer steps of all rounds."""
        return self.rounds * self.updates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(WrittenLora, LoadedConfig):
    """A guidance of a model and its LoRAs, and the LoRA that it becomes."""

    PANEL: ClassVar[str] = OUTPUT

    prompts: str | None = setting(
        None,
        "File of prompts to draw (.txt, a line each; .csv, .jsonl or .parquet with a column prompt). A few dozen that "
        "show what the LoRA will be asked for; without any, its trigger words in a list of places.",
        panel=PICTURES,
        metavar="FILE",
    )
    negative_prompt: str | None = negative_setting()
    student: DistillConfig = DistillConfig()

    @classmethod
    def start(cls, changes: Mapping[str, Any], preset: "Distillation | None" = None) -> "Distillation":
        """What these changes are made to. The built-in model is small: bfloat16 would save nothing."""
        start = preset or cls()
        model = in_float32(start.model, changes.get("model.source"))
        return dataclasses.replace(start, model=model)
