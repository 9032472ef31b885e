"""The optimizer: AdamW behind a clip of the gradients' norm, its learning rate warmed up and then held or let down."""

from collections.abc import Callable
from functools import cache

import optax

from autolora_jax.settings.training import OptimizerConfig

# name -> what the learning rate does from the end of the warm-up (peak) over the remaining steps.
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, max(steps, 1)),
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, max(steps, 1)),
}


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
