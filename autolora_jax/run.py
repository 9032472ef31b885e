"""A batch of images on its way through its steps: the host's tables, a stretch at a time, for the sampler's program."""

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from autolora_jax.guidance import COLUMNS, KINDS, SHARES, TOLD, Plan
from autolora_jax.sampler import STRETCH, Axes, Images, Kept, Model, Numbers, State, Steps, Tree, advance, noised
from autolora_jax.schedules import Known, Schedule
from autolora_jax.sharding import replicated, split_axes, split_images

KIND_OF = np.array([KINDS.index(branch.weights) for branch in COLUMNS])


class Calls(NamedTuple):
    """The evaluations of some steps as calls of the network, each for one kind of weights and 1 or 2 prompts at once.

    A step makes its first `made` calls; what stands behind them is not looked at. Which calls are made is data, how
    many prompts one takes is part of a program's shape: two wherever every kind of weights reads two, else one.
    """

    made: np.ndarray  # int32 [steps]
    kinds: np.ndarray  # [steps calls], index into KINDS
    columns: np.ndarray  # int32 [steps calls prompts], index into COLUMNS
    coefficients: np.ndarray  # float32 [n steps calls prompts sums]


def paired(plan: Plan) -> np.ndarray:
    """bool [steps]: whether a step's calls take both prompts at once. First ones without calls are as what follows."""
    both = np.concatenate([np.full(segment.steps, segment.paired) for segment in plan.segments])
    silent = int(np.argmax(plan.active.any(axis=1)))
    return np.where(np.arange(len(both)) < silent, both[silent], both)


def calls(plan: Plan, first: int, last: int) -> Calls:
    """The calls of the steps first … last - 1, which are all paired or all not."""
    prompts = 2 if paired(plan)[first] else 1
    active, rows = plan.active[first:last], plan.table[:, first:last]
    shape = last - first, len(COLUMNS) // prompts, prompts
    columns = np.zeros(shape, np.int32)
    for step, on in zip(columns, active, strict=True):
        used = np.flatnonzero(on).reshape(-1, prompts)
        step[: len(used)] = used
    taken = np.take_along_axis(rows, columns.reshape(1, last - first, 1, -1), axis=3)  # [n steps sums calls·prompts]
    coefficients = np.moveaxis(taken, 2, 3).reshape(len(rows), *shape, -1)
    return Calls(active.sum(axis=1, dtype=np.int32) // prompts, KIND_OF[columns[..., 0]], columns, coefficients)


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
        skipped: np.ndarray | None = None,
        picture: Any = None,
        mask: np.ndarray | None = None,
    ) -> None:
        """All arrays are the host's and lead with the images, in the order in which devices take them.

        scales: kind of weights -> LoRA scales [b, steps or 1, loras]; kinds without are the base.
        told: kind of weights -> network keyword -> [b 2 ...] (negative, positive). noise: [b h w c], unit variance.
        step_noise: [b steps h w c], for stochastic solvers. rescale: guidance_rescale [b].
        skipped: bool [layers], those that a plan with skip-layer guidance skips.
        picture: latents [b h w c] on the devices that the run begins with; the schedule says how. mask: [b h w 1], 1
            where it is drawn anew; None: everywhere.
        """
        self.network, self.mesh, self.model = network, mesh, model
        self.plan, self.schedule, self.scales, self.step_noise = plan, schedule, scales, step_noise
        self.total, self.done = len(schedule.timestep), 0
        put = partial(jax.device_put, device=split_images(mesh))
        z = np.asarray(noise, np.float32)
        x: Any = schedule.initial_scale * z
        if schedule.known is not None:
            x = noised(picture, z := put(z), Known(*(level[0] for level in schedule.known)))
        zeros = np.zeros(len(x), np.float32)
        kept = None if mask is None else Kept(picture, z, mask)
        layers = None if skipped is None else np.tile(skipped, (len(x), 1))
        images = Images(_by_column(told), zeros if rescale is None else rescale, kept, layers)
        quiet = np.zeros((len(x), STRETCH, *x.shape[1:]), np.float32)
        self.images, self.state, self._quiet = put(images), put(State(x, *_fresh(x, np))), put(quiet)

    @cached_property
    def _axes(self) -> Axes:
        axes = split_axes(self.model.params)
        return axes if any(axis is not None for axis in axes) else ()

    def advance(self, most: int = STRETCH) -> int:
        """Sets the devices to work on the next steps, at most so many, and says how many these are."""
        last = min(self.done + max(1, min(most, STRETCH)), self.total)
        both = paired(self.plan)[self.done : last]
        last = self.done + int(np.argmax(np.append(both != both[0], True)))  # a program takes one or two prompts
        self.state = self._call(*self._tables(self.done, last))
        count, self.done = last - self.done, last
        return count

    def stand(self, step: int, x: jax.Array) -> None:
        """Puts the images before a step, their latents [b h w c] on the devices; what a solver remembers is nothing."""
        self.state, self.done = State(x, *_fresh(x, jnp)), step

    def rehearse(self, both: bool) -> State:
        """The state, moved by no step: compiles the program for steps that are `paired`, or for those that are not."""
        first = int(np.argmax(paired(self.plan) == both))
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
        made, steps = calls(self.plan, first, last), slice(first, last)
        loras = max((values.shape[-1] for values in self.scales.values()), default=1)
        scales = np.zeros((len(made.coefficients), *made.kinds.shape, loras), np.float32)  # [b steps calls loras]
        for kind, values in self.scales.items():
            of_steps = np.broadcast_to(values, (len(values), self.total, loras))[:, steps, None]
            scales = np.where((made.kinds == KINDS.index(kind))[..., None], of_steps, scales)
        # What a picture is made again after each step is of a run with a mask alone: others share one program.
        known = None if self.images.kept is None else Known(*(level[1:] for level in self.schedule.known or ()))
        table = jax.tree.map(
            lambda a: a[steps] if a.ndim else np.full(last - first, a), self.schedule._replace(known=known)
        )
        adapted = scales.any(axis=(0, 3))
        shared = Steps(np.int32(last - first), *_room((table, made.made, adapted, made.columns), 0))
        noise = self._quiet if self.step_noise is None else _room(self.step_noise[:, steps], 1)
        coefficients, held, scales = _room((made.coefficients, self._held[:, steps], scales), 1)
        forms = jax.tree.map(lambda a: _room(a[:, steps], 1), self.plan.forms)
        return shared, Numbers(coefficients, held, forms, scales, noise)

    @cached_property
    def _held(self) -> np.ndarray:
        """How much of a share stays [b steps SHARES], with momentum, whose unit is the denoised picture."""
        unit = np.broadcast_to(self.schedule.denoised_from_prediction, (self.total,))
        ratio = np.append(np.float32(1), unit[:-1] / unit[1:])
        held: np.ndarray = self.plan.held + self.plan.momentum * ratio[:, None]
        return held


def _fresh(x: Any, of: Any) -> tuple[Any, Any, Any]:
    """What a run remembers beside its latents [b h w c] where nothing was, as arrays of numpy's or jax.numpy's."""
    nothing = of.zeros(x.shape, np.float32)
    return nothing, nothing, of.zeros((len(x), SHARES, *x.shape[1:]), np.float32)


def _room(tree: Any, axis: int) -> Any:
    """Arrays with the axis of steps filled up to STRETCH."""

    def fill(a: np.ndarray) -> np.ndarray:
        return np.pad(a, [(0, STRETCH - n if i == axis else 0) for i, n in enumerate(a.shape)])

    return jax.tree.map(fill, tree)


def _by_column(told: Mapping[str, Tree]) -> dict[str, np.ndarray]:
    """Network keyword -> [b told ...]; zeros where a column's kind of weights is never asked."""
    like = next(iter(told.values()))
    return {
        name: np.stack(
            [told[c.weights][name][:, c.prompt] if c.weights in told else np.zeros_like(a[:, 0]) for c in TOLD], 1
        )
        for name, a in like.items()
    }
