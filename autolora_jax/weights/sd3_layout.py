"""The layout of SD3's and SD3.5's single files: sd3-ref's names, as rules to the canonical ones.

Source: Stability-AI/sd3-ref mmdit.py and sd3_infer.py (layout), diffusers 0.42.1 single_file_utils.py (what it means).
The VAE is LDM's, the text encoders have transformers' names.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from autolora_jax.config import CLIPTextConfig, JsonConfig, MMDiTConfig, VAEConfig
from autolora_jax.models.networks import Networks
from autolora_jax.weights import ldm
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import TensorInfo
from autolora_jax.weights.published import SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM
from autolora_jax.weights.rules import Default, Rule, Stage, halves_swapped, identity

PREFIXES: Mapping[str, str] = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
    "transformer": "model.diffusion_model.",
    "vae": "first_stage_model.",
}
# Components that single files leave out -> the files that hold just one, published beside them; the first is preferred.
SEPARATE: Mapping[str, tuple[str, ...]] = {
    "text_encoder": ("clip_l.safetensors",),
    "text_encoder_2": ("clip_g.safetensors",),
    "text_encoder_3": ("t5xxl_fp16.safetensors", "t5xxl_fp8_e4m3fn.safetensors"),
}
EXTRAS: tuple[Rule, ...] = (
    ldm.AVERAGE,
    Rule(r"(model\.)?model_sampling\..*", drop="the noise schedule as a buffer; it is computed"),
    Rule(r"text_encoders\.\w+\.logit_scale", drop="only training compares texts with images"),
    Rule(r"text_encoders\.t5xxl\.spiece_model", drop="the tokenizer, which has files of its own"),
)

# Module -> its canonical name.
ENDS: Mapping[str, str] = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
# The same within joint_blocks.N and transformer_blocks.N. Several names: the rows of one after the other.
BLOCK: Mapping[str, str | tuple[str, ...]] = {
    "x_block.adaLN_modulation.1": "norm1.linear",
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
# Where a stream ends: the last block's text, and the image. sd3-ref has shift before scale everywhere; diffusers has
# scale before shift in these two.
FINAL = "final_layer.adaLN_modulation.1"
CONTEXT_NORM = "context_block.adaLN_modulation.1"


def transformer_stage(config: MMDiTConfig) -> Stage:
    """The rules that lead the denoiser's names (without prefix) to the canonical ones."""
    last = config.num_layers - 1
    rows = [
        *((re.escape(name), (to,)) for name, to in ENDS.items()),
        *((_in_block(name), (to,) if isinstance(to, str) else to) for name, to in BLOCK.items()),
    ]
    return (
        *(_leaves(pattern, to) for pattern, to in rows),
        _leaves(_in_block(CONTEXT_NORM, rf"(?!{last}\.)\d+"), ("norm1_context.linear",)),
        _leaves(_in_block(CONTEXT_NORM, str(last)), ("norm1_context.linear",), swapped=True),
        _leaves(re.escape(FINAL), ("norm_out.linear",), swapped=True),
        Rule(r"pos_embed", "pos_embed.pos_embed"),
    )


def _in_block(name: str, number: str = r"\d+") -> str:
    return rf"joint_blocks\.(?P<block>{number})\." + re.escape(name)


def _leaves(pattern: str, to: tuple[str, ...], swapped: bool = False) -> Rule:
    block = r"transformer_blocks.\g<block>." if "(?P<block>" in pattern else ""
    targets = tuple(rf"{block}{name}.\g<leaf>" for name in to)
    return Rule(rf"{pattern}\.(?P<leaf>weight|bias)", targets, move=halves_swapped if swapped else None)


def stages_for(component: str, config: JsonConfig, canonical_names: Iterable[str]) -> tuple[Stage, ...]:
    """The stages that lead a component's names (without prefix) to canonical names.

    canonical_names: all tensors of the network, as tables.torch_name gives them.
    """
    match config:
        case MMDiTConfig():
            return (transformer_stage(config),)
        case VAEConfig():
            return ldm.stages_for(component, config, canonical_names)
    return ()


def defaults_for(component: str, config: JsonConfig) -> Mapping[str, Default]:
    """Leaves that these files lack: sd3-ref uses CLIP-L's pooled vector as it is, so they hold no projection for it."""
    if (
        component == "text_encoder"
        and isinstance(config, CLIPTextConfig)
        and config.hidden_size == config.projection_dim
    ):
        return {"text_projection/kernel": Default(identity, "the identity: SD3 takes this vector unprojected")}
    return {}


class _Size(NamedTuple):
    """What tells the published denoisers apart."""

    blocks: int
    width: int
    qk_norm: bool

    def __str__(self) -> str:
        return f"{self.blocks} blocks, {self.width} wide, {'with' if self.qk_norm else 'without'} norms of q and k"


_PUBLISHED: Mapping[str, Networks] = {
    "SD3 Medium": SD3_MEDIUM,
    "SD3.5 Medium": SD35_MEDIUM,
    "SD3.5 Large": SD35_LARGE,
}


def networks_for(tensors: Mapping[str, TensorInfo], where: str) -> Networks:
    """The configs of the published model that a single file is as large as. Raises WeightsError when there is none."""
    configs = {name: networks["transformer"] for name, networks in _PUBLISHED.items()}
    known = {name: _Size(c.num_layers, c.features, c.qk_norm is not None) for name, c in configs.items()}
    size = _measured(tensors)
    if name := next((name for name, other in known.items() if other == size), None):
        return _PUBLISHED[name]
    raise WeightsError(
        f"{where} holds a Stable Diffusion 3 denoiser of {size}; known are "
        f"{'; '.join(f'{name} ({other})' for name, other in known.items())}. Give networks=its configs, or a diffusers "
        "folder, which has them"
    )


def _measured(tensors: Mapping[str, TensorInfo]) -> _Size:
    prefix = PREFIXES["transformer"]
    found = [match for name in tensors if (match := re.match(re.escape(prefix) + r"joint_blocks\.(\d+)\.(.*)", name))]
    embedder = tensors.get(f"{prefix}x_embedder.proj.weight")
    return _Size(
        blocks=max((int(match[1]) + 1 for match in found), default=0),
        width=embedder.shape[0] if embedder and embedder.shape else 0,
        qk_norm=any(".ln_q." in match[2] for match in found),
    )
