"""Guidance as a table of branches: ê(x_t) = Σ_b c_b · e(x_t; prompt_b, LoRA scale s_b), with Σ_b c_b = 1.

| rule                                  | base −      | base +   | weak −      | LoRA −  | LoRA + |
|---------------------------------------|-------------|----------|-------------|---------|--------|
| NoGuidance: the tuned model alone     |             |          |             |         | 1      |
| CFG(w) on the tuned model, Eq. 4      |             |          |             | 1−w     | w      |
| AutoGuidance(w), Eq. 5, bad = base    |             | 1−w      |             |         | w      |
| AutoLoRA(γ, 1, 1), Eq. 6              |             | 1−γ      |             |         | γ      |
| AutoLoRA(γ, w1, w2), Eq. 7            | (1−γ)(1−w1) | (1−γ)w1  |             | γ(1−w2) | γw2    |
| PersonalizationGuidance(w, ω)         |             |          | 1−w         |         | w      |

(− negative prompt, + prompt; weak = the LoRA at ω times its scale.) Because Σ c_b = 1 the sum commutes with every
affine change between ε, v, flow velocity and x0: no rule needs to know what its network predicts, nor the sampler
the rule. The table is data, one row per image and step, and so is which of its branches a step evaluates: a branch
whose coefficient is zero for every image at a step is not computed there.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Value = float | Sequence[float]  # one for all images, or one per image
Scale = Value | None  # None: what is usual for the model, see Rule.filled


class Branch(NamedTuple):
    """One network evaluation: which weights ("base", "weak" or "lora"), which prompt (0 negative, 1 positive)."""

    weights: str
    prompt: int


BASE_NEG, BASE_POS = Branch("base", 0), Branch("base", 1)
WEAK_NEG = Branch("weak", 0)
LORA_NEG, LORA_POS = Branch("lora", 0), Branch("lora", 1)
COLUMNS = (BASE_NEG, BASE_POS, WEAK_NEG, LORA_NEG, LORA_POS)
KINDS = ("base", "weak", "lora")  # of weights, as in COLUMNS

Coefficients = dict[Branch, Any]  # branch -> float or float64 array [n images]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A guidance rule, active on the steps i with int(start·n) <= i < int(stop·n) of n; `outside()` holds elsewhere.

    start, stop: fractions of the sampling run, 0 = the noisiest step (as the guiders of diffusers count).
    """

    start: float = dataclasses.field(default=0.0, kw_only=True)
    stop: float = dataclasses.field(default=1.0, kw_only=True)

    SCALES: ClassVar[tuple[str, ...]] = ()  # the fields that are scales of classifier-free guidance

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= self.stop <= 1.0:
            raise ValueError(
                f"guidance interval start={self.start}, stop={self.stop}: need 0 <= start <= stop <= 1 "
                "(fractions of the steps; the default 0.0, 1.0 guides every step)"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list | np.ndarray):
                object.__setattr__(self, field.name, tuple(float(v) for v in value))
            if value is None and field.name in self.SCALES:
                continue
            values = np.asarray(getattr(self, field.name), np.float64)
            if values.ndim > 1 or not np.isfinite(values).all():
                raise ValueError(f"{field.name}={value!r}: need a finite number, or one per image")

    def coefficients(self) -> Coefficients:
        """The table row inside the interval."""
        raise AssertionError("a rule defines its row")

    def filled(self, usual: float) -> "Rule":
        """The rule with its open scales at what is usual for a model: 5.0 for SDXL, 7.0 for SD3 in the paper."""
        open_scales = {name: usual for name in self.SCALES if getattr(self, name) is None}
        return dataclasses.replace(self, **open_scales) if open_scales else self

    def _scale(self, name: str) -> Any:
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"{name} of {self} is open; a pipeline fills in what is usual for its model, else give it")
        return np.asarray(value, np.float64)

    def outside(self) -> "Rule":
        """The rule outside the interval: the tuned model without this rule's guidance."""
        return NoGuidance()

    def weak_factor(self) -> Any:
        """ω: LoRA scale of the weak branch relative to the image's own."""
        return 0.0

    def at(self, i: int) -> "Rule":
        """The rule of image i."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{k: v[i] if isinstance(v, tuple) else v for k, v in values.items()})


@dataclasses.dataclass(frozen=True)
class NoGuidance(Rule):
    """The LoRA-tuned model alone: one evaluation a step."""

    def coefficients(self) -> Coefficients:
        return {LORA_POS: 1.0}


@dataclasses.dataclass(frozen=True)
class CFG(Rule):
    """Classifier-free guidance of the tuned model: e(∅) + w·(e(y) − e(∅)), Eq. 4. Two evaluations a step, w = 1 one.

    w: None is the paper's, 5.0 for SDXL, 7.0 for SD3.
    """

    w: Scale = None

    SCALES = ("w",)

    def coefficients(self) -> Coefficients:
        w = self._scale("w")
        return {LORA_NEG: 1 - w, LORA_POS: w}


@dataclasses.dataclass(frozen=True)
class AutoLoRA(Rule):
    """The tuned model guided by its base: e_base^{w1} + γ·(e_LoRA^{w2} − e_base^{w1}), Eqs. 6, 7 of arXiv 2410.03941.

    gamma: γ; 1.5 in the paper. 1 is the tuned model with CFG(w2), 0 the base model with CFG(w1).
    w1, w2: CFG scales of the base and the tuned model; None is the paper's, 5.0 for SDXL, 7.0 for SD3. w1 = w2 = 1 is
        Eq. 6, without CFG: two evaluations a step instead of four.
    Outside [start, stop) γ is 1: the tuned model keeps its CFG(w2).
    """

    gamma: Value = 1.5
    w1: Scale = None
    w2: Scale = None

    SCALES = ("w1", "w2")

    def coefficients(self) -> Coefficients:
        g, w1, w2 = np.asarray(self.gamma, np.float64), self._scale("w1"), self._scale("w2")
        return {
            BASE_NEG: (1 - g) * (1 - w1),
            BASE_POS: (1 - g) * w1,
            LORA_NEG: g * (1 - w2),
            LORA_POS: g * w2,
        }

    def outside(self) -> Rule:
        return CFG(self.w2)


@dataclasses.dataclass(frozen=True)
class AutoGuidance(Rule):
    """Guidance by a worse model (arXiv 2406.02507), here the base: e_base + w·(e_LoRA − e_base), Eq. 5."""

    w: Value = 1.5

    def coefficients(self) -> Coefficients:
        w = np.asarray(self.w, np.float64)
        return {BASE_POS: 1 - w, LORA_POS: w}


@dataclasses.dataclass(frozen=True)
class PersonalizationGuidance(Rule):
    """Guidance by a weakened LoRA without the prompt (arXiv 2508.00319): e_ω(∅) + w·(e_LoRA(y) − e_ω(∅)).

    omega: ω, the LoRA scale of the unconditional branch relative to the image's: 0 = base weights, 1 = CFG(w).
    """

    w: Scale = None
    omega: Value = 0.5

    SCALES = ("w",)

    def coefficients(self) -> Coefficients:
        w = self._scale("w")
        return {WEAK_NEG: 1 - w, LORA_POS: w}

    def weak_factor(self) -> Any:
        return self.omega


# Names for command lines and files.
RULES: dict[str, type[Rule]] = {
    "autolora": AutoLoRA,
    "cfg": CFG,
    "none": NoGuidance,
    "autoguidance": AutoGuidance,
    "personalization": PersonalizationGuidance,
}


def to_dict(rule: Rule) -> dict[str, Any]:
    """A rule as JSON values: {"rule": its name in RULES, "gamma": 1.5, …, "start": 0.0, "stop": 1.0}."""
    name = next(name for name, kind in RULES.items() if kind is type(rule))
    values = dataclasses.asdict(rule)
    interval = {key: values.pop(key) for key in ("start", "stop")}
    return {"rule": name, **values, **interval}


class Segment(NamedTuple):
    """Consecutive steps that evaluate the same branches."""

    steps: int
    branches: tuple[Branch, ...]

    @property
    def paired(self) -> bool:
        """Whether every kind of weights that is evaluated reads both prompts."""
        return set(Counter(branch.weights for branch in self.branches).values()) == {2}


class Plan(NamedTuple):
    """What the sampler computes, and with which numbers."""

    table: np.ndarray  # float32 [n steps columns]; 0 where an image does not use a branch
    active: np.ndarray  # bool [steps columns]: whether any image uses it
    weak_factor: np.ndarray  # ω, float32 [n]

    @property
    def weights(self) -> tuple[str, ...]:
        """The kinds of weights that any step evaluates, in KINDS' order."""
        used = {COLUMNS[c].weights for c in np.flatnonzero(self.active.any(axis=0))}
        return tuple(kind for kind in KINDS if kind in used)

    def of(self, index: np.ndarray) -> "Plan":
        """The plan of some of the images; branches that others need are evaluated all the same."""
        return self._replace(table=self.table[index], weak_factor=self.weak_factor[index])

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The run as stretches that evaluate the same branches."""
        edges = [0, *(np.flatnonzero((self.active[1:] != self.active[:-1]).any(axis=1)) + 1), len(self.active)]
        return tuple(
            Segment(int(last - first), tuple(COLUMNS[c] for c in np.flatnonzero(self.active[first])))
            for first, last in itertools.pairwise(edges)
        )


def plan(rules: Rule | Sequence[Rule], n: int, steps: int, reference: bool = False) -> Plan:
    """The branch table of n images over `steps` steps.

    rules: one rule for all images (its values may be sequences, one per image), or one rule per image: a batch may mix
        kinds of guidance, every image then pays for the union of the branches.
    reference: always evaluate LoRA,+ (guidance_rescale compares with it).
    Raises ValueError when a sequence does not have n values.
    """
    per_image = [_image_rule(rules, i, n) for i in range(n)]
    table = np.zeros((n, steps, len(COLUMNS)))
    for i, rule in enumerate(per_image):
        first, last = int(rule.start * steps), int(rule.stop * steps)
        for within, row in ((False, rule.outside().coefficients()), (True, rule.coefficients())):
            where = slice(first, last) if within else slice(None)
            table[i, where] = [row.get(b, 0.0) for b in COLUMNS]
    active = (table != 0).any(axis=0)  # [steps, columns]
    if reference:
        active[:, COLUMNS.index(LORA_POS)] = True
    omega = np.array([r.weak_factor() for r in per_image], np.float32)
    return Plan(table.astype(np.float32), active, omega)


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


def combine(predictions: Float[Array, "k b h w c"], coefficients: Float[Array, "b k"]) -> Float[Array, "b h w c"]:
    """Σ_b c_b · e_b, per image, in float32."""
    return jnp.einsum("kbhwc,bk->bhwc", predictions, coefficients, precision="highest")


def rescale(
    guided: Float[Array, "b h w c"], reference: Float[Array, "b h w c"], amount: Float[Array, "b"]
) -> Float[Array, "b h w c"]:
    """Pulls the guided prediction's standard deviation towards the reference's (the tuned model's, with the prompt).

    amount: 0 = off, 1 = fully. Source: arXiv 2305.08891 section 3.4; diffusers rescale_noise_cfg (unbiased std).
    """
    axes = tuple(range(1, guided.ndim))
    ratio = jnp.std(reference, axis=axes, ddof=1) / jnp.std(guided, axis=axes, ddof=1)  # [b]
    factor = jnp.where(amount == 0, 1, amount * ratio + (1 - amount))  # off: whatever the reference is
    return guided * factor.reshape(-1, *(1,) * (guided.ndim - 1))


def evaluations(segments: Sequence[Segment]) -> int:
    """Network evaluations per image over the whole run."""
    return sum(s.steps * len(s.branches) for s in segments)
