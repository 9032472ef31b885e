"""The kinds of LoRA, a row each. A new one is a file here and its row in KINDS.

Its file has a `Kind`, which says by which parts a module is known, what is wrong with their shapes and how they are
read; and, unless the change is one of another kind's, a class of `Matrix`: its meaning to a layer (`kernel`) and how it
is written. Biases (vectors.py) and DoRA (dora.py) stand beside any kind.
"""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from autolora_jax.weights.lora.kinds import dora, vectors
from autolora_jax.weights.lora.kinds.dora import PARTS as DORA
from autolora_jax.weights.lora.kinds.full import DIFFERENCE
from autolora_jax.weights.lora.kinds.kind import Change, Kind, Sizes
from autolora_jax.weights.lora.kinds.loha import LOHA
from autolora_jax.weights.lora.kinds.lokr import LOKR
from autolora_jax.weights.lora.kinds.low_rank import LORA
from autolora_jax.weights.lora.kinds.matrix import ADAPTER, Shapes, Tensors
from autolora_jax.weights.lora.kinds.multiplied import GLORA, IA3
from autolora_jax.weights.lora.kinds.orthogonal import BOFT, OFT, OFT_V2
from autolora_jax.weights.lora.kinds.vectors import BIASES, NORMS
from autolora_jax.weights.rules import Shape

_COMFY = "ComfyUI (Load LoRA, then Save Checkpoint)"
_LYCORIS = "LyCORIS (lycoris.utils.merge)"
_PEFT = "PEFT (merge_and_unload, then save_pretrained)"


def refusal(program: str) -> str:
    """What can be done about a kind that is not read here: the program that can merge it."""
    return (
        f"not supported: merge it with {program} and extract a plain LoRA from that model and the base one (autolora "
        "extract), then load that"
    )


BEYOND = refusal(_LYCORIS)


def _refused(name: str, part: str, endings: str, program: str, product: bool = False) -> Kind:
    return Kind(name, {part: endings}, ((part,),), sizes=LORA.sizes, remedy=refusal(program), product=product)


# The first row that has a sign in common with a module describes it, so the rarer parts come first.
KINDS: tuple[Kind, ...] = (
    _refused("GLoRA with cores (LyCORIS)", "glora", r"bm[12]?\.weight", _LYCORIS),
    _refused("OFT of LyCORIS before 1.9 (oft_diag)", "oft_diag", "oft_diag", "the version of LyCORIS that trained it"),
    _refused("replaced weights (set_weight)", "replaced", "set_weight|reshape_weight", _COMFY),
    _refused("VeRA", "vera", r"vera_lambda_[bd](\.weight)?", _PEFT),
    _refused("LoRA of an embedding table", "embedding", rf"lora_embedding_[AB]{ADAPTER}", _PEFT, True),
    _refused(
        "LoRA with a bias between its halves",
        "down_bias",
        rf"lora_(down|A){ADAPTER}\.bias|lora(_linear_layer)?\.down\.bias",
        _PEFT,
    ),
    GLORA,
    OFT,
    OFT_V2,
    BOFT,
    IA3,
    LOHA,
    LOKR,
    LORA,
    DIFFERENCE,
    NORMS,
    BIASES,
)


def endings(kinds: Iterable[Kind]) -> dict[str, str]:
    """Part -> the endings (a regular expression) of the keys that hold it."""
    return {
        "alpha": "alpha|lora_alpha",
        **DORA,
        **{part: ending for kind in kinds for part, ending in kind.parts.items()},
    }


def kind_of(parts: Iterable[str]) -> Kind | None:
    """The row of KINDS that a module with these parts is, complete or not; None for a lone alpha or magnitude."""
    have = set(parts)
    return next((kind for kind in KINDS if kind.signs & have), None)


def sizes_of(shapes: Shapes) -> Sizes:
    """What a module's shapes say by themselves."""
    kind = kind_of(shapes)
    return kind.sizes(shapes) if kind else Sizes()


def misfit(kind: Kind, shapes: Shapes, kernel: Shape) -> str | None:
    """What is wrong with the shapes of a complete module's parts for a layer; None when they fit."""
    if len(kernel) == 1 and not kind.norms:
        return "the layer is a norm, which has no matrix"
    return kind.misfit(shapes, kernel) or vectors.bias_misfit(shapes, kernel) or dora.misfit(shapes, kernel)


def read(tensors: Tensors, kernel: Shape, alpha: float | None) -> Change:
    """The whole change of a layer by a module that fits it: its kind's, and what stands beside it."""
    kind = kind_of(tensors)
    assert kind is not None
    change = kind.read(tensors, kernel, alpha)
    biases = [bias for bias in (change.bias, tensors.get("diff_b")) if bias is not None]
    bias = functools.reduce(np.add, biases) if biases else None
    if change.matrix is not None and bias is not None and not bias.any():
        bias = None  # trained beside layers that have none
    return dataclasses.replace(change, magnitude=dora.read(tensors, kernel), bias=bias)
