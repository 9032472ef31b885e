"""The optimizer: AdamW behind a clip of the gradients' norm, its learning rate warmed up and then held or let down."""

import dataclasses
import math
from collections.abc import Callable
from functools import cache

import optax

from autolora_jax.config import ConfigError

# name -> what the learning rate does from the end of the warm-up (peak) over the remaining steps.
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, max(steps, 1)),
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, max(steps, 1)),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) with a schedule. Defaults: those of diffusers' SDXL LoRA script, with a cosine.

    learning_rate: the peak. warmup_steps: from 0 up to it, linearly. schedule: a key of SCHEDULES.
    max_grad_norm: longer gradients are scaled down to this; 0 never.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: str = "cosine"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule = {self.schedule!r} is not known; there are {', '.join(SCHEDULES)}")
        if not (0 < self.learning_rate < math.inf):
            raise ConfigError(f"learning_rate = {self.learning_rate} should be above 0; 1e-4 is usual")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if not (0 <= getattr(self, name) < math.inf):
                raise ConfigError(f"{name} = {getattr(self, name)} should not be below 0")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.epsilon > 0):
            raise ConfigError(f"need 0 <= beta1, beta2 < 1 and epsilon > 0, not {self}")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step of a run of so many steps."""
    after = SCHEDULES[config.schedule](config.learning_rate, steps - config.warmup_steps)
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


@cache  # the compiled step is kept by the optimizer's identity: the same settings must give the same object
def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of so many steps."""
    adamw = optax.adamw(
        learning_rate(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw) if config.max_grad_norm else adamw
