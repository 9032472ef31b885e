"""How LoRA files name a model's layers.

kohya joins path segments with underscores, which can't be parsed back ("to_out_0", "down_blocks_1_attentions_0"), so no
name is ever parsed: every layer of the model is spelled in every layout, and a file's name, without its prefixes, is
looked up. Several layers may have one name: where a file's layout has them as one.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from autolora_jax.config import JsonConfig, MMDiTConfig, UNetConfig
from autolora_jax.weights.ldm import ldm_module_name
from autolora_jax.weights.lora.dialects import DENOISERS, KOHYA, PEFT, PREFIXES, TEXTS
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


_UNET, _SD3, _TEXT = (_sgm, _canonical), (_sd3, _canonical), (_canonical, _flattened)
# component -> how its layers are called after any of its prefixes (dialects.PREFIXES), each with each.
LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "unet": _UNET,
    "transformer": _SD3,
    "text_encoder": _TEXT,
    "text_encoder_2": _TEXT,
    "text_encoder_3": _TEXT,
}
# style -> component -> how a file of that style that is written here names its layers.
SPELLINGS: Mapping[str, Mapping[str, Spelling]] = {
    KOHYA: {
        "unet": Spelling("lora_unet_", _sgm, "_"),
        "transformer": Spelling("lora_unet_", _sd3, "_"),
        **{component: Spelling(f"lora_te{i}_", _canonical, "_") for i, component in enumerate(TEXTS, 1)},
    },
    PEFT: {component: Spelling(f"{component}.", _canonical) for component in LAYOUTS},
}
# Words in a layer's name that say how it was wrapped when it was saved (torch.compile, DDP, FSDP, diffusers' attention
# processors of 2023), wherever they stand.
_WRAPPED = re.compile(r"(^|_)(_?(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)|module|processor)(?=_|$)")
# An end of a name -> what else the same layer is called: ComfyUI and the processors of 2023.
_ALSO = (
    ("_to_out_0", "_to_out"),
    *((f"_self_attn_{part}_proj", f"_self_attn_to_{part}") for part in ("q", "k", "v", "out")),
)


def flat(name: str) -> str:
    """A layer's name with all that programs differ in taken out: "unet._orig_mod.a.to_q" -> "unet_a_to_q".

    kohya's dots are underscores, in some files not all of them; no two layers are told apart by that alone.
    """
    return re.sub("_+", "_", _WRAPPED.sub(r"\1", re.sub(r"[.$]", "_", name))).strip("_")


def layers(targets: Targets, leaf: str = "kernel") -> Iterator[Layer]:
    """Every layer with a kernel, of every component; leaf="scale": every norm with a weight."""
    for component, (tree, _) in targets.items():
        for path, shape in flat_shapes(tree).items():
            if path.endswith(f"/{leaf}"):
                yield Layer(component, path.removesuffix(f"/{leaf}"), shape)


def spell(spelling: Spelling, module: str, config: JsonConfig) -> tuple[str, Place]:
    """(full name, place in the layout) of a layer.

    module: its canonical name. config: of its network. Raises ValueError where the layout follows from a config of
    another type.
    """
    place = spelling.layout(module, config)
    assert place, "what is written has names for all layers"
    return spelling.prefix + place.module.replace(".", spelling.separator), place


class Names:
    """What names in files stand for, of one model: `"lora_unet_…" in names`, `names["lora_unet_…"]`."""

    def __init__(self, targets: Targets) -> None:
        """Raises ValueError when two layers of a component would share a name."""
        self.family = _family(targets)  # as dialects.FAMILIES calls it
        found: dict[str, dict[str, dict[int, Share]]] = {component: {} for component in targets}
        for layer in chain(layers(targets), layers(targets, "scale")):
            module, config = torch_module(layer.path), targets[layer.component][1]
            for layout in LAYOUTS[layer.component]:
                if place := layout(module, config):
                    for name in _called(flat(place.module)):
                        shares = found[layer.component].setdefault(name, {})
                        if shares.setdefault(place.part, Share(layer, place)).layer != layer:
                            other = shares[place.part].layer.path
                            raise ValueError(f"{name} would name both {other} and {layer.path}")
        self._found = {
            component: {name: Name(tuple(shares[part] for part in sorted(shares))) for name, shares in names.items()}
            for component, names in found.items()
        }

    def __contains__(self, module: str) -> bool:
        return self._find(module) is not None

    def __getitem__(self, module: str) -> Name:
        if name := self._find(module):
            return name
        raise KeyError(module)

    def _find(self, module: str) -> Name | None:
        """What a name means: prefixes, of which there may be several, and a layer's name in some layout."""
        seen: set[tuple[str, frozenset[str]]] = set()
        # A name without a prefix is one of the denoiser.
        waiting = [(flat(module), frozenset[str]())]
        while waiting:
            rest, said = state = waiting.pop()
            if state in seen:
                continue
            seen.add(state)
            for component in said or DENOISERS:
                if name := self._found.get(component, {}).get(rest):
                    return name
            for prefix, components in PREFIXES.items():
                if rest.startswith(prefix) and (not said or not components or said & components):
                    both = said & components if said and components else said or components
                    waiting.append((rest.removeprefix(prefix), both))
        return None


def _family(targets: Targets) -> str:
    if "transformer" not in targets:
        return "SDXL"
    config = _of_type(MMDiTConfig, targets["transformer"][1])
    if config.qk_norm is None:
        return "Stable Diffusion 3"
    return f"Stable Diffusion 3.5 {'Medium' if config.dual_attention_layers else 'Large'}"


def _called(name: str) -> Iterator[str]:
    yield name
    for end, other in _ALSO:
        if name.endswith(end):
            yield name.removesuffix(end) + other
