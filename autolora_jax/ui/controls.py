"""What is set on the page, and what it means: a GenerateConfig, as if its flags had been typed."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from autolora_jax.config import ConfigError
from autolora_jax.settings.changes import read
from autolora_jax.settings.pictures import STEPS, GenerateConfig
from autolora_jax.settings.rules import RULES, AutoLoRA
from autolora_jax.settings.values import Lora, Size

MOST_LORAS = 4  # rows on the page
LARGEST_SEED = 2**32 - 1  # of those that are thrown


class LoraRow(NamedTuple):
    """A LoRA on the page. source: "" where the row is empty."""

    source: str = ""
    scale: float = 1.0
    role: str = "tuned"


class Controls(NamedTuple):
    """The values of the page's controls, in its order."""

    prompt: str
    negative: str
    gamma: float
    w: float
    seed: int
    rule: str
    steps: int
    size: str
    scheduler: str
    loras: tuple[LoraRow, ...]

    @classmethod
    def of(cls, config: GenerateConfig, usual: float, size: Size, scheduler: str) -> "Controls":
        """What a page begins with. usual: scale of guidance; size: (width, height); scheduler: all the model's own."""
        rule = config.rule().filled(usual)
        w = next((value for name in ("w2", "w") if (value := getattr(rule, name, None)) is not None), usual)
        width, height = config.size or size
        return cls(
            prompt=config.prompts[0] if config.prompts else "",
            negative=config.negative_prompt or "",
            gamma=_one(getattr(rule, "gamma", AutoLoRA().gamma)),
            w=_one(w),
            seed=config.all_seeds[0],
            rule=next(name for name, kind in RULES.items() if type(rule) is kind),
            steps=config.num_inference_steps or STEPS,
            size=f"{width}x{height}",
            scheduler=config.scheduler or scheduler,
            loras=tuple(map(_row, config.loras[:MOST_LORAS])),
        )

    def config(self, start: GenerateConfig, size: Size, scheduler: str) -> GenerateConfig:
        """What is asked for; the rest as in `start`. size, scheduler: the model's own. Raises ConfigError."""
        if not self.prompt.strip():
            raise ConfigError("draw what? Write a prompt")
        loras = tuple(Lora(row.source.strip(), *row[1:]) for row in self.loras if row.source.strip())
        kind = RULES[self.rule]
        asked = {"gamma": self.gamma, "w": self.w, "w1": self.w, "w2": self.w}
        numbers: dict[str, Any] = {
            field.name: asked[field.name] for field in dataclasses.fields(kind) if field.name in asked
        }
        if self.rule not in ("cfg", "none") and not loras:
            raise ConfigError(f"{self.rule} compares a LoRA with its base model: add a LoRA, or choose cfg")
        try:
            asked_size = read(self.size, Size, "size")
            return dataclasses.replace(
                start,
                prompts=(self.prompt.strip(),),
                negative_prompt=self.negative,
                seeds=(int(self.seed),),
                guidance=kind(**numbers),
                num_inference_steps=int(self.steps),
                size=None if asked_size == size else asked_size,
                scheduler=None if self.scheduler == scheduler else self.scheduler,
                loras=loras,
                compare=False,
            )
        except ValueError as e:
            raise ConfigError(str(e)) from None


def _row(lora: Lora) -> LoraRow:
    if lora.blocks or isinstance(lora.scale, tuple):
        raise ConfigError(f"{lora}: a LoRA on the page has one strength; `autolora generate` draws with others")
    return LoraRow(lora.source, lora.scale, lora.role)


def _one(value: Any) -> float:
    return float(value[0] if isinstance(value, tuple) else value)


def of_settings(told: Mapping[str, Any], now: Controls) -> Controls:
    """The controls as a picture says it was drawn, as far as it says so; LoRAs stay as they are, but for scales."""
    rule = told.get("guidance") or {}
    numbers = rule if isinstance(rule, Mapping) else {}
    scales = dict(zip(told.get("loras") or (), told.get("lora_scales") or (), strict=False))

    def scaled(row: LoraRow) -> LoraRow:
        name = row.source.rpartition("/")[2].removesuffix(".safetensors").rpartition(":")[2]
        scale = scales.get(name, row.scale)
        return row._replace(scale=float(scale) if isinstance(scale, int | float) else row.scale)

    width, height = told.get("size") or (0, 0)
    return now._replace(
        prompt=told.get("prompt") or now.prompt,
        negative=told.get("negative_prompt") or "",
        gamma=float(numbers.get("gamma", now.gamma)),
        w=float(numbers.get("w2") or numbers.get("w") or now.w),
        seed=int(told.get("seed", now.seed)),
        rule=numbers.get("rule", now.rule),
        steps=int(told.get("steps", now.steps)),
        size=f"{width}x{height}" if width else now.size,
        scheduler=told.get("scheduler") or now.scheduler,
        loras=tuple(map(scaled, now.loras)),
    )
