"""What LoRA files are made of: tables of key endings, of the changes they spell, of naming styles and of base models.

A key is a module's name, a dot and an ending: `lora_unet_input_blocks_4_1_proj_in` `.` `lora_down.weight`. `PARTS` says
which part of a change an ending holds, `KINDS` which parts make which change and what to do with it. A new dialect is
a row in each (and in names.SPELLINGS if it also names modules in its own way).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from autolora_jax.weights.lora.change import LowRank, low_rank, low_rank_misfit
from autolora_jax.weights.rules import Shape

# Part -> the endings (regular expressions) that hold it. PEFT's may carry an adapter's name (`lora_A.default.weight`).
PARTS: Mapping[str, str] = {
    "down": r"lora_down\.weight|lora_A(\.[\w-]+)?\.weight|lora(_linear_layer)?\.down\.weight",
    "up": r"lora_up\.weight|lora_B(\.[\w-]+)?\.weight|lora(_linear_layer)?\.up\.weight",
    "alpha": r"alpha",
    "mid": r"lora_mid\.weight",
    "magnitude": r"dora_scale|lora_magnitude_vector(\.[\w-]+)?(\.weight)?",
    "bias": r"lora_(up|down|A|B)(\.[\w-]+)?\.bias|lora(_linear_layer)?\.(up|down)\.bias",
    "processor": r"to_(q|k|v|out)_lora\.(down|up)\.weight",
    "hada": r"hada_(w[12]_[ab]|t[12])",
    "lokr": r"lokr_(w[12](_[ab])?|t2)",
    "glora": r"(a[12]|b[12]|bm[12])\.weight",
    "oft": r"oft_(blocks|diag|R\.weight)|boft_R(\.weight)?|rescale",
    "diff": r"diff|diff_b|set_weight|reshape_weight",
    "norm": r"w_norm|b_norm",
    "ia3": r"on_input|ia3_l(\.weight)?",
    "embedding": r"lora_embedding_[AB](\.[\w-]+)?",
    "vera": r"vera_lambda_[bd](\.weight)?",
}
_KEY = re.compile(r"(?P<module>.+?)\.(?:" + "|".join(f"(?P<{part}>{ending})" for part, ending in PARTS.items()) + ")")


def split_key(key: str) -> tuple[str, str] | None:
    """(module's name in the file, part) of a tensor's name; None when no known ending fits."""
    m = _KEY.fullmatch(key)
    return (m["module"], next(p for p in PARTS if m[p] is not None)) if m else None


_EXTRACT = (
    "not supported yet: apply it in a program that can (ComfyUI: Load LoRA, then Save Checkpoint) and extract a plain "
    "LoRA from that checkpoint and the base one (sd-scripts: networks/extract_lora_from_models.py), then load that"
)


class Kind(NamedTuple):
    """One way of writing a layer's change, and how it is read."""

    name: str
    needs: frozenset[str]  # parts that it can't be without
    remedy: str = ""  # refused: what the user can do; "": read by the two functions below
    misfit: Callable[[Mapping[str, Shape], Shape], str | None] = (
        low_rank_misfit  # (part shapes, kernel) -> what is wrong
    )
    build: Callable[[Mapping[str, np.ndarray], Shape, float | None], LowRank] = low_rank  # (parts, kernel, alpha)


def _refused(name: str, part: str, remedy: str = _EXTRACT) -> Kind:
    return Kind(name, frozenset({part}), remedy)


# The first row that shares a needed part with a module describes it, so the rarer parts come first.
KINDS: tuple[Kind, ...] = (
    _refused("DoRA (a magnitude per output)", "magnitude"),
    _refused("LoHa (LyCORIS)", "hada"),
    _refused("LoKr (LyCORIS)", "lokr"),
    _refused("LoCon with a core tensor (Tucker, lora_mid)", "mid"),
    _refused("GLoRA (LyCORIS)", "glora"),
    _refused("OFT/BOFT (an orthogonal factor)", "oft"),
    _refused("full difference (diff)", "diff"),
    _refused("IA3", "ia3"),
    _refused("VeRA", "vera"),
    _refused("LoRA of an embedding table", "embedding"),
    _refused(
        "trained norms (w_norm)", "norm", "not supported yet: train or re-save it without norms (train_norm=False)"
    ),
    _refused("LoRA with a bias (lora_bias)", "bias", "not supported yet: train it with lora_bias=False"),
    _refused(
        "attention processors (diffusers in 2023)",
        "processor",
        "not supported yet: load it with diffusers (pipe.load_lora_weights) and save it again (pipe.save_lora_weights)",
    ),
    Kind("LoRA", frozenset({"down", "up"})),
)


def kind_of(parts: Iterable[str]) -> Kind | None:
    """The row of KINDS that a module with these parts is, complete or not; None for a lone alpha."""
    have = set(parts)
    return next((k for k in KINDS if k.needs & have), None)


# Keys that belong to no layer: what the file is instead. Searched in a key without known ending.
FOREIGN: tuple[tuple[str, str, str], ...] = (
    (r"^bundle_emb\.", "bundled textual-inversion embeddings", "not supported yet: delete the bundle_emb keys"),
    (r"^(emb_params|clip_[lg]|string_to_param.*)$", "a textual-inversion embedding", "not a LoRA: not supported"),
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


KOHYA_SGM = "kohya (sgm block names)"
KOHYA_SD3 = "kohya (SD3 block names)"
KOHYA_DIFFUSERS = "kohya (diffusers block names)"
KOHYA = "kohya"  # text encoders are spelled alike in all
PEFT = "PEFT/diffusers"
_SD3_BLOCKS = r"lora_unet_(joint_blocks_|context_embedder|[txy]_embedder_|final_layer_)"
# Naming styles, for messages and reports; a key's style is the first row that fits its beginning.
STYLES: tuple[tuple[str, str], ...] = (
    (KOHYA_SGM, r"lora_unet_(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_"),
    (KOHYA_SD3, _SD3_BLOCKS),
    (
        KOHYA_DIFFUSERS,
        r"lora_transformer_|lora_unet_(down_blocks|mid_block|up_blocks|time_embedding|add_embedding|conv_in|conv_out)",
    ),
    (KOHYA, r"lora_(unet|te\d?)_|bundle_emb\."),
    (PEFT, r"(unet|text_encoder(_\d)?|transformer|base_model)\."),
    ("ComfyUI", r"(diffusion_model|text_encoders)\."),
)


def naming_style(keys: Iterable[str]) -> str:
    """The style(s) in which a file's keys name layers, e.g. "kohya (sgm block names)"; "unknown" when none fits."""
    found = {next((style for style, start in STYLES if re.match(start, key)), "unknown") for key in keys} or {"unknown"}
    if found & {KOHYA_SGM, KOHYA_SD3, KOHYA_DIFFUSERS}:
        found -= {KOHYA}
    return " and ".join(sorted(found))


# Components, for reports about files that may fit no model here.
COMPONENTS: tuple[tuple[str, str], ...] = (
    ("text_encoder", r"lora_te1?_|(base_model\.model\.)?text_encoder\."),
    ("text_encoder_2", r"lora_te2_|(base_model\.model\.)?text_encoder_2\."),
    ("text_encoder_3", r"lora_te3_|(base_model\.model\.)?text_encoder_3\."),
    ("transformer", rf"(base_model\.model\.)?transformer(\.|_blocks\.)|lora_transformer_|{_SD3_BLOCKS}"),
    ("unet", r"lora_unet_|unet\.|base_model\.model\.|diffusion_model\."),
)


def component_of(module: str) -> str:
    """The component that a module's name in a file speaks of; "unknown" when it doesn't say."""
    return next((component for component, start in COMPONENTS if re.match(start, module)), "unknown")


_CROSS_KEY = r"attn2[._]to_k\.(lora_down|lora_A|lora\.down|lora_linear_layer\.down|hada_w1_b|a2)\S* in={}$"
# Base models by what their LoRAs' keys look like; the first row that any line `<key> in=<second axis>` fits.
FAMILIES: tuple[tuple[str, str], ...] = (
    ("Flux", r"single_transformer_blocks|(double|single)_blocks"),
    (
        "Stable Diffusion 3.5 Large",
        r"(joint_blocks_\d+_|transformer_blocks[._]\d+[._]attn[._])\S*(lora_down|lora_A|lora\.down)\S* in=2432$",
    ),
    ("Stable Diffusion 3.5 Medium", r"joint_blocks_\d+_x_block_attn2_"),
    (
        "Stable Diffusion 3",
        r"joint_blocks|^lora_te3_|^text_encoder_3\."
        r"|^(transformer\.|base_model\.model\.|lora_transformer_)+transformer_blocks[._]\d+[._](attn|norm1|ff_context)[._]",
    ),
    (
        "another diffusion transformer",
        r"^(diffusion_model|transformer|lora_unet)[._](blocks|layers|transformer_blocks)[._]\d",
    ),
    ("Stable Diffusion 1", _CROSS_KEY.format(768)),
    ("Stable Diffusion 2", _CROSS_KEY.format(1024)),
    ("the SDXL refiner", _CROSS_KEY.format(1280)),
    ("SDXL", _CROSS_KEY.format(2048) + r"|(down_blocks[._]2|input_blocks[._][78])[._]\S*transformer_blocks[._]9[._]"),
    ("Stable Diffusion 1 or 2", r"^lora_te_|down_blocks[._]0[._]attentions|input_blocks[._][12][._]1[._]"),
    ("SDXL", r"^lora_te2_|^text_encoder_2\.|(down_blocks|up_blocks)[._][12][._]attentions|input_blocks[._]4[._]1[._]"),
)


def guess_family(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The base model a file's keys and shapes speak of, e.g. "SDXL"; "unknown" when nothing fits."""
    lines = [f"{key} in={shape[1] if len(shape) > 1 else 0}" for key, shape in shapes.items()]
    for name, pattern in FAMILIES:
        if any(re.search(pattern, line) for line in lines):
            return name
    return "unknown"
