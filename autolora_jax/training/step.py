"""One training step as one program: losses of a batch, gradients of the trainable tree alone, an optimizer's update.

A batch leads with [accumulation, rows]: the micro-batches are summed by a scan, their rows split over the devices,
whose gradients meet in one mean. What is frozen has no gradient and no optimizer state.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from autolora_jax.sharding import IMAGES, map_gradients

Tree = Mapping[str, Any]
# (trainable, frozen, rows) -> ([b] losses, name -> [b]). Static, so a frozen dataclass or a function that is made once.
Loss = Callable[[Any, Any, Any], tuple[Float[Array, "b"], Mapping[str, Float[Array, "b"]]]]


class State(NamedTuple):
    """All that changes while training, and so all that a resumed run needs."""

    step: Int[Array, ""]  # finished steps
    trainable: Any  # float32 masters
    optimizer: Any
    average: Any  # exponential moving average of `trainable`; None where it is not kept


def initial_state(trainable: Any, optimizer: optax.GradientTransformation, average: bool = False) -> State:
    """State before the first step. trainable: a tree, cast to float32."""
    trainable = jax.tree.map(lambda x: jnp.array(x, jnp.float32), trainable)
    copy = jax.tree.map(jnp.copy, trainable) if average else None
    return State(jnp.zeros((), jnp.int32), trainable, jax.jit(optimizer.init)(trainable), copy)


@partial(jax.jit, static_argnames=("loss", "optimizer", "mesh", "decay"), donate_argnames="state")
def train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: State,
    frozen: Any,
    batch: Any,
    decay: float = 0.0,
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """(the next state, metrics: "loss", "gradient_norm" and what the loss reports, means over the batch).

    batch: every leaf [accumulation, rows, ...]; rows are a multiple of the devices.
    decay: of the moving average, warmed up: min(decay, (1 + step) / (10 + step)).
    """
    metrics, gradients = map_gradients(partial(_gradients, loss), mesh)((state.trainable, frozen), batch)
    metrics["gradient_norm"] = optax.global_norm(gradients)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    average = state.average
    if average is not None:
        step = state.step.astype(jnp.float32)
        rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
        average = optax.incremental_update(trainable, average, rate)
    return State(state.step + 1, trainable, optimizer_state, average), metrics


def _gradients(loss: Loss, parameters: tuple[Any, Any], batch: Any) -> tuple[dict[str, Array], Any]:
    """(metrics, gradients) of this device's rows, averaged over micro-batches and devices."""
    trainable, frozen = parameters

    def mean_loss(trainable: Any, rows: Any) -> tuple[Array, dict[str, Array]]:
        losses, metrics = loss(trainable, frozen, rows)
        return losses.mean(), {"loss": losses.mean(), **{name: value.mean() for name, value in metrics.items()}}

    gradients_of = jax.grad(mean_loss, has_aux=True)

    def add(total: Any, rows: Any) -> tuple[Any, None]:
        gradients, metrics = gradients_of(trainable, rows)
        return jax.tree.map(jnp.add, total, (metrics, gradients)), None

    count = jax.tree.leaves(batch)[0].shape[0]
    if count == 1:  # no loop: the program of a plain step
        gradients, metrics = gradients_of(trainable, jax.tree.map(lambda x: x[0], batch))
        total = metrics, gradients
    else:
        shapes = jax.eval_shape(gradients_of, trainable, jax.tree.map(lambda x: x[0], batch))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[1], shapes[0]))
        total, _ = jax.lax.scan(add, zeros, batch)
    return jax.lax.pmean(jax.tree.map(lambda x: x / count, total), IMAGES)
