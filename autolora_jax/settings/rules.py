"""Guidance rules: what of the base model and of the tuned one goes into a step, by the numbers that users set.

| rule                                  | base −      | base +   | weak −      | LoRA −  | LoRA + |
|---------------------------------------|-------------|----------|-------------|---------|--------|
| NoGuidance: the tuned model alone     |             |          |             |         | 1      |
| CFG(w) on the tuned model, Eq. 4      |             |          |             | 1−w     | w      |
| AutoGuidance(w), Eq. 5, bad = base    |             | 1−w      |             |         | w      |
| AutoLoRA(γ, 1, 1), Eq. 6              |             | 1−γ      |             |         | γ      |
| AutoLoRA(γ, w1, w2), Eq. 7            | (1−γ)(1−w1) | (1−γ)w1  |             | γ(1−w2) | γw2    |
| PersonalizationGuidance(w, ω)         |             |          | 1−w         |         | w      |

(− negative prompt, + prompt; weak = the LoRA at ω times its scale.) A rule is a class here and a row of RULES: its
fields are its flags, and its coefficients a row of guidance.Plan's table.

What a rule adds to the one that holds outside its interval is its share, a sum of coefficients that add up to 0:
AutoLoRA adds one to CFG, which adds one to the tuned model alone. A share may be refreshed every few steps and kept in
between.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from autolora_jax.settings.fields import Field, setting, settings_of

Value = float | Sequence[float]  # one for all images, or one per image
Scale = Value | None  # None: what is usual for the model, see Rule.filled
Every = int | Sequence[int]  # so many steps
PANEL = "Guidance"  # of --help
USUAL = "SDXL 5.0, SD3 7.0"
EVERY = ("refresh_base", "refresh_uncond")
ZEROED = "zero_init_steps"
# Numbers of forms that are no sum, see forms.py: what leaves everything as it is.
FORMS = {"apg_eta": 1.0, "apg_norm": 0.0, "apg_momentum": 0.0, "zero_star": 0.0}
# Whole numbers of steps, the least that each may be, which changes nothing.
WHOLE = {**dict.fromkeys(EVERY, 1), ZEROED: 0}
NEUTRAL: dict[str, float] = {**WHOLE, **FORMS}  # younger numbers: told only where they differ


class Branch(NamedTuple):
    """One network evaluation: which weights ("base", "weak" or "lora"), which prompt (0 negative, 1 positive)."""

    weights: str
    prompt: int
    skipping: bool = False  # layers, see Skip


BASE_NEG, BASE_POS = Branch("base", 0), Branch("base", 1)
WEAK_NEG = Branch("weak", 0)
LORA_NEG, LORA_POS = Branch("lora", 0), Branch("lora", 1)
SKIP_POS = Branch("lora", 1, skipping=True)

Coefficients = dict[Branch, float]


class Skip(NamedTuple):
    """Skip-layer guidance: scale · (LoRA + − LoRA + with layers skipped), added to what any rule gives.

    It holds on the steps i with start·n < i < stop·n of n, strictly, as in diffusers' StableDiffusion3Pipeline.
    """

    scale: Value  # one for all images, or one per image
    start: float
    stop: float


class Share(NamedTuple):
    """What a rule adds to another one."""

    coefficients: Coefficients  # they add up to 0
    every: int  # how many steps it is evaluated anew
    gain: float  # what it is a multiple of
    longest: float  # that it may be, as a change of the denoised picture
    parallel: float  # how much stays of it along the picture
    momentum: float  # how much is added of what it was
    fitted: float  # how far what is guided away from is scaled to fit


# A LoRA's role -> its factor on each kind of weights; None: ω. What makes a model fast has to act on all of them, else
# a rule that amplifies what the LoRA changes amplifies that, too; "base" is for a worse base to guide away from.
ROLES: dict[str, dict[str, float | None]] = {
    "tuned": {"base": 0.0, "weak": None, "lora": 1.0},
    "all": {"base": 1.0, "weak": 1.0, "lora": 1.0},
    "base": {"base": 1.0, "weak": 0.0, "lora": 0.0},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A guidance rule, active on the steps i with int(start·n) <= i < int(stop·n) of n; `outside()` holds elsewhere.

    Its values may be sequences, one per image; `at` is the rule of one. Raises ValueError for what is no number.
    """

    PANEL: ClassVar[str] = PANEL
    SCALES: ClassVar[tuple[str, ...]] = ()  # the fields that are scales of classifier-free guidance

    start: float = setting(0.0, "Where guidance sets in: a fraction of the steps.")
    stop: float = setting(
        1.0, "Where it ends. Outside, autolora goes on as CFG (half the cost), the others without guidance."
    )

    apg_eta: Value = setting(
        1.0,
        "How much of what guidance adds is kept along the denoised picture (APG's η): 0 takes back colours that high "
        "scales saturate.",
    )
    apg_norm: Value = setting(
        0.0, "The longest that what guidance adds to the denoised latents may be, over its scale (APG's r); 0: any."
    )
    apg_momentum: Value = setting(
        0.0, "How much of what it added in the steps before is added to it (APG's β); -0.5 is usual there."
    )
    zero_star: Value = setting(
        0.0, "0 to 1: how far what is guided away from is scaled to fit the prediction (1: as in CFG-Zero*)."
    )
    zero_init_steps: Every = setting(
        0,
        "So many first steps predict zero and evaluate nothing, as in CFG-Zero*; for models of velocities (SD3), whose "
        "picture then stays where it is.",
        metavar="STEPS",
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= self.stop <= 1.0:
            raise ValueError(
                f"guidance interval start={self.start}, stop={self.stop}: need 0 <= start <= stop <= 1 "
                "(fractions of the steps; the default 0.0, 1.0 guides every step)"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in self.SCALES:
                continue
            try:
                several = not isinstance(value, float | int | str) and getattr(value, "shape", (1,)) != ()
                numbers = tuple(map(float, value)) if several else (float(value),)
            except (TypeError, ValueError):
                numbers = (math.nan,)
            if not all(map(math.isfinite, numbers)):
                raise ValueError(f"{field.name}={value!r}: need a finite number, or one per image")
            if (least := WHOLE.get(field.name)) is not None:
                if not all(number >= least and number.is_integer() for number in numbers):
                    raise ValueError(f"{field.name}={value!r}: need a whole number of steps; {least} changes nothing")
                numbers = tuple(map(int, numbers))
            if several:
                object.__setattr__(self, field.name, numbers)

    def coefficients(self) -> Coefficients:
        """The table row inside the interval, of a rule of one image."""
        raise AssertionError("a rule defines its row")

    def outside(self) -> "Rule":
        """The rule outside the interval: the tuned model without this rule's guidance."""
        return NoGuidance()

    def weak_factor(self) -> Any:
        """ω: LoRA scale of the weak branch relative to the image's own."""
        return 0.0

    def refresh(self) -> int:
        """Every how many steps this rule's share is evaluated anew."""
        return 1

    def zeroed(self) -> int:
        """How many first steps predict zero, of a rule of one image."""
        return int(self._number(ZEROED))

    def gain(self) -> float:
        """What this rule's share is a multiple of: w − 1, γ − 1."""
        return 0.0

    @property
    def formed(self) -> bool:
        """Whether a share is more than a sum, for a rule of one image."""
        return any(getattr(self, name) != usual for name, usual in FORMS.items())

    def shares(self) -> Iterator["Share"]:
        """What guidance adds to the tuned model, of a rule of one image, the innermost first; what adds nothing is left
        out."""
        outside = self.outside()
        if type(outside) is not type(self):
            yield from outside.shares()
            without, own = outside.coefficients(), self.coefficients()
            share = {branch: own.get(branch, 0.0) - without.get(branch, 0.0) for branch in {**without, **own}}
            if any(share.values()):
                norm, eta, momentum, star = map(self._number, ("apg_norm", "apg_eta", "apg_momentum", "zero_star"))
                gain = self.gain()
                longest = abs(gain) * norm if norm else math.inf
                yield Share(share, self.refresh(), gain, longest, eta, momentum, star)

    def filled(self, usual: float) -> "Rule":
        """The rule with its open scales at what is usual for a model: 5.0 for SDXL, 7.0 for SD3 in the paper."""
        open_scales: dict[str, Any] = {name: usual for name in self.SCALES if getattr(self, name) is None}
        return dataclasses.replace(self, **open_scales) if open_scales else self

    def at(self, i: int) -> "Rule":
        """The rule of image i."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{k: v[i] if isinstance(v, tuple) else v for k, v in values.items()})

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"{name} of {self} is open; a pipeline fills in what is usual for its model, else give it")
        return float(value)


@dataclasses.dataclass(frozen=True)
class NoGuidance(Rule):
    """The LoRA-tuned model alone: one evaluation a step."""

    def coefficients(self) -> Coefficients:
        return {LORA_POS: 1.0}


def _refresh(what: str) -> Any:
    return setting(
        1,
        f"Every how many steps {what} is evaluated; in between, its share of the last such step is kept. Cheaper, "
        "and slightly another picture.",
        metavar="STEPS",
    )


@dataclasses.dataclass(frozen=True)
class CFG(Rule):
    """Classifier-free guidance of the tuned model: e(∅) + w·(e(y) − e(∅)), Eq. 4. Two evaluations a step, w = 1 one.

    w: None is the paper's, 5.0 for SDXL, 7.0 for SD3.
    refresh_uncond: e(∅) is evaluated every so many steps, and (w − 1)·(e(y) − e(∅)) kept in between.
    """

    w: Scale = setting(None, "The rule's scale; 1 is no guidance.", shown=f"{USUAL}, autoguidance 1.5")
    _: dataclasses.KW_ONLY
    refresh_uncond: Every = _refresh("what is without the prompt")

    SCALES = ("w",)

    def coefficients(self) -> Coefficients:
        w = self._number("w")
        return {LORA_NEG: 1 - w, LORA_POS: w}

    def refresh(self) -> int:
        return int(self._number("refresh_uncond"))

    def gain(self) -> float:
        return self._number("w") - 1


@dataclasses.dataclass(frozen=True)
class AutoLoRA(Rule):
    """The tuned model guided by its base: e_base^{w1} + γ·(e_LoRA^{w2} − e_base^{w1}), Eqs. 6, 7 of arXiv 2410.03941.

    gamma: γ; 1.5 in the paper. 1 is the tuned model with CFG(w2), 0 the base model with CFG(w1).
    w1, w2: CFG scales of the base and the tuned model; None is the paper's, 5.0 for SDXL, 7.0 for SD3. w1 = w2 = 1 is
        Eq. 6, without CFG: two evaluations a step instead of four.
    refresh_base: the base model is evaluated every so many steps, and (γ − 1)·(e_LoRA^{w2} − e_base^{w1}) kept in
        between. refresh_uncond: as of CFG(w2), for the tuned model; it is evaluated where the base model is, too.
    Outside [start, stop) γ is 1: the tuned model keeps its CFG(w2).
    """

    gamma: Value = setting(1.5, "γ, from the base model through the LoRA: 0 base, 1 LoRA, above 1 beyond it.")
    w1: Scale = setting(None, "CFG scale of the base model.", shown=USUAL)
    w2: Scale = setting(None, "CFG scale of the LoRA model.", shown=USUAL)
    _: dataclasses.KW_ONLY
    refresh_base: Every = _refresh("the base model")
    refresh_uncond: Every = _refresh("what is without the prompt")

    SCALES = ("w1", "w2")

    def coefficients(self) -> Coefficients:
        g, w1, w2 = self._number("gamma"), self._number("w1"), self._number("w2")
        return {BASE_NEG: (1 - g) * (1 - w1), BASE_POS: (1 - g) * w1, LORA_NEG: g * (1 - w2), LORA_POS: g * w2}

    def outside(self) -> Rule:
        forms = {name: getattr(self, name) for name in FORMS}
        return CFG(self.w2, refresh_uncond=self.refresh_uncond, **forms)

    def refresh(self) -> int:
        return int(self._number("refresh_base"))

    def gain(self) -> float:
        return self._number("gamma") - 1


@dataclasses.dataclass(frozen=True)
class AutoGuidance(Rule):
    """Guidance by a worse model (arXiv 2406.02507), here the base: e_base + w·(e_LoRA − e_base), Eq. 5.

    refresh_base: as of AutoLoRA.
    """

    w: Value = setting(1.5)
    _: dataclasses.KW_ONLY
    refresh_base: Every = _refresh("the base model")

    def coefficients(self) -> Coefficients:
        w = self._number("w")
        return {BASE_POS: 1 - w, LORA_POS: w}

    def refresh(self) -> int:
        return int(self._number("refresh_base"))

    def gain(self) -> float:
        return self._number("w") - 1


@dataclasses.dataclass(frozen=True)
class PersonalizationGuidance(Rule):
    """Guidance by a weakened LoRA without the prompt (arXiv 2508.00319): e_ω(∅) + w·(e_LoRA(y) − e_ω(∅)).

    omega: ω, the LoRA scale of the unconditional branch relative to the image's: 0 = base weights, 1 = CFG(w).
    refresh_uncond: as of CFG.
    """

    w: Scale = setting(None)
    omega: Value = setting(0.5, "ω, strength of the weaker LoRA relative to the LoRA.")
    _: dataclasses.KW_ONLY
    refresh_uncond: Every = _refresh("what is without the prompt")

    SCALES = ("w",)

    def coefficients(self) -> Coefficients:
        w = self._number("w")
        return {WEAK_NEG: 1 - w, LORA_POS: w}

    def weak_factor(self) -> Any:
        return self.omega

    def refresh(self) -> int:
        return int(self._number("refresh_uncond"))

    def gain(self) -> float:
        return self._number("w") - 1


# Names for command lines and files.
RULES: dict[str, type[Rule]] = {
    "autolora": AutoLoRA,
    "cfg": CFG,
    "none": NoGuidance,
    "autoguidance": AutoGuidance,
    "personalization": PersonalizationGuidance,
}


def name_of(rule: Rule) -> str:
    """Its name in RULES."""
    return next(name for name, kind in RULES.items() if kind is type(rule))


def to_dict(rule: Rule) -> dict[str, Any]:
    """A rule as JSON values: {"rule": its name in RULES, "gamma": 1.5, …, "start": 0.0, "stop": 1.0}; what
    is NEUTRAL is left out."""
    values = {key: value for key, value in dataclasses.asdict(rule).items() if value != NEUTRAL.get(key)}
    interval = {key: values.pop(key) for key in ("start", "stop")}
    return {"rule": name_of(rule), **values, **interval}


def numbers_of(rule: Rule) -> str:
    """A rule's values for people: "gamma 1.5, w1 5, w2 5"; the interval only where there is one."""
    _, *values = to_dict(rule).items()
    if (rule.start, rule.stop) == (0.0, 1.0):
        values = values[:-2]
    return ", ".join(f"{name} {'varies' if isinstance(value, tuple) else f'{value:g}'}" for name, value in values)


def owners(number: str) -> list[str]:
    """The names of the rules that have a number; [] for one that they all have, or none."""
    having = [name for name, kind in RULES.items() if number in {field.name for field in dataclasses.fields(kind)}]
    return having if len(having) < len(RULES) else []


def numbers() -> dict[str, Field]:
    """Every number of a rule, as the first that has it describes it; those of all rules last."""
    found: dict[str, Field] = {}
    for kind in RULES.values():
        for field in settings_of(kind):
            found.setdefault(field.name, field)
    return dict(sorted(found.items(), key=lambda named: not owners(named[0])))
