"""The one program: initial noise -> latents. A pure function, compiled once per (network, shapes, branches).

    for every step:  ê = Σ_b c_b · e(x; prompt_b, LoRA_b)        guidance.py says which branches, with which numbers
                     D = the denoised picture that ê implies      schedules: linear in (x, ê)
                     x = the solver's step                        schedules: linear in (x, D, previous D, noise)

Static: the network, the mesh, which branches are evaluated on which stretch of steps. Everything else is an argument:
weights, deltas, schedule, coefficients, LoRA scales, prompts, noise. State and step arithmetic are float32 whatever the
network computes in. Branches that share weights are evaluated together by vmap over their prompts; base and tuned
weights are two calls in one program, which moves fewer bytes than one vmap over both (benchmarks/tpu_compile.py): the
base call reads the stored kernels as they are, the tuned call builds `W + down·up` layer by layer.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from autolora_jax import guidance, lora
from autolora_jax.guidance import LORA_POS, Segment
from autolora_jax.schedules import Schedule
from autolora_jax.sharding import Axes, map_images, part_specs, put_together

Tree = Mapping[str, Any]
Values = Array | np.ndarray  # numpy before a call, traced inside


class Shared(NamedTuple):
    """What all images of a call share; the same on every device."""

    params: Tree  # the network's weights
    lora: Tree  # the stacked delta tree, {} without LoRA
    schedule: Schedule  # arrays [steps]
    # kind of weights ("weak", "lora") -> [steps, loras]. Per step, because then the merged kernel depends on the loop's
    # counter: a loop-invariant one would be hoisted out of the scan by XLA and materialise a second model.
    lora_scales: Mapping[str, Values]


class Images(NamedTuple):
    """What belongs to each image: every leaf leads with [b]."""

    noise: Values  # [b h w c], unit variance
    step_noise: Values | None  # [b steps h w c] for stochastic solvers
    conditioning: Mapping[str, Tree]  # kind of weights -> network keyword -> [b 2 ...] (negative, positive)
    coefficients: tuple[Values, ...]  # per segment, [b, segment steps, branches]
    lora_scales: Mapping[str, Values]  # as in Shared, [b, steps, loras], for the kinds that have one scale per image
    rescale: Values | None  # [b] guidance_rescale


class _Step(NamedTuple):
    """What the scan feeds to one step."""

    number: Array
    schedule: Schedule
    shared_scales: Mapping[str, Array]  # [loras]
    image_scales: Mapping[str, Array]  # [b loras]
    coefficients: Array  # [b branches]
    step_noise: Array | None  # [b h w c]


_listeners: list[Callable[[int], None]] = []


def _notify(index: Any) -> None:
    for listener in _listeners:
        listener(int(index))


class step_listener:
    """Context: `listener(step index)` is called as steps finish on a device of this process, when sampling reports."""

    def __init__(self, listener: Callable[[int], None]) -> None:
        self.listener = listener

    def __enter__(self) -> None:
        _listeners.append(self.listener)

    def __exit__(self, *_: object) -> None:
        jax.effects_barrier()
        _listeners.remove(self.listener)


@partial(jax.jit, static_argnames=("network", "segments", "mesh", "report", "axes"))
def sample(
    network: nn.Module,
    segments: tuple[Segment, ...],
    mesh: Mesh,
    shared: Shared,
    images: Images,
    report: bool = False,
    axes: Axes = (),
) -> Float[Array, "b h w c"]:
    """Latents [b h w c], float32, one per image, split over the mesh's devices; b is a multiple of their number.

    report: tell `step_listener`s of every step (asynchronously; the device does not wait).
    axes: sharding.split_axes of the weights; (): they lie whole on every device.
    """
    same: Any = PartitionSpec()
    specs = Shared(part_specs(shared.params, axes), same, same, same) if axes else None
    return map_images(partial(_sample, network, segments, report, axes), mesh, specs)(shared, images)


def _sample(
    network: nn.Module, segments: tuple[Segment, ...], report: bool, axes: Axes, shared: Shared, images: Images
) -> Array:
    x = shared.schedule.initial_scale * images.noise.astype(jnp.float32)
    state = (x, jnp.zeros_like(x))
    first = 0
    for segment, coefficients in zip(segments, images.coefficients, strict=True):
        steps = slice(first, first + segment.steps)
        first += segment.steps
        xs = _Step(
            number=jnp.arange(first)[steps],
            schedule=jax.tree.map(
                lambda a, s=steps: a[s] if a.ndim else jnp.full(s.stop - s.start, a), shared.schedule
            ),
            shared_scales=jax.tree.map(lambda a, s=steps: a[s], shared.lora_scales),
            image_scales=_time_first(images.lora_scales, steps),
            coefficients=_time_first(coefficients, slice(None)),
            step_noise=_time_first(images.step_noise, steps),
        )
        body = partial(_step, network, segment, report, axes, shared, images)
        state, _ = jax.lax.scan(body, state, xs)
    return state[0]


def _time_first(tree: Any, steps: slice) -> Any:
    """[b steps ...] -> [steps b ...], the given steps."""
    return jax.tree.map(lambda a: jnp.moveaxis(a[:, steps], 1, 0), tree)


def _step(
    network: nn.Module,
    segment: Segment,
    report: bool,
    axes: Axes,
    shared: Shared,
    images: Images,
    state: tuple[Array, Array],
    now: _Step,
) -> tuple[tuple[Array, Array], None]:
    x, before = state
    table = now.schedule
    whole = shared._replace(params=put_together(shared.params, axes, x))
    predictions = _predict(network, segment, whole, images, table.input_scale * x, table.timestep, now)
    guided = guidance.combine(predictions, now.coefficients)
    if images.rescale is not None:
        reference = predictions[segment.branches.index(LORA_POS)]
        guided = guidance.rescale(guided, reference, jnp.asarray(images.rescale))
    denoised = table.denoised_from_x * x + table.denoised_from_prediction * guided
    x = table.keep * x + table.toward * denoised + table.previous * before
    if now.step_noise is not None:
        x = x + table.fresh * now.step_noise
    if report:
        jax.debug.callback(_notify, now.number)
    return (x, denoised), None


def _predict(
    network: nn.Module, segment: Segment, shared: Shared, images: Images, x: Array, timestep: Array, now: _Step
) -> Float[Array, "k b h w c"]:
    """The segment's branches, in its order, float32."""
    timesteps = jnp.full(x.shape[:1], timestep)
    scales = {**now.shared_scales, **now.image_scales}
    predictions = []
    for weights, group in groupby(segment.branches, key=lambda branch: branch.weights):
        prompts = jnp.array([branch.prompt for branch in group])
        variables = {"params": shared.params}
        if weights in scales:
            variables["lora"] = lora.at_scale(shared.lora, scales[weights])
        conditioning = jax.tree.map(lambda a, p=prompts: jnp.take(a, p, axis=1), images.conditioning[weights])

        def predict(conditioning: Tree, variables: Tree = variables) -> Array:
            return network.apply(variables, x, timesteps, **conditioning)

        predictions.append(jax.vmap(predict, in_axes=1)(conditioning).astype(jnp.float32))
    return jnp.concatenate(predictions)
