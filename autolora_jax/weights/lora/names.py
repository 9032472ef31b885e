"""How LoRA files name a model's layers.

kohya joins path segments with underscores, which can't be parsed back ("to_out_0", "down_blocks_1_attentions_0"), so no
name is ever parsed: every layer of the model is spelled in every known way, and a file's name is looked up.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from autolora_jax.config import JsonConfig, UNetConfig
from autolora_jax.weights.ldm import ldm_module_name
from autolora_jax.weights.lora.dialects import KOHYA, KOHYA_DIFFUSERS, KOHYA_SGM, PEFT
from autolora_jax.weights.rules import Shape, flat_shapes
from autolora_jax.weights.tables import torch_module

Targets = Mapping[str, tuple[Mapping[str, Any], JsonConfig]]  # component -> (its parameter tree or shapes, its config)


class Layer(NamedTuple):
    """A layer that a LoRA can change."""

    component: str  # "unet", "text_encoder", "text_encoder_2"
    path: str  # in the component's tree: "down_blocks_1/attentions_0/proj_in"
    kernel: Shape  # Dense [in, out] or Conv [kh, kw, in, out]


class Name(NamedTuple):
    """What a name in a file stands for."""

    layer: Layer
    module: str  # the layer's name within its component, as the file's author knew it


@dataclasses.dataclass(frozen=True)
class Spelling:
    """One way of naming a component's layers: prefix + the name in a layout, its dots replaced by `separator`."""

    style: str
    prefix: str
    layout: str  # a key of _LAYOUTS
    separator: str = "."


def _canonical(module: str, config: JsonConfig) -> str | None:
    return module


def _sgm(module: str, config: JsonConfig) -> str | None:
    assert isinstance(config, UNetConfig)
    return ldm_module_name(module, config)


def _flattened(module: str, config: JsonConfig) -> str | None:
    """transformers >= 5.6 names CLIPTextModel's layers without `text_model.`."""
    return module.removeprefix("text_model.") if module.startswith("text_model.") else None


_LAYOUTS = {"canonical": _canonical, "sgm": _sgm, "flattened": _flattened}


def _text_spellings(component: str, kohya_prefix: str) -> tuple[Spelling, ...]:
    prefixes = (f"{component}.", f"{component}.base_model.model.", f"base_model.model.{component}.")
    return tuple(
        spelling
        for layout in ("canonical", "flattened")
        for spelling in (Spelling(KOHYA, kohya_prefix, layout, "_"), *(Spelling(PEFT, p, layout) for p in prefixes))
    )


# The first row of a component that fits is what export writes in that dialect.
SPELLINGS: Mapping[str, tuple[Spelling, ...]] = {
    "unet": (
        Spelling(KOHYA_SGM, "lora_unet_", "sgm", "_"),
        Spelling(KOHYA_DIFFUSERS, "lora_unet_", "canonical", "_"),
        Spelling(PEFT, "unet.", "canonical"),
        Spelling(PEFT, "unet.base_model.model.", "canonical"),
        Spelling(PEFT, "base_model.model.unet.", "canonical"),
        Spelling(PEFT, "base_model.model.", "canonical"),  # PEFT's own folder of an adapted UNet
    ),
    "text_encoder": _text_spellings("text_encoder", "lora_te1_"),
    "text_encoder_2": _text_spellings("text_encoder_2", "lora_te2_"),
}


def layers(targets: Targets) -> Iterator[Layer]:
    """Every layer with a kernel, of every component."""
    for component, (tree, _) in targets.items():
        for path, shape in flat_shapes(tree).items():
            if path.endswith("/kernel"):
                yield Layer(component, path.removesuffix("/kernel"), shape)


def spell(spelling: Spelling, path: str, config: JsonConfig) -> tuple[str, str] | None:
    """(full name, name within the component) of the layer at a tree path; None where the layout has no such name."""
    module = _LAYOUTS[spelling.layout](torch_module(path), config)
    return (spelling.prefix + module.replace(".", spelling.separator), module) if module else None


def names(targets: Targets) -> dict[str, Name]:
    """Every known name of every layer of the model. Raises ValueError when two layers would share a name."""
    found: dict[str, Name] = {}
    for layer in layers(targets):
        for spelling in SPELLINGS[layer.component]:
            if spelled := spell(spelling, layer.path, targets[layer.component][1]):
                name, module = spelled
                if found.setdefault(name, Name(layer, module)).layer != layer:
                    raise ValueError(f"{name} would name both {found[name].layer.path} and {layer.path}")
    return found
