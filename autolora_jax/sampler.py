"""The one program: it moves latents over a stretch of a run's steps. Compiled once per (network, shapes, mesh).

    host      plan, schedule, scales ──▶ Run ─── stretch(first, count) ──▶ tables of at most STRETCH steps
                                          │                                          │
    device    state (x, denoised) ──▶ advance ◀──────────────────────────────────────┘
              for every step:    for every call of it:  ê += Σ_b c_b · e(x; prompt_b, LoRA at its scale)
                                 D = the denoised picture that ê implies   linear in (x, ê), see schedules
                                 x = the solver's step                   linear in (x, D, previous D, noise)

Static: the network, the mesh, shapes. All else is an argument, loop bounds, too: how many steps, which calls a step
makes, prompts, coefficients, LoRA scales by step, the solver. So no new value compiles, and what is not called is not
computed. Between stretches the host may report, look at the state, or stop; no program calls back. State and step
arithmetic are float32 whatever the network computes in.

The prompts of a call are a vmap over one network; weights as they are stored and weights with a delta are two calls of
the network in one program, which moves fewer bytes than one vmap over both (benchmarks/tpu_compile.py): the first reads
the stored kernels, the second builds `W + down·up` layer by layer. The scales come from the tables by step and call: a
kernel that did not depend on a loop's counter would be hoisted out of it by XLA and materialise a second model.
"""

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from autolora_jax import guidance, lora
from autolora_jax.guidance import COLUMNS, KINDS, LORA_POS, Plan
from autolora_jax.schedules import Schedule
from autolora_jax.sharding import Axes, map_images, part_specs, put_together, replicated, split_axes, split_images

Tree = Mapping[str, Any]
Values = Any  # an array: numpy before a call, traced inside
STRETCH = 8  # most steps of one call of `advance`


class Model(NamedTuple):
    """The network's weights and the stacked delta tree, {} without LoRA."""

    params: Tree
    lora: Tree


class Steps(NamedTuple):
    """What a stretch of `steps` steps does, the same for all images. All else leads with [STRETCH]."""

    steps: Values  # int32 []
    schedule: Schedule
    calls: Values  # int32 [steps]
    adapted: Values  # bool [steps calls]: whether any image of the batch has a LoRA there
    columns: Values  # int32 [steps calls prompts]: what a call reads, see guidance.COLUMNS


class Images(NamedTuple):
    """What belongs to each image for a whole run: every leaf leads with [b]."""

    told: Tree  # network keyword -> [b columns ...]
    rescale: Values  # [b] guidance_rescale


class Numbers(NamedTuple):
    """What belongs to each image in a stretch: every leaf leads with [b STRETCH]."""

    coefficients: Values  # [b steps calls prompts]
    scales: Values  # [b steps calls loras]; images of one device agree, and share its merged kernels
    step_noise: Values  # [b steps h w c], unit variance


class State(NamedTuple):
    """Where a run stands, float32 [b h w c]."""

    x: Values
    denoised: Values  # the picture that the last step saw in it


@partial(jax.jit, static_argnames=("network", "mesh", "axes"))
def advance(
    network: nn.Module,
    mesh: Mesh,
    model: Model,
    steps: Steps,
    images: Images,
    numbers: Numbers,
    state: State,
    axes: Axes = (),
) -> State:
    """The state after a stretch. Images are split over the mesh's devices; b is a multiple of their number.

    axes: sharding.split_axes of the weights; (): they lie whole on every device.
    """
    same: Any = PartitionSpec()
    specs = (Model(part_specs(model.params, axes), same) if axes else same, same)
    mapped = map_images(partial(_advance, network, axes), mesh, specs)
    result: State = mapped((model, steps), (images, numbers, state))
    return result


def _advance(
    network: nn.Module, axes: Axes, shared: tuple[Model, Steps], images: tuple[Images, Numbers, State]
) -> State:
    (model, steps), (images_, numbers, state) = shared, images

    def step(i: Array, state: State) -> State:
        x, before = state
        table = jax.tree.map(lambda a: a[i], steps.schedule)
        evaluate = partial(_evaluate, network, axes, model, images_, table.input_scale * x, table.timestep)

        def call(c: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            guided, reference = sums
            columns = steps.columns[i, c]
            e = evaluate(columns, numbers.scales[0, i, c], steps.adapted[i, c], guided)
            own = jnp.broadcast_to(columns == COLUMNS.index(LORA_POS), (len(x), len(columns))).astype(jnp.float32)
            return (
                guided + guidance.combine(e, numbers.coefficients[:, i, c]),
                reference + guidance.combine(e, own),
            )

        nothing = jnp.zeros_like(x)
        guided, reference = jax.lax.fori_loop(0, steps.calls[i], call, (nothing, nothing))
        guided = guidance.rescale(guided, reference, jnp.asarray(images_.rescale))
        denoised = table.denoised_from_x * x + table.denoised_from_prediction * guided
        x = table.keep * x + table.toward * denoised + table.previous * before
        return State(x + table.fresh * numbers.step_noise[:, i], denoised)

    result: State = jax.lax.fori_loop(0, steps.steps, step, state)
    return result


def _evaluate(
    network: nn.Module,
    axes: Axes,
    model: Model,
    images: Images,
    x: Array,
    timestep: Array,
    columns: Array,
    scales: Array,
    adapted: Array,
    when: Array,
) -> Float[Array, "p b h w c"]:
    """The network's predictions for the prompts `columns`, float32. when: see sharding.put_together."""
    timesteps = jnp.full(x.shape[:1], timestep)
    told = jax.tree.map(lambda a: jnp.take(a, columns, axis=1), images.told)

    def predict(with_delta: bool) -> Array:
        variables = {"params": put_together(model.params, axes, when)}
        if with_delta:
            variables["lora"] = lora.at_scale(model.lora, scales)

        def one(told: Tree) -> Array:
            return network.apply(variables, x, timesteps, **told)

        return jax.vmap(one, in_axes=1)(told).astype(jnp.float32)

    if not model.lora:
        return predict(False)
    result: Array = jax.lax.cond(adapted, partial(predict, True), partial(predict, False))
    return result


class Run:
    """A batch on its way through its steps. The host drives it: see `advance`, which never waits for the devices."""

    def __init__(
        self,
        network: nn.Module,
        mesh: Mesh,
        model: Model,
        plan: Plan,
        schedule: Schedule,
        scales: Mapping[str, np.ndarray],
        told: Mapping[str, Tree],
        noise: np.ndarray,
        step_noise: np.ndarray | None = None,
        rescale: np.ndarray | None = None,
    ) -> None:
        """All arrays are the host's and lead with the images, in the order in which devices take them.

        scales: kind of weights -> LoRA scales [b, steps or 1, loras]; kinds without are the base.
        told: kind of weights -> network keyword -> [b 2 ...] (negative, positive). noise: [b h w c], unit variance.
        step_noise: [b steps h w c], for stochastic solvers. rescale: guidance_rescale [b].
        """
        self.network, self.mesh, self.model = network, mesh, model
        self.plan, self.schedule, self.scales, self.step_noise = plan, schedule, scales, step_noise
        self.total, self.done = len(schedule.timestep), 0
        x = schedule.initial_scale * np.asarray(noise, np.float32)
        zeros = np.zeros(len(x), np.float32)
        images = Images(_by_column(told), zeros if rescale is None else rescale)
        quiet = np.zeros((len(x), STRETCH, *x.shape[1:]), np.float32)
        put = partial(jax.device_put, device=split_images(mesh))
        self.images, self.state, self._quiet = put(images), put(State(x, np.zeros_like(x))), put(quiet)

    @cached_property
    def _axes(self) -> Axes:
        axes = split_axes(self.model.params)
        return axes if any(axis is not None for axis in axes) else ()

    def advance(self, most: int = STRETCH) -> int:
        """Sets the devices to work on the next steps, at most so many, and says how many these are."""
        last = min(self.done + max(1, min(most, STRETCH)), self.total)
        paired = self.plan.paired[self.done : last]
        last = self.done + int(np.argmax(np.append(paired != paired[0], True)))  # a program takes one or two prompts
        self.state = self._call(*self._tables(self.done, last))
        count, self.done = last - self.done, last
        return count

    def rehearse(self, paired: bool) -> State:
        """The state, moved by no step: compiles the program for steps that are `plan.paired`, or are not."""
        first = int(np.argmax(self.plan.paired == paired))
        steps, numbers = self._tables(first, first + 1)
        return self._call(steps._replace(steps=np.int32(0)), numbers)

    def _call(self, steps: Steps, numbers: Numbers) -> State:
        steps = jax.device_put(steps, replicated(self.mesh))
        numbers = jax.device_put(numbers, split_images(self.mesh))
        result: State = advance(
            self.network, self.mesh, self.model, steps, self.images, numbers, self.state, axes=self._axes
        )
        return result

    def _tables(self, first: int, last: int) -> tuple[Steps, Numbers]:
        calls, steps = self.plan.calls(first, last), slice(first, last)
        loras = max((values.shape[-1] for values in self.scales.values()), default=1)
        scales = np.zeros((len(calls.coefficients), *calls.kinds.shape, loras), np.float32)  # [b steps calls loras]
        for kind, values in self.scales.items():
            of_steps = np.broadcast_to(values, (len(values), self.total, loras))[:, steps, None]
            scales = np.where((calls.kinds == KINDS.index(kind))[..., None], of_steps, scales)
        table = jax.tree.map(lambda a: a[steps] if a.ndim else np.full(last - first, a), self.schedule)
        adapted = scales.any(axis=(0, 3))
        shared = Steps(np.int32(last - first), *_room((table, calls.made, adapted, calls.columns), 0))
        noise = self._quiet if self.step_noise is None else _room(self.step_noise[:, steps], 1)
        coefficients, scales = _room((calls.coefficients, scales), 1)
        return shared, Numbers(coefficients, scales, noise)


def _room(tree: Any, axis: int) -> Any:
    """Arrays with the axis of steps filled up to STRETCH."""

    def fill(a: np.ndarray) -> np.ndarray:
        return np.pad(a, [(0, STRETCH - n if i == axis else 0) for i, n in enumerate(a.shape)])

    return jax.tree.map(fill, tree)


def _by_column(told: Mapping[str, Tree]) -> dict[str, np.ndarray]:
    """Network keyword -> [b columns ...]; zeros where a column's kind of weights is never asked."""
    like = next(iter(told.values()))
    return {
        name: np.stack(
            [told[c.weights][name][:, c.prompt] if c.weights in told else np.zeros_like(a[:, 0]) for c in COLUMNS], 1
        )
        for name, a in like.items()
    }
