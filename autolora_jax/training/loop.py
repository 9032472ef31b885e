"""The loop: batch, step, report, checkpoint. Everything random hangs on the step's number, so a run that was stopped
and resumed equals one that was not."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from autolora_jax.sharding import batch_rows, replicated
from autolora_jax.training.checkpoints import Checkpoints
from autolora_jax.training.interruption import uninterrupted
from autolora_jax.training.step import Loss, State, train_step
from autolora_jax.weights.orbax_folder import brief

WATCHED = {"loss": "loss", "gradient_norm": "gradients' norm"}  # metrics that must be finite


class Report(NamedTuple):
    """A finished step: its number (from 1), how many there will be, and its metrics."""

    step: int
    steps: int
    metrics: Mapping[str, float]


class TrainingError(RuntimeError):
    """Training can't go on."""


def fit(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    state: State,
    frozen: Any,
    batch_at: Callable[[int], Any],
    steps: int,
    mesh: Mesh,
    *,
    decay: float = 0.0,
    checkpoints: Checkpoints | None = None,
    save_every: int = 500,
    on_step: Callable[[Report], None] | None = None,
    every: int = 0,
    on_state: Callable[[State], None] | None = None,
) -> State:
    """The state after `steps` steps, from the newest checkpoint where there is one.

    batch_at: step (from 0) -> host arrays, every leaf [accumulation, rows, ...]; a function of its argument alone.
    decay: of the moving average, where the state has one.
    save_every: steps between checkpoints; the last step and an interruption by Ctrl-C are always saved.
    on_step: told of each step, one step late: the devices never wait for it.
    every, on_state: `on_state(state)` after each so many steps, and after the last.
    state: is used up, its memory is the next one's. frozen: not copied where it already is on the mesh.
    Raises TrainingError when the loss is not finite, or memory too small; checkpoints written before stay.
    """
    state = jax.device_put(state, replicated(mesh))
    frozen = jax.device_put(frozen, replicated(mesh))
    if checkpoints:
        state = checkpoints.restore(state)
    first = finished = int(state.step)
    late: list[tuple[int, Any]] = []

    def report() -> None:
        step, metrics = late[0]
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name, what in WATCHED.items():
            if not math.isfinite(values[name]):
                raise TrainingError(
                    f"the {what} of step {step} is {values[name]}; lower the learning rate, or train in float32. "
                    "Checkpoints written before are whole"
                )
        late.pop(0)
        if on_step:
            on_step(Report(step, steps, values))

    try:
        for step in range(first, steps):
            batch = jax.device_put(batch_at(step), batch_rows(mesh))
            # A step gives the old state's memory away. The first may compile for minutes, and has nothing to lose.
            with uninterrupted() if step > first else nullcontext():
                state, metrics = train_step(loss, optimizer, mesh, state, frozen, batch, decay)
                late.append((step + 1, metrics))
                finished = step + 1
            if len(late) > 1:
                report()
            if checkpoints and (finished % save_every == 0 or finished == steps):
                while late:  # a state whose loss is not finite is not worth keeping
                    report()
                with uninterrupted():
                    checkpoints.save(state)
            if on_state and every and (finished % every == 0 or finished == steps):
                on_state(state)
        while late:
            report()
    except KeyboardInterrupt:
        while late:
            report()
        if checkpoints and finished > first:
            checkpoints.save(state)
        raise
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        raise TrainingError(
            f"the devices' memory is too small: {brief(e)}. Smaller batches (gradient accumulation makes up for them), "
            "gradient checkpointing, a lower resolution or bfloat16 need less"
        ) from e
    return state
