"""Block weights: factors on a LoRA's layers, by blocks and groups of layers, as users of diffusers and A1111 do it.

    {"unet": {"down": 0.5, "mid": 0, "up": {"block_0": 0.8, "block_1": [0.4, 0.8, 1.0]}}, "text_encoder": 0.3}
    {"unet": {"attn2": 0.5, "up_blocks.0.resnets": 0}}
    {"down": 0.5, "up.0": 0.8, "text_encoder": 0.3}      what names no component is of the denoiser; dots lead inside
    [1, 0, 0, 0, 0, 1, 0.5, …]         12 or 20 numbers, of SDXL's blocks as in A1111's block weights

A layer's factor is the product of those whose name is a part of its own, whole words of it; 1 where none is.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from autolora_jax.lora.tree import VECTORS, Tree, is_leaf

Blocks = Mapping[str, Any] | Sequence[Any]
Factors = dict[str, dict[str, float]]  # component -> dotted name of blocks or layers, "" for all -> factor

_WORDS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}  # diffusers' short names
_HALVES = "resnets", "attentions"  # of a block's i-th layer
# A1111's names of SDXL's blocks. Source: hako-mikan/sd-webui-lora-block-weight, lora_block_weight.py BLOCKID12 and
# BLOCKID20; what the shorter list does not name is 0 there.
_SDXL: dict[str, tuple[str, ...]] = {
    "IN00": ("conv_in",),
    **{f"IN{3 * b + i + 1:02}": tuple(f"down_blocks.{b}.{h}.{i}" for h in _HALVES) for b in range(3) for i in range(2)},
    **{f"IN{3 * b + 3:02}": (f"down_blocks.{b}.downsamplers",) for b in range(2)},
    "M00": ("mid_block",),
    **{f"OUT{3 * b + i:02}": tuple(f"up_blocks.{b}.{h}.{i}" for h in _HALVES) for b in range(3) for i in range(3)},
}
for _b in range(2):
    _SDXL[f"OUT{3 * _b + 2:02}"] += (f"up_blocks.{_b}.upsamplers",)
_LISTS: dict[int, list[str]] = {
    12: ["IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{i:02}" for i in range(6))],
    20: sorted(_SDXL),
}
_MOST = 16  # layers of a block


def read_blocks(blocks: Blocks, networks: Mapping[str, Any]) -> Factors:
    """Block weights as factors. networks: component -> its parameters.

    Raises ValueError for what is no number, and for what names no component, block or layer of the networks.
    """
    layers = {component: _layers(params) for component, params in networks.items()}
    if not isinstance(blocks, Mapping):
        return _of_list(blocks, layers)
    denoiser = next(component for component in layers if not component.startswith("text_encoder"))
    found: Factors = {}
    for key, value in blocks.items():
        component, *inside = key.split(".")
        if component not in layers:
            component, inside = denoiser, [component, *inside]
        nested = functools.reduce(lambda inner, word: {word: inner}, reversed(inside), value)
        for name, factor in _flat(nested, "", layers[component]):
            if not _has(name, layers[component]):
                raise ValueError(
                    f"block weights name {name!r}, of which {component} has no layer; parts are {', '.join(layers)}, "
                    "names are those of diffusers, such as "
                    f"{', '.join(dict.fromkeys(path.split('/')[0] for path in layers[component]))}"
                )
            found.setdefault(component, {})[name] = factor
    return found


def spelled(factors: Factors) -> str:
    """Factors as `--lora FILE[…]` spells them: "unet.mid_block=0.5,text_encoder=0.3"."""
    flat = [(component, name, factor) for component, own in factors.items() for name, factor in own.items()]
    return ",".join(f"{component}{name and '.'}{name}={factor:.12g}" for component, name, factor in flat)


def _layers(params: Mapping[str, Any]) -> list[str]:
    paths: Any = traverse_util.flatten_dict(dict(params), is_leaf=lambda path, node: not isinstance(node, Mapping))
    return list(dict.fromkeys("/".join(path[:-1]) for path in paths))


def _flat(value: Any, name: str, layers: Sequence[str]) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            word = re.sub(r"^block_(\d+)$", r"\1", _WORDS.get(key) or str(key))
            yield from _flat(inner, f"{name}.{word}" if name else word, layers)
        return
    numbers = value if isinstance(value, list | tuple) else [value]
    if len(numbers) == 1:
        yield name, _number(numbers[0], name)
        return
    own = [half for half in _HALVES if _has(f"{name}.{half}", layers)]
    there = sum(_has(f"{name}.{own[-1]}.{i}", layers) for i in range(_MOST)) if own else 1
    if len(numbers) != there:
        raise ValueError(f"block weights of {name or 'a part'!r} are {len(numbers)} numbers; it has {there}")
    for half, (i, number) in itertools.product(own, enumerate(numbers)):
        yield f"{name}.{half}.{i}", _number(number, name)


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"block weights of {name or 'a part'!r}: {value!r} should be a finite number")
    return number


def _of_list(values: Sequence[Any], layers: Mapping[str, Sequence[str]]) -> Factors:
    names, unet = _LISTS.get(len(values)), layers.get("unet", ())
    if names is None or not _has("down_blocks.2", unet):
        raise ValueError(
            f"a list of {len(values)} block weights: lists are of {' or '.join(map(str, _LISTS))} numbers, for SDXL; "
            "name the blocks"
        )
    base, *given = (_number(value, "the list") for value in values)
    numbers = dict.fromkeys(_SDXL, 0.0) | dict(zip(names, given, strict=True))
    own = {key: numbers[block] for block, keys in _SDXL.items() for key in keys if _has(key, unet)}
    return {"unet": own, **{component: {"": base} for component in layers if component != "unet"}}


def _has(name: str, layers: Sequence[str]) -> bool:
    return any(_names(name, path) for path in layers)


def _names(name: str, path: str) -> bool:
    """Whether a dotted name is a part of a layer's path: "up_blocks.1" of "up_blocks_1/resnets_0/conv1"."""
    words = re.escape(re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/"))
    return not name or re.search(rf"(?:^|/){words}(?:_\d+)?(?:/|$)", path) is not None


def weighted(tree: Tree, factors: Mapping[str, float], path: str = "") -> dict[str, Any]:
    """One LoRA's delta tree of a component with factors on its layers."""
    result: dict[str, Any] = {}
    for name, node in tree.items():
        place = f"{path}/{name}" if path else name
        if is_leaf(node):
            factor = math.prod(factor for name, factor in factors.items() if _names(name, place))
            result[name] = _times(node, np.float32(factor))
        else:
            result[name] = weighted(node, factors, place)
    return result


def _times(leaf: Tree, factor: np.float32) -> dict[str, Any]:
    """A leaf at `factor` times its scale."""
    result = dict(leaf)
    if "up" in leaf:
        up = np.asarray(leaf["up"])
        result["up"] = (up.astype(np.float32) * factor).astype(up.dtype)
    if terms := leaf.get("terms"):
        result["terms"] = {name: {**term, "factor": factor} for name, term in terms.items()}
    for name in VECTORS:
        if name in leaf:
            result[name] = {**leaf[name], "rows": np.asarray(leaf[name]["rows"]) * factor}
    return result
