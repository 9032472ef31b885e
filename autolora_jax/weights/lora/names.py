"""How LoRA files name a model's layers.

kohya joins path segments with underscores, which can't be parsed back ("to_out_0", "down_blocks_1_attentions_0"), so no
name is ever parsed: every layer of the model is spelled in every known way, and a file's name is looked up. Several
layers may have one name: where a file's layout has them as one.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from autolora_jax.config import JsonConfig, MMDiTConfig, UNetConfig
from autolora_jax.weights.ldm import ldm_module_name
from autolora_jax.weights.lora.dialects import (
    COMFY,
    KOHYA,
    KOHYA_DIFFUSERS,
    KOHYA_SD3,
    KOHYA_SGM,
    ORIGINAL,
    PEFT,
    SIMPLE_TUNER,
)
from autolora_jax.weights.rules import Shape, flat_shapes
from autolora_jax.weights.sd3_layout import BLOCK, CONTEXT_NORM, ENDS, FINAL
from autolora_jax.weights.tables import torch_module

Targets = Mapping[str, tuple[Mapping[str, Any], JsonConfig]]  # component -> (its parameter tree or shapes, its config)
C = TypeVar("C", bound=JsonConfig)


class Layer(NamedTuple):
    """A layer that a LoRA can change."""

    component: str  # "unet" or "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"
    path: str  # in the component's tree: "down_blocks_1/attentions_0/proj_in"
    kernel: Shape  # Dense [in, out] or Conv [kh, kw, in, out]; of a norm its weight's [c]


class Place(NamedTuple):
    """Where a layer is in a layout."""

    module: str  # its name there
    part: int = 0  # which one of …
    parts: int = 1  # … how many equal pieces of that module's outputs the layer is
    swapped: bool = False  # the halves of its outputs stand there in the other order: (shift, scale) for (scale, shift)


class Share(NamedTuple):
    """A layer of a name, and where it is in the file's layout."""

    layer: Layer
    place: Place


class Name(NamedTuple):
    """What a name in a file stands for."""

    shares: tuple[Share, ...]  # one layer, or all that are pieces of one module in the file's layout, in order

    @property
    def module(self) -> str:
        """The module's name within its component, as the file's author knew it."""
        return self.shares[0].place.module

    @property
    def component(self) -> str:
        return self.shares[0].layer.component

    @property
    def kernel(self) -> Shape:
        """Of the module in the file's layout."""
        *inner, outputs = self.shares[0].layer.kernel
        return (*inner, outputs * self.shares[0].place.parts)


# (a layer's canonical name, its network's config) -> where it is in a layout; None where that has no such layer
Layout = Callable[[str, JsonConfig], Place | None]


class Spelling(NamedTuple):
    """One way of naming a component's layers: prefix + the name in a layout, its dots replaced by `separator`."""

    style: str
    prefix: str
    layout: Layout
    separator: str = "."


def _canonical(module: str, config: JsonConfig) -> Place | None:
    return Place(module)


def _sgm(module: str, config: JsonConfig) -> Place | None:
    return Place(ldm_module_name(module, _of_type(UNetConfig, config)))


def _places(table: Mapping[str, str | tuple[str, ...]]) -> Iterator[tuple[str, Place]]:
    for name, to in table.items():
        modules = (to,) if isinstance(to, str) else to
        yield from ((module, Place(name, part, len(modules))) for part, module in enumerate(modules))


_TEXT_NORM = "norm1_context.linear"
# Canonical name -> place; within a block: without its number.
_OUTSIDE = {**dict(_places(ENDS)), "norm_out.linear": Place(FINAL, swapped=True)}
_IN_BLOCK = {**dict(_places(BLOCK)), _TEXT_NORM: Place(CONTEXT_NORM)}


def _sd3(module: str, config: JsonConfig) -> Place | None:
    """As single files have it, q, k, v as one: "transformer_blocks.3.ff.net.2" -> "joint_blocks.3.x_block.mlp.fc2"."""
    last = _of_type(MMDiTConfig, config).num_layers - 1
    match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
    if not match:
        return _OUTSIDE.get(module, Place(module))
    number, inner = match.groups()
    place = _IN_BLOCK[inner]
    ends = inner == _TEXT_NORM and int(number) == last
    return place._replace(module=f"joint_blocks.{number}.{place.module}", swapped=ends)


def _flattened(module: str, config: JsonConfig) -> Place | None:
    """transformers >= 5.6 names CLIPTextModel's layers without `text_model.`."""
    return Place(module.removeprefix("text_model.")) if module.startswith("text_model.") else None


def _of_type(expected: type[C], config: JsonConfig) -> C:
    if not isinstance(config, expected):
        raise ValueError(
            f"these layers' names follow from a {expected.__name__}, not from the {type(config).__name__} given; pass "
            "the base model's denoiser_config"
        )
    return config


def _peft(component: str, layout: Layout = _canonical) -> tuple[Spelling, ...]:
    prefixes = (f"{component}.", f"{component}.base_model.model.", f"base_model.model.{component}.")
    return tuple(Spelling(PEFT, prefix, layout) for prefix in prefixes)


_OF_A_DENOISER = (
    Spelling(PEFT, "base_model.model.", _canonical),  # PEFT's own folders
    Spelling(PEFT, "", _canonical),  # diffusers' save_attn_procs and save_lora_adapter
    Spelling(SIMPLE_TUNER, "lycoris_", _canonical, "_"),
)
_COMFY_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}


def _text_spellings(component: str, kohya_prefix: str) -> tuple[Spelling, ...]:
    in_comfy = f"text_encoders.{_COMFY_ENCODERS[component]}.transformer."
    return tuple(
        spelling
        for layout in (_canonical, _flattened)
        for spelling in (
            Spelling(KOHYA, kohya_prefix, layout, "_"),
            *_peft(component, layout),
            Spelling(COMFY, in_comfy, layout),
        )
    )


# The first row of a component that fits is what export writes in that dialect.
SPELLINGS: Mapping[str, tuple[Spelling, ...]] = {
    "unet": (
        Spelling(KOHYA_SGM, "lora_unet_", _sgm, "_"),
        Spelling(KOHYA_DIFFUSERS, "lora_unet_", _canonical, "_"),
        *_peft("unet"),
        *_OF_A_DENOISER,
        Spelling(COMFY, "diffusion_model.", _sgm),
        Spelling(ORIGINAL, "", _sgm),
    ),
    "transformer": (
        Spelling(KOHYA_SD3, "lora_unet_", _sd3, "_"),
        Spelling(KOHYA_DIFFUSERS, "lora_transformer_", _canonical, "_"),  # OneTrainer's
        *_peft("transformer"),
        *_OF_A_DENOISER,
        Spelling(COMFY, "diffusion_model.", _sd3),
        Spelling(ORIGINAL, "", _sd3),
    ),
    "text_encoder": _text_spellings("text_encoder", "lora_te1_"),
    "text_encoder_2": _text_spellings("text_encoder_2", "lora_te2_"),
    "text_encoder_3": _text_spellings("text_encoder_3", "lora_te3_"),
}


def layers(targets: Targets, leaf: str = "kernel") -> Iterator[Layer]:
    """Every layer with a kernel, of every component; leaf="scale": every norm with a weight."""
    for component, (tree, _) in targets.items():
        for path, shape in flat_shapes(tree).items():
            if path.endswith(f"/{leaf}"):
                yield Layer(component, path.removesuffix(f"/{leaf}"), shape)


def spell(spelling: Spelling, module: str, config: JsonConfig) -> tuple[str, Place] | None:
    """(full name, place in the layout) of a layer; None where the layout has no such layer.

    module: its canonical name. config: of its network. Raises ValueError where the layout follows from a config of
    another type.
    """
    place = spelling.layout(module, config)
    return (spelling.prefix + place.module.replace(".", spelling.separator), place) if place else None


def names(targets: Targets) -> dict[str, Name]:
    """Every known name of every layer of the model. Raises ValueError when two layers would share a name."""
    found: dict[str, dict[int, Share]] = {}
    for layer in chain(layers(targets), layers(targets, "scale")):
        module, config = torch_module(layer.path), targets[layer.component][1]
        for spelling in SPELLINGS[layer.component]:
            if spelled := spell(spelling, module, config):
                name, place = spelled
                shares = found.setdefault(name, {})
                if shares.setdefault(place.part, Share(layer, place)).layer != layer:
                    raise ValueError(f"{name} would name both {shares[place.part].layer.path} and {layer.path}")
    return {name: Name(tuple(shares[part] for part in sorted(shares))) for name, shares in found.items()}
