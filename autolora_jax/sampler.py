"""The one program: it moves latents over a stretch of a run's steps. Compiled once per (network, shapes, mesh).

    host      plan, schedule, scales ──▶ Run ─── stretch(first, count) ──▶ tables of at most STRETCH steps
                                          │                                          │
    device    state (x, denoised) ──▶ advance ◀──────────────────────────────────────┘
              for every step:    for every call of it:  ê += Σ_b c_b · e(x; prompt_b, LoRA at its scale)
                                 ê += shares of guidance that are kept from other steps, or formed, see forms
                                 D = the denoised picture that ê implies   linear in (x, ê), see schedules
                                 x = the solver's step                   linear in (x, the last three D, noise)
                                 where a mask keeps a picture: x = that picture, noised alike

Static: the network, the mesh, shapes. All else is an argument, loop bounds, too: how many steps, which calls a step
makes, prompts, coefficients, LoRA scales by step, the solver. So no new value compiles, and what is not called is not
computed. Between stretches the host may report, look at the state, or stop; no program calls back. State and step
arithmetic are float32 whatever the network computes in.

The prompts of a call are a vmap over one network; weights as they are stored and weights with a delta are two calls of
the network in one program, which moves fewer bytes than one vmap over both (benchmarks/tpu_compile.py): the first reads
the stored kernels, the second a copy that is kept (tuned.py) or builds `W + down·up` layer by layer. The scales come
from the tables by step and call: a kernel that did not depend on a loop's counter would be hoisted out of it by XLA and
materialise a second model.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from autolora_jax import guidance, lora
from autolora_jax.forms import Forms
from autolora_jax.forms import guided as guided_by
from autolora_jax.guidance import COLUMNS, SHARES, TOLD_AS
from autolora_jax.schedules import Known, Schedule
from autolora_jax.settings.rules import LORA_POS, SKIP_POS
from autolora_jax.sharding import Axes, map_images, part_specs, put_together

Tree = Mapping[str, Any]
Values = Any  # an array: numpy before a call, traced inside
STRETCH = 8  # most steps of one call of `advance`


class Model(NamedTuple):
    """The network's weights, and with LoRAs what makes them the tuned ones: a stacked delta tree, or a copy."""

    params: Tree
    lora: Tree  # {} without LoRAs, or where `tuned` has them
    tuned: Tree  # {} where they are merged; else like `params`, the LoRAs in it at the scales of the run; see tuned.py


class Steps(NamedTuple):
    """What a stretch of `steps` steps does, the same for all images. All else leads with [STRETCH]."""

    steps: Values  # int32 []
    schedule: Schedule
    calls: Values  # int32 [steps]
    adapted: Values  # bool [steps calls]: whether any image of the batch has a LoRA there
    columns: Values  # int32 [steps calls prompts]: what a call reads, see guidance.COLUMNS


class Kept(NamedTuple):
    """A picture of which a mask keeps a part."""

    picture: Values  # latents [b h w c]
    noise: Values  # that the run began with [b h w c], unit variance
    mask: Values  # [b h w 1]: 1 where it is drawn anew, 0 where it is kept


class Images(NamedTuple):
    """What belongs to each image for a whole run: every leaf leads with [b]."""

    told: Tree  # network keyword -> [b told ...], see guidance.TOLD
    rescale: Values  # [b] guidance_rescale
    kept: Kept | None = None
    skipped: Values | None = None  # bool [b layers], with skip-layer guidance


class Numbers(NamedTuple):
    """What belongs to each image in a stretch: every leaf leads with [b STRETCH]."""

    coefficients: Values  # [b steps calls prompts sums], see guidance.Plan.table
    held: Values  # [b steps SHARES]: how much of a share stays
    forms: Forms  # [b steps SHARES]
    scales: Values  # [b steps calls loras]; images of one device agree, and share its merged kernels
    step_noise: Values  # [b steps h w c], unit variance


class State(NamedTuple):
    """Where a run stands, float32 [b h w c]."""

    x: Values
    denoised: Values  # the picture that the last step saw in it
    earlier: Values  # the picture that the step before that saw
    shares: Values  # [b SHARES h w c]: what guidance adds to a prediction, as far as it is kept apart


@jax.jit
def noised(picture: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], known: Known) -> Float[Array, "b h w c"]:
    """Latents of pictures with as much noise as the schedule says, one value of its `known`."""
    return known.picture * picture + known.noise * noise


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
    parts = part_specs(model.params, axes) if axes else same
    specs = (Model(parts, same, parts if model.tuned else same) if axes else same, same)
    mapped = map_images(partial(_advance, network, axes), mesh, specs)
    result: State = mapped((model, steps), (images, numbers, state))
    return result


def _advance(
    network: nn.Module, axes: Axes, shared: tuple[Model, Steps], images: tuple[Images, Numbers, State]
) -> State:
    (model, steps), (images_, numbers, state) = shared, images

    def step(i: Array, state: State) -> State:
        x, before, earlier, shares = state
        table = jax.tree.map(lambda a: a[i], steps.schedule)
        evaluate = partial(_evaluate, network, axes, model, images_, table.input_scale * x, table.timestep)

        def call(c: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            fresh, reference = sums
            columns = steps.columns[i, c]
            e = evaluate(columns, numbers.scales[0, i, c], steps.adapted[i, c], reference)
            own = jnp.broadcast_to(columns == COLUMNS.index(LORA_POS), (len(x), len(columns))).astype(jnp.float32)
            return (
                fresh + guidance.combine(e, numbers.coefficients[:, i, c]),
                reference + guidance.combine(e, own),
            )

        sums = jnp.shape(numbers.coefficients)[-1]
        nothing = jnp.zeros((len(x), sums, *x.shape[1:])), jnp.zeros_like(x)
        fresh, reference = jax.lax.fori_loop(0, steps.calls[i], call, nothing)
        held = numbers.held[:, i].reshape(*shares.shape[:2], 1, 1, 1)
        shares = held * shares + fresh[:, 1 : 1 + SHARES]
        noisy, factor = table.denoised_from_x * x, table.denoised_from_prediction
        forms = jax.tree.map(lambda a: a[:, i], numbers.forms)
        guided = guided_by(fresh[:, 0], shares, forms, noisy, factor)
        if images_.skipped is not None:  # another program, too
            guided = guided + fresh[:, -1]
        denoised = noisy + factor * guidance.rescale(guided, reference, jnp.asarray(images_.rescale))
        x = table.keep * x + table.toward * denoised + table.previous * before + table.earlier * earlier
        x = x + table.fresh * numbers.step_noise[:, i]
        if (kept := images_.kept) is not None:  # another program: without a mask nothing is blended
            known = noised(kept.picture, kept.noise, table.known)
            x = (1 - kept.mask) * known + kept.mask * x
        return State(x, denoised, before, shares)

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
    told = jax.tree.map(lambda a: jnp.take(a, jnp.asarray(TOLD_AS)[columns], axis=1), images.told)
    if images.skipped is not None:
        skipping = (columns == COLUMNS.index(SKIP_POS))[None, :, None]
        told = {**told, "skipped": jnp.asarray(images.skipped)[:, None] & skipping}  # [b prompts layers]

    def predict(tuned: bool) -> Array:
        params = model.tuned if tuned and model.tuned else model.params
        variables = {"params": put_together(params, axes, when)}
        if tuned and model.lora:
            variables["lora"] = lora.at_scale(model.lora, scales)

        def one(told: Tree) -> Array:
            return network.apply(variables, x, timesteps, **told)

        return jax.vmap(one, in_axes=1)(told).astype(jnp.float32)

    if not (model.lora or model.tuned):
        return predict(False)
    result: Array = jax.lax.cond(adapted, partial(predict, True), partial(predict, False))
    return result
