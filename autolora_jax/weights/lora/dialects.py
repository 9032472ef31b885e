"""What LoRA files' keys look like: tables of naming styles and of base models.

A key is a module's name, a dot and an ending: `lora_unet_input_blocks_4_1_proj_in` `.` `lora_down.weight`. Every kind
of LoRA says which endings hold its parts (kinds/). A new dialect is a row in these tables, and in
names.LAYOUTS if it also names modules in its own way.
"""

import functools
import re
from collections.abc import Container, Iterable, Mapping

from autolora_jax.weights.lora import kinds
from autolora_jax.weights.rules import Shape

# Attention processors' names of 2023, as today's. Source: diffusers/utils/state_dict_utils.py.
_PROCESSORS = (
    (re.compile(r"\.processor\.to_([qkv])_lora\."), r".to_\1.lora."),
    (re.compile(r"\.processor\.to_out_lora\."), ".to_out.0.lora."),
    (re.compile(r"\.self_attn\.to_([qkv])_lora\."), r".self_attn.\1_proj.lora."),
    (re.compile(r"\.self_attn\.to_out_lora\."), ".self_attn.out_proj.lora."),
    (re.compile(r"_lora\.(?=(up|down)\.)"), ".lora."),  # of any other layer
)


def split_key(key: str, keys: Container[str] = ()) -> tuple[str, str] | None:
    """(module's name, part) of a tensor's name; None when no known ending fits. keys: of the whole file."""
    if key.endswith(".weight") and f"{key.removesuffix('.weight')}.on_input" in keys:  # LyCORIS's IA3 says no more
        return key.removesuffix(".weight"), "ia3_weight"
    for pattern, today in _PROCESSORS:
        key = pattern.sub(today, key)
    m = _key(kinds.KINDS).fullmatch(key)
    return (m["module"], str(m.lastgroup)) if m else None


@functools.cache
def _key(known: tuple[kinds.Kind, ...]) -> re.Pattern[str]:
    endings = (f"(?P<{part}>{ending})" for part, ending in kinds.endings(known).items())
    return re.compile(rf"(?P<module>.+?)\.(?:{'|'.join(endings)})")


# A name that gives a LoRA file away, for those who wonder what a file is: parts that no checkpoint has, or a prefix.
_TELLING = kinds.endings(kind for kind in kinds.KINDS if kind.telling)
LORA_KEY = (
    r"(lora_(unet|te\d?|transformer)|oft_unet|lycoris)_.*|bundle_emb\..*|.*_lora\.(up|down)\.weight|.*\.("
    + "|".join(ending for part, ending in _TELLING.items() if part != "alpha")
    + ")"
)

# Keys that belong to no layer: what the file is instead. Searched in a key without known ending.
FOREIGN: tuple[tuple[str, str, str], ...] = (
    (
        r"^(emb_params|clip_[lg]|t5(xxl)?|text_encoders_[01]|string_to_param.*)$",
        "a textual-inversion embedding",
        "not a LoRA: load it with load_textual_inversion (autolora generate --embedding)",
    ),
    (r"^lora_controlnet$|^(control_model|controlnet)[._]", "a ControlNet", "not a LoRA: not supported"),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter", "not a LoRA: not supported"),
    (
        r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.|^(conv_in|mid_block|down_blocks)\.",
        "a whole model",
        "not a LoRA: pass it as the model itself",
    ),
)


def foreign(key: str) -> tuple[str, str] | None:
    """(what a key without a known ending belongs to, remedy), or None."""
    return next(((what, remedy) for pattern, what, remedy in FOREIGN if re.search(pattern, key)), None)


DENOISERS, TEXTS = ("unet", "transformer"), ("text_encoder", "text_encoder_2", "text_encoder_3")
_IN_COMFY = ("clip_l", "clip_g", "t5xxl")
# How names begin before a layer's own, dots as underscores -> the components that it speaks of; none: it is a wrapper.
# They stand one after another, even twice.
PREFIXES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(
        ("lora_unet_", "oft_unet_", "unet_", "lora_transformer_", "transformer_", "lycoris_", "diffusion_model_"),
        frozenset(DENOISERS),
    ),
    **{f"lora_te{i}_": frozenset({name}) for i, name in enumerate(TEXTS, 1)},
    **{f"{name}_": frozenset({name}) for name in TEXTS},
    # OMI's begin with the file's own name (OneTrainer 2025), ComfyUI's with `text_encoders.`
    **{f"{own}_": frozenset({name}) for own, name in zip((*_IN_COMFY, "t5"), (*TEXTS, TEXTS[-1]), strict=True)},
    **{
        f"text_encoders_{own}_{inner}": frozenset({name})
        for own, name in zip(_IN_COMFY, TEXTS, strict=True)
        for inner in ("transformer_", "")
    },
    **dict.fromkeys(("base_model_model_", "base_model_", "model_"), frozenset()),
}
UNKNOWN = "unknown"
KOHYA_SGM = "kohya (sgm block names)"
KOHYA_SD3 = "kohya (SD3 block names)"
KOHYA_DIFFUSERS = "kohya (diffusers block names)"
SIMPLE_TUNER = "LyCORIS (diffusers block names)"  # SimpleTuner's
KOHYA = "kohya"  # text encoders are spelled alike in all
PEFT = "PEFT/diffusers"
COMFY = "ComfyUI"
COMFY_DIFFUSERS = "ComfyUI (diffusers block names)"  # SimpleTuner's
OMI = "OMI"  # OneTrainer's of 2025
ORIGINAL = "original block names"  # OneTrainer's of that name: ComfyUI's without a prefix
_SD3_BLOCKS = r"lora_unet_(joint_blocks_|context_embedder|[txy]_embedder_|final_layer_)"
_ORIGINAL_UNET = r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\."
_ORIGINAL_SD3 = r"(joint_blocks|[txy]_embedder|final_layer)\."
EITHER = "PEFT/diffusers or original block names"  # a layer that both call the same
# Naming styles, for messages and reports; a key's style is the first row that fits its beginning.
STYLES: tuple[tuple[str, str], ...] = (
    (KOHYA_SGM, r"(lora|oft)_unet_(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_"),
    (KOHYA_SD3, _SD3_BLOCKS),
    (
        KOHYA_DIFFUSERS,
        r"lora_transformer_|lora_unet_(down_blocks|mid_block|up_blocks|time_embedding|add_embedding|conv_in|conv_out)",
    ),
    (KOHYA, r"lora_(unet|te\d?)_|oft_unet_|bundle_emb\."),
    (SIMPLE_TUNER, r"lycoris_"),
    (OMI, rf"unet\.{_ORIGINAL_UNET}|transformer\.{_ORIGINAL_SD3}|(clip_[lg]|t5(xxl)?)\."),
    (
        COMFY_DIFFUSERS,
        r"diffusion_model\.(down_blocks|mid_block|up_blocks|time_embedding|add_embedding|transformer_blocks)\.",
    ),
    (
        PEFT,
        r"(unet|text_encoder(_\d)?|transformer|base_model|down_blocks|up_blocks|mid_block|transformer_blocks)\."
        r"|(time_embedding|add_embedding|conv_in|conv_out|time_text_embed|pos_embed|norm_out|proj_out)\.",
    ),
    (COMFY, r"(diffusion_model|text_encoders)\."),
    (ORIGINAL, rf"{_ORIGINAL_UNET}|{_ORIGINAL_SD3}"),
    (EITHER, r"context_embedder\."),
)


_WRAPPERS = re.compile(
    r"((module|_orig_mod|_fsdp_wrapped_module|model(?=\.diffusion_model)"
    r"|(?P<twice>unet|transformer|text_encoder(_\d)?|diffusion_model|base_model\.model)(?=\.(?P=twice)\.))\.)+"
)


def unwrapped(name: str) -> str:
    """A name without what wrappers put before it, for reports."""
    return _WRAPPERS.sub("", name, 1) if _WRAPPERS.match(name) else name


def naming_style(keys: Iterable[str]) -> str:
    """The style(s) in which a file's keys name layers, e.g. "kohya (sgm block names)"; UNKNOWN when none fits."""
    bare = {unwrapped(key) for key in keys}
    found = {next((style for style, start in STYLES if re.match(start, key)), UNKNOWN) for key in bare} or {UNKNOWN}
    if found & {KOHYA_SGM, KOHYA_SD3, KOHYA_DIFFUSERS}:
        found -= {KOHYA}
    if found & {PEFT, ORIGINAL}:
        found -= {EITHER}
    return " and ".join(sorted(found))


# Components, for reports about files that may fit no model here.
_TEXT_ENCODERS: tuple[tuple[str, str], ...] = (
    ("text_encoder", r"lora_te1?_|(base_model\.model\.)?text_encoder\.|(text_encoders\.)?clip_l\."),
    ("text_encoder_2", r"lora_te2_|(base_model\.model\.)?text_encoder_2\.|(text_encoders\.)?clip_g\."),
    ("text_encoder_3", r"lora_te3_|(base_model\.model\.)?text_encoder_3\.|(text_encoders\.)?t5(xxl)?\."),
)
_DENOISERS: tuple[tuple[str, str], ...] = (
    ("transformer", r"(base_model\.model\.)?transformer\.|lora_transformer_"),
    ("unet", r"(lora|oft)_unet_|unet\.|base_model\.model\.|diffusion_model\."),
)
_WITH_UNET = ("SDXL", "the SDXL refiner", "Stable Diffusion 1", "Stable Diffusion 2", "Stable Diffusion 1 or 2")


def component_of(module: str, family: str) -> str:
    """The component that a module's name in a file speaks of; UNKNOWN when neither it nor the family says."""
    denoiser = "unet" if family in _WITH_UNET else "transformer"
    rows = (*_TEXT_ENCODERS, *(_DENOISERS if family == UNKNOWN else ((denoiser, ""),)))
    return next((component for component, start in rows if re.match(start, unwrapped(module))), UNKNOWN)


_CROSS_KEY = r"attn2[._]to_k in={}$"
_SD3_BLOCK = (
    r"^(transformer\.|base_model\.model\.|diffusion_model\.|lora_transformer_|lora_unet_|lycoris_)*"
    r"transformer_blocks[._]\d+[._]"
)
# Base models by what their LoRAs change; the first row that any line `<module> in=<inputs>` fits.
FAMILIES: tuple[tuple[str, str], ...] = (
    ("Flux", r"single_transformer_blocks|(double|single)_blocks"),
    ("another diffusion transformer", _SD3_BLOCK + r"((attn|ff|norm)\S* in=3072$|(img|txt)_)"),  # Qwen-Image, …
    ("Stable Diffusion 3.5 Large", rf"(joint_blocks[._]\d+[._]|{_SD3_BLOCK}attn[._])\S* in=2432$"),
    ("Stable Diffusion 3.5 Medium", rf"joint_blocks[._]\d+[._]x_block[._]attn2[._]|{_SD3_BLOCK}attn2[._]\S* in=1536$"),
    (
        "Stable Diffusion 3",
        r"joint_blocks|^lora_te3_|^text_encoder_3\.|^(text_encoders\.)?t5(xxl)?\."
        rf"|{_SD3_BLOCK}(attn|norm1|norm1_context|ff_context)[._]",
    ),
    (
        "another diffusion transformer",
        r"^(diffusion_model|transformer|lora_unet|lora_transformer|lycoris)[._](blocks|layers|transformer_blocks)[._]\d",
    ),
    ("Stable Diffusion 1", _CROSS_KEY.format(768)),
    ("Stable Diffusion 2", _CROSS_KEY.format(1024)),
    ("the SDXL refiner", _CROSS_KEY.format(1280)),
    ("SDXL", _CROSS_KEY.format(2048) + r"|(down_blocks[._]2|input_blocks[._][78])[._]\S*transformer_blocks[._]9[._]"),
    ("Stable Diffusion 1 or 2", r"^lora_te_|down_blocks[._]0[._]attentions|input_blocks[._][12][._]1[._]"),
    (
        "SDXL",
        r"^lora_te2_|^text_encoder_2\.|^(text_encoders\.)?clip_g\."
        r"|(down_blocks|up_blocks)[._][12][._]attentions|input_blocks[._]4[._]1[._]",
    ),
)


def guess_family(shapes: Mapping[str, Shape]) -> str:
    """The base model a file's keys and shapes speak of, e.g. "SDXL"; UNKNOWN when nothing fits."""
    modules: dict[str, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        module, part = split_key(key, shapes) or (key, "")
        modules.setdefault(module, {})[part] = shape
    lines = [f"{unwrapped(module)} in={kinds.sizes_of(parts).inputs or 0}" for module, parts in modules.items()]
    for name, pattern in FAMILIES:
        if any(re.search(pattern, line) for line in lines):
            return name
    return UNKNOWN
