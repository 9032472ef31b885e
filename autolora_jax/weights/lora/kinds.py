"""Which parts make which kind of change: a table. A new kind is a row here and its two functions in building.py."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from autolora_jax.weights.lora import building
from autolora_jax.weights.lora.change import Matrix
from autolora_jax.weights.rules import Shape

_EXTRACT = (
    "not supported: apply it in a program that can (ComfyUI: Load LoRA, then Save Checkpoint) and extract a plain LoRA "
    "from that checkpoint and the base one (autolora extract), then load that"
)


def _all(*parts: str) -> frozenset[str]:
    return frozenset(parts)


class Kind(NamedTuple):
    """One way of writing a layer's change, and how it is read."""

    name: str
    needs: tuple[frozenset[str], ...]  # parts that it can't be without: one of these sets
    may: frozenset[str] = frozenset()  # parts that it can have beside
    remedy: str = ""  # refused: what the user can do; "": read by the functions below
    # (part -> shape, kernel) -> what is wrong; None when all is well
    misfit: Callable[[Mapping[str, Shape], Shape], str | None] = building.nothing_wrong
    # (part -> tensor, kernel, alpha) -> the change of the kernel
    build: Callable[[Mapping[str, np.ndarray], Shape, float | None], Matrix | None] = building.no_matrix

    @property
    def signs(self) -> frozenset[str]:
        """Parts by which a module of this kind is known."""
        return frozenset().union(*self.needs)

    def missing(self, parts: Iterable[str]) -> list[str]:
        """The parts that a module lacks, by the set that it comes closest to."""
        have = set(parts)
        return min((sorted(needed - have) for needed in self.needs), key=len)

    def foreign(self, parts: Iterable[str]) -> list[str]:
        """The parts of a complete module that are none of this kind's."""
        have = set(parts)
        needed = next(needed for needed in self.needs if needed <= have)
        return sorted(have - needed - self.may - ANY)


def _refused(name: str, part: str, remedy: str = _EXTRACT) -> Kind:
    return Kind(name, (_all(part),), remedy=remedy)


# Parts that any kind may have: DoRA's magnitudes and a bias.
DORA = _all("dora_scale", "magnitude")
ANY = DORA | _all("alpha", "diff_b")
_LOKR = tuple(
    left | right
    for left in (_all("lokr_w1"), _all("lokr_w1_a", "lokr_w1_b"))
    for right in (_all("lokr_w2"), _all("lokr_w2_a", "lokr_w2_b"))
)
# The first row that has a sign in common with a module describes it, so the rarer parts come first.
KINDS: tuple[Kind, ...] = (
    _refused("GLoRA (LyCORIS)", "glora"),
    _refused("OFT/BOFT (an orthogonal factor)", "oft"),
    _refused("replaced weights (set_weight)", "replaced"),
    _refused("IA3", "ia3"),
    _refused("VeRA", "vera"),
    _refused("LoRA of an embedding table", "embedding"),
    _refused("LoRA with a bias between its halves", "down_bias"),
    Kind(
        "LoHa (LyCORIS)",
        (_all("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),
        _all("hada_t1", "hada_t2"),
        misfit=building.hadamard_misfit,
        build=building.hadamard,
    ),
    Kind("LoKr (LyCORIS)", _LOKR, _all("lokr_t2"), misfit=building.kronecker_misfit, build=building.kronecker),
    Kind(
        "LoRA", (_all("down", "up"),), _all("mid", "up_bias"), misfit=building.low_rank_misfit, build=building.low_rank
    ),
    Kind("full difference (diff)", (_all("diff"),), misfit=building.full_misfit, build=building.full),
    Kind("trained norms", (_all("w_norm"),), _all("b_norm"), misfit=building.norm_misfit),
    Kind("biases (diff_b)", (_all("diff_b"),)),
)
# Parts of the kinds that are refused.
REFUSED = frozenset(part for kind in KINDS if kind.remedy for part in kind.signs)


def kind_of(parts: Iterable[str]) -> Kind | None:
    """The row of KINDS that a module with these parts is, complete or not; None for a lone alpha or magnitude."""
    have = set(parts)
    return next((k for k in KINDS if k.signs & have), None)
