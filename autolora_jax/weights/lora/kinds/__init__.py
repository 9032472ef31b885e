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
from autolora_jax.weights.lora.kinds.vectors import BIASES, NORMS
from autolora_jax.weights.rules import Shape

_EXTRACT = (
    "not supported: apply it in a program that can (ComfyUI: Load LoRA, then Save Checkpoint) and extract a plain LoRA "
    "from that checkpoint and the base one (autolora extract), then load that"
)


def _refused(name: str, part: str, endings: str, telling: bool = True) -> Kind:
    return Kind(name, {part: endings}, ((part,),), sizes=LORA.sizes, remedy=_EXTRACT, telling=telling)


# The first row that has a sign in common with a module describes it, so the rarer parts come first.
KINDS: tuple[Kind, ...] = (
    _refused("GLoRA (LyCORIS)", "glora", r"(a[12]|b[12]|bm[12])\.weight", telling=False),
    _refused(
        "OFT/BOFT (an orthogonal factor)", "oft", r"oft_(blocks|diag|R\.(weight|scaled_oft))|boft_R(\.weight)?|rescale"
    ),
    _refused("replaced weights (set_weight)", "replaced", "set_weight|reshape_weight"),
    _refused("IA3", "ia3", r"on_input|ia3_l(\.weight)?"),
    _refused("VeRA", "vera", r"vera_lambda_[bd](\.weight)?"),
    _refused("LoRA of an embedding table", "embedding", rf"lora_embedding_[AB]{ADAPTER}"),
    _refused(
        "LoRA with a bias between its halves",
        "down_bias",
        rf"lora_(down|A){ADAPTER}\.bias|lora(_linear_layer)?\.down\.bias",
    ),
    LOHA,
    LOKR,
    LORA,
    DIFFERENCE,
    NORMS,
    BIASES,
)


def endings(kinds: Iterable[Kind]) -> dict[str, str]:
    """Part -> the endings (a regular expression) of the keys that hold it."""
    return {"alpha": "alpha", **DORA, **{part: ending for kind in kinds for part, ending in kind.parts.items()}}


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
    return dataclasses.replace(change, magnitude=dora.read(tensors, kernel), bias=bias)
