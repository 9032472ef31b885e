"""The LDM/sgm layout of single-file SDXL checkpoints: its module names as functions of the canonical ones.

Names are computed from the config, block by block, so the same code serves every depth and width. Source:
Stability-AI/generative-models sgm/modules/diffusionmodules/openaimodel.py and model.py (layout), open_clip's
transformer.py (second text encoder).
"""

import re
from collections.abc import Callable, Iterable, Mapping

from autolora_jax.config import JsonConfig, UNetConfig, VAEConfig
from autolora_jax.weights.rules import Rule, Stage, transposed

PREFIXES: Mapping[str, str] = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _per_level(config: UNetConfig) -> int:
    """Blocks of a level: input_blocks has its layers and a downsampler, output_blocks one layer more instead."""
    return config.layers_per_block + 1


def _down_block(config: UNetConfig, level: int, layer: int) -> str:
    return f"input_blocks.{1 + level * _per_level(config) + layer}"  # input block 0 is conv_in


def _up_block(config: UNetConfig, level: int, layer: int) -> str:
    return f"output_blocks.{level * _per_level(config) + layer}"


def _upsampler(config: UNetConfig, level: int) -> str:
    """It shares its level's last block and stands after the resnet and, where there is one, the attention."""
    position = 2 if config.up_block_types[level].startswith("CrossAttn") else 1
    return f"{_up_block(config, level, config.layers_per_block)}.{position}.conv"


# Pattern of a canonical name -> its LDM name, of (config, the numbers in the name, its last group).
_UNET_BLOCKS: tuple[tuple[str, Callable[[UNetConfig, list[int], str], str]], ...] = (
    (r"down_blocks\.(\d+)\.resnets\.(\d+)\.(\w+)", lambda c, n, leaf: f"{_down_block(c, *n)}.0.{_UNET_RESNET[leaf]}"),
    (r"down_blocks\.(\d+)\.attentions\.(\d+)\.(.+)", lambda c, n, rest: f"{_down_block(c, *n)}.1.{rest}"),
    (
        r"down_blocks\.(\d+)\.downsamplers\.0\.(conv)",
        lambda c, n, _: f"{_down_block(c, n[0], c.layers_per_block)}.0.op",
    ),
    (r"mid_block\.resnets\.(\d+)\.(\w+)", lambda c, n, leaf: f"middle_block.{2 * n[0]}.{_UNET_RESNET[leaf]}"),
    (r"mid_block\.attentions\.(\d+)\.(.+)", lambda c, n, rest: f"middle_block.{2 * n[0] + 1}.{rest}"),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)\.(\w+)", lambda c, n, leaf: f"{_up_block(c, *n)}.0.{_UNET_RESNET[leaf]}"),
    (r"up_blocks\.(\d+)\.attentions\.(\d+)\.(.+)", lambda c, n, rest: f"{_up_block(c, *n)}.1.{rest}"),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.(conv)", lambda c, n, _: _upsampler(c, *n)),
)


def ldm_module_name(canonical_module: str, config: UNetConfig) -> str:
    """LDM name of a UNet module, without prefix: "down_blocks.1.attentions.0.proj_in" -> "input_blocks.4.1.proj_in".

    Raises ValueError for a name that is no UNet module.
    """
    if canonical_module in _UNET_ENDS:
        return _UNET_ENDS[canonical_module]
    for pattern, ldm_name in _UNET_BLOCKS:
        if match := re.fullmatch(pattern, canonical_module):
            *numbers, rest = match.groups()
            try:
                return ldm_name(config, [int(n) for n in numbers], rest)
            except (KeyError, IndexError):
                break
    raise ValueError(f"{canonical_module!r} is not a module of this UNet")


_VAE_NAMES: tuple[tuple[str, str], ...] = (
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.attn_1\.group_norm$", ".attn_1.norm"),
    (r"\.attn_1\.to_([qkv])$", r".attn_1.\1"),
    (r"\.attn_1\.to_out\.0$", ".attn_1.proj_out"),
    (r"\.down_blocks\.(\d+)\.", r".down.\1."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut$", ".nin_shortcut"),
    (r"\.conv_norm_out$", ".norm_out"),
)


def ldm_vae_module_name(canonical_module: str, config: VAEConfig) -> str:
    """LDM name of a VAE module, without prefix: "decoder.conv_norm_out" -> "decoder.norm_out"."""
    last = len(config.block_out_channels) - 1
    # LDM numbers the decoder's levels from the finest, and the middle's resnets from 1.
    name = re.sub(r"\.up_blocks\.(\d+)\.", lambda m: f".up.{last - int(m[1])}.", canonical_module)
    name = re.sub(r"\.mid_block\.resnets\.(\d+)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", name)
    for pattern, ldm_name in _VAE_NAMES:
        name = re.sub(pattern, ldm_name, name)
    return name


def _leaf(module: str) -> str:
    return module + r"\.(weight|bias)"


_LAYER = r"transformer\.resblocks\.(\d+)\."
_TO_LAYER = r"text_model.encoder.layers.\1."
_QKV = tuple(_TO_LAYER + f"self_attn.{p}_proj." for p in "qkv")

OPEN_CLIP: Stage = (
    Rule(r"token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    Rule(r"positional_embedding", "text_model.embeddings.position_embedding.weight"),
    Rule(_leaf(r"ln_final"), r"text_model.final_layer_norm.\1"),
    Rule(r"text_projection", "text_projection.weight", move=transposed),
    Rule(_leaf(_LAYER + r"ln_([12])"), _TO_LAYER + r"layer_norm\2.\3"),
    Rule(_leaf(_LAYER + r"mlp\.c_fc"), _TO_LAYER + r"mlp.fc1.\2"),
    Rule(_leaf(_LAYER + r"mlp\.c_proj"), _TO_LAYER + r"mlp.fc2.\2"),
    Rule(_leaf(_LAYER + r"attn\.out_proj"), _TO_LAYER + r"self_attn.out_proj.\2"),
    Rule(_LAYER + r"attn\.in_proj_(weight|bias)", tuple(qkv + r"\2" for qkv in _QKV)),
    Rule(r"attn_mask", drop="the causal mask: a buffer of old files"),
)

AVERAGE = Rule(r"model_ema\..*", drop="the training average; other programs, too, load the plain weights beside it")
# Tensors of real single files that belong to none of the four networks.
EXTRAS: tuple[Rule, ...] = (
    AVERAGE,
    Rule(
        r"conditioner\.embedders\.0\.(transformer\.)?(logit_scale|text_projection(\.weight)?)",
        drop="SDXL takes no pooled vector of CLIP-L's, and nothing compares texts with images",
    ),
    Rule(r"v_pred|ztsnr", drop="a mark of the prediction type; the scheduler's config follows it"),
    Rule(
        r"denoiser\.sigmas|(alphas_cumprod|betas|sqrt_|log_|posterior_|model\.alphas_cumprod|model\.betas).*|logvar",
        drop="the noise schedule as a buffer; it is computed",
    ),
)
_VAE_EXTRAS: Stage = (Rule(r"loss\..*", drop="the VAE's training loss"),)


def stages_for(component: str, config: JsonConfig, canonical_names: Iterable[str]) -> tuple[Stage, ...]:
    """The stages that lead a component's LDM names (without prefix) to canonical names.

    canonical_names: all tensors of the network, as tables.torch_name gives them.
    """
    modules = [name.rpartition(".") for name in canonical_names]
    match config:
        case UNetConfig():
            return ({f"{ldm_module_name(m, config)}.{leaf}": f"{m}.{leaf}" for m, _, leaf in modules},)
        case VAEConfig():
            return _VAE_EXTRAS, {f"{ldm_vae_module_name(m, config)}.{leaf}": f"{m}.{leaf}" for m, _, leaf in modules}
    return (OPEN_CLIP,) if component == "text_encoder_2" else ()
