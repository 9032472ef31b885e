"""Guidance as a table of branches: ê(x_t) = Σ_b c_b · e(x_t; prompt_b, LoRA scale s_b), with Σ_b c_b = 1.

Because Σ c_b = 1 the sum commutes with every affine change between ε, v, flow velocity and x0: no rule needs to know
what its network predicts, nor the sampler the rule. The table is data, one row per image and step, and so is which of
its branches a step evaluates: a branch whose coefficient is zero for every image at a step is not computed there. The
rules, whose coefficients these are, stand in settings.rules. A step whose row is empty predicts zero (CFG-Zero*'s first
ones), which is for networks that predict a velocity: the picture stays where it is.

A rule that is refreshed every few steps is not one sum but several: the tuned model's, and shares that guidance adds to
it, each with Σ c_b = 0. A share is kept until it is evaluated anew.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from autolora_jax.forms import Forms
from autolora_jax.settings.rules import (
    BASE_NEG,
    BASE_POS,
    LORA_NEG,
    LORA_POS,
    SKIP_POS,
    WEAK_NEG,
    ZEROED,
    Branch,
    Coefficients,
    Rule,
    Skip,
)

COLUMNS = (BASE_NEG, BASE_POS, WEAK_NEG, LORA_NEG, LORA_POS, SKIP_POS)
TOLD = tuple(branch for branch in COLUMNS if not branch.skipping)  # what is told something of its own
TOLD_AS = np.array([TOLD.index(branch._replace(skipping=False)) for branch in COLUMNS])
KINDS = ("base", "weak", "lora")  # of weights, as in COLUMNS
SHARES = 2  # most that a rule has: what CFG adds, and what is added to that


class Segment(NamedTuple):
    """Consecutive steps that evaluate the same branches."""

    steps: int
    branches: tuple[Branch, ...]

    @property
    def paired(self) -> bool:
        """Whether every kind of weights that is evaluated is so twice: reads both prompts."""
        return set(Counter(branch.weights for branch in self.branches).values()) == {2}


class Plan(NamedTuple):
    """What the sampler computes, and with which numbers."""

    # float32 [n steps sums columns]: of the prediction, of what is added to each share, and, where layers are skipped,
    # of what is added to it all
    table: np.ndarray
    held: np.ndarray  # float32 [n steps SHARES]: how much of a share is kept from the step before
    momentum: np.ndarray  # float32 [n steps SHARES]: the same, as a change of the denoised picture
    forms: Forms  # float32 [n steps SHARES]
    active: np.ndarray  # bool [steps columns]: whether any image uses it
    weak_factor: np.ndarray  # ω, float32 [n]

    @property
    def weights(self) -> tuple[str, ...]:
        """The kinds of weights that any step evaluates, in KINDS' order."""
        used = {COLUMNS[c].weights for c in np.flatnonzero(self.active.any(axis=0))}
        return tuple(kind for kind in KINDS if kind in used)

    def of(self, index: np.ndarray) -> "Plan":
        """The plan of some of the images; branches that others need are evaluated all the same."""
        own = {name: of_all for name, of_all in self._asdict().items() if name != "active"}
        return self._replace(**jax.tree.map(lambda a: a[index], own))

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The run as stretches that evaluate the same branches."""
        edges = [0, *(np.flatnonzero((self.active[1:] != self.active[:-1]).any(axis=1)) + 1), len(self.active)]
        return tuple(
            Segment(int(last - first), tuple(COLUMNS[c] for c in np.flatnonzero(self.active[first])))
            for first, last in itertools.pairwise(edges)
        )


def plan(rules: Rule | Sequence[Rule], n: int, steps: int, reference: bool = False, skip: Skip | None = None) -> Plan:
    """The branch table of n images over `steps` steps.

    rules: one rule for all images (its values may be sequences, one per image), or one rule per image: a batch may mix
        kinds of guidance, every image then pays for the union of the branches.
    reference: always evaluate LoRA,+ (guidance_rescale compares with it). skip: skip-layer guidance.
    Raises ValueError when a sequence does not have n values, or a rule leaves every step at zero.
    """
    per_image = [_image_rule(rules, i, n) for i in range(n)]
    numbers = [np.zeros((n, steps, 1 + SHARES + (skip is not None), len(COLUMNS)))]
    numbers += [np.full((n, steps, SHARES), usual) for usual in (0.0, 0.0, *Forms())]
    for i, rule in enumerate(per_image):
        first, last = int(rule.start * steps), int(rule.stop * steps)
        zeroed = rule.zeroed()
        if zeroed >= steps:
            raise ValueError(f"{ZEROED}={zeroed} of {steps} steps leaves none that draws; give fewer")
        stretches = (0, first, rule.outside()), (first, last, rule), (last, steps, rule.outside())
        for begin, end, holds in stretches:
            _fill(holds, *(array[i, max(begin, zeroed) : end] for array in numbers))
        if skip is not None:
            on = [k for k in range(zeroed, steps) if skip.start * steps < k < skip.stop * steps]
            scale = float(np.broadcast_to(skip.scale, (n,))[i])
            numbers[0][i, on, -1] = _row({LORA_POS: scale, SKIP_POS: -scale})
    table, held, momentum, *forms = (array.astype(np.float32) for array in numbers)
    active = (numbers[0] != 0).any(axis=(0, 2))  # [steps, columns]
    if reference:
        active[:, COLUMNS.index(LORA_POS)] |= active.any(axis=1)
    omega = np.array([r.weak_factor() for r in per_image], np.float32)
    return Plan(table, held, momentum, Forms(*forms), active, omega)


def _fill(rule: Rule, table: np.ndarray, held: np.ndarray, momentum: np.ndarray, *forms: np.ndarray) -> None:
    """The rows of a stretch of steps that one rule of one image holds in."""
    shares = tuple(rule.shares())
    if not rule.formed and all(share.every == 1 for share in shares):
        table[:, 0] = _row(rule.coefficients())
        return
    table[:, 0] = _row({LORA_POS: 1.0})
    due = np.zeros(len(table), bool)
    for j, share in reversed([*enumerate(shares)]):
        due = due | (np.arange(len(table)) % share.every == 0)  # an outer one's branches are an inner one's, too
        table[due, 1 + j], held[~due, j] = _row(share.coefficients), 1.0
        momentum[np.flatnonzero(due)[1:], j] = share.momentum
        for array, number in zip(forms, Forms(share.gain, share.longest, share.parallel, share.fitted), strict=True):
            array[:, j] = number


def _row(coefficients: Coefficients) -> list[float]:
    return [coefficients.get(branch, 0.0) for branch in COLUMNS]


def _image_rule(rules: Rule | Sequence[Rule], i: int, n: int) -> Rule:
    if not isinstance(rules, Rule):
        if len(rules) != n:
            raise ValueError(f"guidance has {len(rules)} rules for {n} images; give one rule, or one per image")
        return rules[i]
    for field in dataclasses.fields(rules):
        value = getattr(rules, field.name)
        if isinstance(value, tuple) and len(value) != n:
            raise ValueError(
                f"guidance {field.name} has {len(value)} values for {n} images; give one, or one per image"
            )
    return rules.at(i)


def combine(
    predictions: Float[Array, "k b h w c"], coefficients: Float[Array, "b k *sums"]
) -> Float[Array, "b *sums h w c"]:
    """Σ_b c_b · e_b, per image, in float32; several sums at once where each has its coefficients."""
    return jnp.einsum("kbhwc,bk...->b...hwc", predictions, coefficients, precision="highest")


def rescale(
    guided: Float[Array, "b h w c"], reference: Float[Array, "b h w c"], amount: Float[Array, "b"]
) -> Float[Array, "b h w c"]:
    """Pulls the guided prediction's standard deviation towards the reference's (the tuned model's, with the prompt).

    amount: 0 = off, 1 = fully. Source: arXiv 2305.08891 section 3.4; diffusers rescale_noise_cfg (unbiased std).
    """
    axes = tuple(range(1, guided.ndim))
    spread = jnp.std(guided, axis=axes, ddof=1)  # [b]
    ratio = jnp.std(reference, axis=axes, ddof=1) / jnp.where(spread == 0, 1, spread)  # a prediction of zero stays so
    factor = jnp.where(amount == 0, 1, amount * ratio + (1 - amount))  # off: whatever the reference is
    return guided * factor.reshape(-1, *(1,) * (guided.ndim - 1))


def evaluations(segments: Sequence[Segment]) -> int:
    """Network evaluations per image over the whole run."""
    return sum(s.steps * len(s.branches) for s in segments)
