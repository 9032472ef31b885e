"""Single-file checkpoints, as civitai ships them: several networks, no configs, no tokenizers."""

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from autolora_jax.config import JsonConfig, SchedulerConfig
from autolora_jax.models.networks import Networks, shapes_of
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.files import TensorInfo, open_tensors
from autolora_jax.weights.layouts import LAYOUTS, Layout
from autolora_jax.weights.lora.dialects import LORA_KEY
from autolora_jax.weights.rules import flat_shapes
from autolora_jax.weights.streaming import TensorWeights
from autolora_jax.weights.tables import stages_for, torch_name

LORA, TEXTUAL_INVERSION = "a LoRA", "a textual inversion"
_UNET = r"(model\.diffusion_model\.)?"
_NOT, _ONE_OF = "it is not supported", f"give one of {' or '.join(layout.family.name for layout in LAYOUTS)}"

# (what it is, what to do, a tensor name that gives it away). The first that fits.
_OTHERS: tuple[tuple[str, str, str], ...] = (
    (LORA, "give it to load_lora (--lora)", LORA_KEY),
    ("a Stable Diffusion 1 checkpoint", _ONE_OF, r"cond_stage_model\.transformer\..*"),
    ("a Stable Diffusion 2 checkpoint", _ONE_OF, r"cond_stage_model\.model\..*"),
    ("the SDXL refiner", "it can't draw on its own; give SDXL base", r"conditioner\.embedders\.0\.model\..*"),
    ("a Flux checkpoint", _ONE_OF, _UNET + r"double_blocks\..*"),
    ("a video model", _ONE_OF, r".*\.time_stack\..*"),
    (
        "a ControlNet",
        "ControlNets are not supported",
        r"(control_model|controlnet_cond_embedding|input_hint_block)\..*",
    ),
    ("an IP-Adapter", "IP-Adapters are not supported", r"(image_proj|ip_adapter)\..*"),
    (
        TEXTUAL_INVERSION,
        "give it to load_textual_inversion (--embedding)",
        r"clip_[lg]|t5(xxl)?|text_encoders_[01]|emb_params|string_to_param\..*",
    ),
    ("an SDXL variant with EDM preconditioning (Playground 2.5, CosXL)", _NOT, r"edm_(mean|std|vpred\..*)"),
    ("an LCM-distilled UNet", _NOT, _UNET + r"time_embed\.cond_proj\.weight"),
    (
        "a text encoder",
        "give the whole folder, or give it as text_encoders= (--text-encoders-from) with a single file that lacks it",
        r"text_model\..*|encoder\.block\..*",
    ),
    ("a component of a diffusers folder", "give the whole folder", r"(down|transformer)_blocks\..*|(de|en)coder\..*"),
    (
        "a bare denoiser",
        "give a checkpoint that holds its VAE, too",
        r"(diffusion_model\.)?(input_blocks|joint_blocks)\..*",
    ),
)
VAE = "a VAE"
VAE_KEY = re.compile(
    r"(first_stage_model\.|vae\.|)((post_)?quant_conv|loss|model_ema|(de|en)coder\."
    r"(conv_in|conv_out|norm_out|conv_norm_out|mid|mid_block|down|up|down_blocks|up_blocks))\..*"
)
_EVEN_WHOLE = ("an SDXL variant with EDM", "an LCM-distilled UNet")  # what a file that has every component may be
_CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
_BY_INPUT_CHANNELS = {9: "an inpainting checkpoint", 8: "an InstructPix2Pix checkpoint"}


def what_else(tensors: Mapping[str, TensorInfo]) -> tuple[str, str] | None:
    """(what these tensors are instead of a whole checkpoint, what to do), or None when nothing gives that away.

    A file with every component of a layout is one, whatever strays in it.
    """
    if tensors and all(VAE_KEY.fullmatch(name) for name in tensors):
        return VAE, "give it as vae= (--vae), and a checkpoint beside it"
    whole = any(_has_all(tensors, layout) for layout in LAYOUTS)
    for what, advice, pattern in _OTHERS:
        if (not whole or what.startswith(_EVEN_WHOLE)) and any(re.fullmatch(pattern, name) for name in tensors):
            return what, advice
    shape = tensors[_CONV_IN].shape if _CONV_IN in tensors else ()
    channels = shape[1] if len(shape) == 4 else 4
    if kind := _BY_INPUT_CHANNELS.get(channels):
        return kind, f"its UNet takes {channels} channels, 4 are needed; give the base checkpoint"
    if layout_of(tensors) is None:
        return "no model known here", _ONE_OF
    return None


def _has_all(tensors: Mapping[str, TensorInfo], layout: Layout) -> bool:
    needed = [prefix for component, prefix in layout.prefixes.items() if component not in layout.separate]
    signs = any(re.fullmatch(layout.sign, name) for name in tensors)
    return signs and all(any(name.startswith(prefix) for name in tensors) for prefix in needed)


def layout_of(tensors: Mapping[str, TensorInfo]) -> Layout | None:
    """The layout whose components the tensors' names begin with; None when none fits."""
    signs = (layout for layout in LAYOUTS if any(re.fullmatch(layout.sign, name) for name in tensors))
    likely = next(signs, LAYOUTS[0])
    return likely if any(name.startswith(tuple(likely.prefixes.values())) for name in tensors) else None


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """A checked single file: its configs, and how each component's tensors are found."""

    layout: Layout
    networks: Networks  # of the components it holds
    absent: Networks  # of those that it leaves out, as it may
    scheduler: SchedulerConfig
    weights: Mapping[str, TensorWeights]
    dropped: Mapping[str, str]  # tensors of no component -> why they are left out


def read_single_file(path: Path, networks: Networks | None = None) -> SingleFile:
    """What a file holds. Raises WeightsError when it is not a whole checkpoint.

    networks: configs of its components; None: those of the published model that its tensors look like.
    """
    with open_tensors(path) as files:
        tensors, metadata = files.tensors, files.metadata
    if other := what_else(tensors):
        raise WeightsError(f"{path} looks like {other[0]}, not a checkpoint to draw with: {other[1]}")
    layout = layout_of(tensors)
    assert layout is not None, "what_else has said so"
    found = {c for c, prefix in layout.prefixes.items() if any(name.startswith(prefix) for name in tensors)}
    problems = [
        f"no {component}: no tensor starts with {prefix}"
        for component, prefix in layout.prefixes.items()
        if component not in found and component not in layout.separate
    ]
    dropped, unknown = _extras(tensors, layout)
    if unknown:
        problems.append(f"{len(unknown)} tensors of no component: {shorten(unknown)}")
    if unknown and len(problems) == 1:
        raise WeightsError(
            f"{path} is a whole {layout.family.name} checkpoint with {problems[0]}; what they mean is not known, so "
            "delete them to do without"
        )
    if problems:
        raise WeightsError(f"{path} is not a whole {layout.family.name} checkpoint:\n  " + "\n  ".join(problems))
    configs = layout.networks(tensors, str(path)) if networks is None else networks
    held = {component: config for component, config in configs.items() if component in found}
    absent = {component: config for component, config in configs.items() if component not in found}
    weights = {component: _component(path, layout, component, config) for component, config in held.items()}
    return SingleFile(layout, held, absent, layout.scheduler(tensors, metadata), weights, dropped)


def _extras(tensors: Mapping[str, TensorInfo], layout: Layout) -> tuple[dict[str, str], list[str]]:
    """(tensor of no component -> why it is left out, those that nobody knows)."""
    dropped, unknown = {}, []
    for name in tensors:
        reasons = [rule.drop for rule in layout.extras if re.fullmatch(rule.pattern, name)]
        if reasons and reasons[0]:
            dropped[name] = reasons[0]
        elif not name.startswith(tuple(layout.prefixes.values())):
            unknown.append(name)
    return dropped, unknown


def _component(path: Path, layout: Layout, component: str, config: JsonConfig) -> TensorWeights:
    names = [torch_name(leaf, len(shape)) for leaf, shape in flat_shapes(shapes_of(config)).items()]
    stages = (*layout.stages(component, config, names), *stages_for(config))
    return TensorWeights(
        partial(open_tensors, path), layout.prefixes[component], stages, layout.defaults(component, config)
    )
