"""Rows that lead the canonical diffusers/transformers names into our trees, and back.

Our module paths are theirs (list indices joined by "_"), so a row per kind of leaf is enough for every network.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from autolora_jax import config as configs
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.rules import Rule, Stage, hwio_to_oihw, oi11_to_io, oihw_to_hwio, transposed

_NORM_AND_BIAS = (
    Rule(r"(.*)\.weight", r"\1.scale", ndim=1),
    Rule(r"(.*)\.bias", r"\1.bias", ndim=1),
)

UNET: tuple[Stage, ...] = (
    (
        Rule(r"(.*)\.weight", r"\1.kernel", ndim=4, move=oihw_to_hwio),
        Rule(r"(.*)\.weight", r"\1.kernel", ndim=2, move=transposed),
        *_NORM_AND_BIAS,
    ),
)

_POSITIONS = Rule(r"pos_embed\.pos_embed", r"pos_embed.pos_embed", ndim=3)  # a table, not a layer

MMDIT: tuple[Stage, ...] = ((*UNET[0], _POSITIONS),)

VAE: tuple[Stage, ...] = (
    # Names before diffusers 0.13; files saved then are still published.
    (
        Rule(r"(.*\.attentions\.0)\.query\.(weight|bias)", r"\1.to_q.\2"),
        Rule(r"(.*\.attentions\.0)\.key\.(weight|bias)", r"\1.to_k.\2"),
        Rule(r"(.*\.attentions\.0)\.value\.(weight|bias)", r"\1.to_v.\2"),
        Rule(r"(.*\.attentions\.0)\.proj_attn\.(weight|bias)", r"\1.to_out.0.\2"),
    ),
    (
        Rule(r"((?!.*\.attentions\.).*)\.weight", r"\1.kernel", ndim=4, move=oihw_to_hwio),
        # LDM's attention is 1x1 convolutions.
        Rule(r"(.*\.attentions\..*)\.weight", r"\1.kernel", ndim=4, move=oi11_to_io),
        Rule(r"(.*)\.weight", r"\1.kernel", ndim=2, move=transposed),
        *_NORM_AND_BIAS,
    ),
)

_CLIP_LEAVES: Stage = (
    Rule(r"(.*\.(?:token|position)_embedding)\.weight", r"\1.embedding", ndim=2),
    Rule(r"(.*\.patch_embedding)\.weight", r"\1.kernel", ndim=4, move=oihw_to_hwio),
    Rule(r"((?!.*\.embeddings\.).*)\.weight", r"\1.kernel", ndim=2, move=transposed),
    Rule(r"(.*\.class_embedding)", r"\1", ndim=1),
    *_NORM_AND_BIAS,
    Rule(r"(?:text|vision)_model\.embeddings\.position_ids", drop="0, 1, 2, …: a buffer of old files"),
    Rule(r"logit_scale", drop="not a part of either half; evaluation.encoders reads it where a score wants it"),
)

CLIP: tuple[Stage, ...] = (
    # transformers >= 5.6 saves CLIPTextModel without its `text_model.`
    (Rule(r"((?:embeddings|encoder|final_layer_norm)\..*)", r"text_model.\1"),),
    _CLIP_LEAVES,
)

CLIP_WHOLE: tuple[Stage, ...] = (_CLIP_LEAVES,)

T5: tuple[Stage, ...] = (
    (
        Rule(r"(shared|.*\.relative_attention_bias)\.weight", r"\1.embedding", ndim=2),
        Rule(r"(encoder\.block\..*(?<!relative_attention_bias))\.weight", r"\1.kernel", ndim=2, move=transposed),
        *_NORM_AND_BIAS,
        Rule(r"spiece_model", drop="the tokenizer, which has files of its own"),
        Rule(r"encoder\.embed_tokens\.weight", drop="shared.weight, which stands beside it, once more"),
    ),
)

DINOV2: tuple[Stage, ...] = (
    # Published files have the older of transformers' names (attention.attention.query, weights_in).
    (
        Rule(r"(.*?)\.attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.(.*)", r"\1.self_attn.\2_proj.\3"),
        Rule(r"(.*?)\.attention\.(?:output\.dense|o_proj)\.(.*)", r"\1.self_attn.out_proj.\2"),
        Rule(r"(.*\.mlp)\.weights_in\.(.*)", (r"\1.gate_proj.\2", r"\1.up_proj.\2")),
        Rule(r"(.*\.mlp)\.weights_out\.(.*)", r"\1.down_proj.\2"),
    ),
    (
        *UNET[0],
        Rule(r"embeddings\.(cls_token|position_embeddings)", r"embeddings.\1", ndim=3),
        Rule(r"(.*\.lambda1)", r"\1", ndim=1),
        Rule(r"embeddings\.mask_token", drop="only training hides patches"),
    ),
)

_NO_PROJECTION: Stage = (Rule(r"text_projection\.weight", drop="this encoder is used without its projection"),)

EXPORT: tuple[Rule, ...] = (
    Rule(r"(.*)\.kernel", r"\1.weight", ndim=4, move=hwio_to_oihw),
    Rule(r"(.*)\.kernel", r"\1.weight", ndim=2, move=transposed),
    Rule(r"(.*)\.scale", r"\1.weight", ndim=1),
    Rule(r"(.*)\.bias", r"\1.bias", ndim=1),
    Rule(r"(.*)\.embedding", r"\1.weight", ndim=2),
    _POSITIONS,
)


_STAGES: Mapping[type[configs.JsonConfig], tuple[Stage, ...]] = {
    configs.UNetConfig: UNET,
    configs.MMDiTConfig: MMDIT,
    configs.VAEConfig: VAE,
    configs.CLIPTextConfig: CLIP,
    configs.T5Config: T5,
    configs.CLIPConfig: CLIP_WHOLE,
    configs.Dinov2Config: DINOV2,
}


def stages_for(config: configs.JsonConfig) -> tuple[Stage, ...]:
    """The stages from canonical names into the tree of the network that `config` describes."""
    *renaming, last = _STAGES[type(config)]
    if isinstance(config, configs.CLIPTextConfig) and not config.with_projection:
        renaming.append(_NO_PROJECTION)
    return (*renaming, last)


def torch_name(path: str, ndim: int) -> str:
    """Canonical name of a leaf: "down_blocks_0/resnets_0/conv1/kernel" -> "down_blocks.0.resnets.0.conv1.weight"."""
    return _export_rule(path, ndim)[1]


def torch_module(path: str) -> str:
    """Canonical name of a module: "mid_block/attentions_0/to_out_0" -> "mid_block.attentions.0.to_out.0"."""
    # `linear_1` and T5's `wi_0` are the attributes of these networks that end in a number of their own.
    return re.sub(r"(?<!linear)(?<!\.wi)_(\d+)(?=\.|$)", r".\1", path.replace("/", "."))


def export(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tree as {canonical torch name: contiguous array}: what diffusers and transformers would save."""
    leaves = traverse_util.flatten_dict(dict(params), sep="/").items()
    exported = dict(export_leaf(path, np.asarray(jax.device_get(leaf))) for path, leaf in leaves)
    return {name: np.ascontiguousarray(array) for name, array in exported.items()}


def export_leaf(path: str, leaf: np.ndarray) -> tuple[str, np.ndarray]:
    """(canonical torch name, the array in torch's layout, a view) of one leaf."""
    rule, name = _export_rule(path, leaf.ndim)
    return name, rule.move(leaf) if rule.move else leaf


def _export_rule(path: str, ndim: int) -> tuple[Rule, str]:
    module, _, leaf = path.rpartition("/")
    name = f"{torch_module(module)}.{leaf}"
    for rule in EXPORT:
        if match := rule.match(name, (0,) * ndim):
            return rule, match.expand(rule.targets[0])
    raise WeightsError(f"{path} with {ndim} axes has no torch name; export knows {sorted({r.pattern for r in EXPORT})}")
