"""Which layers learn, and what a new delta is."""

from pathlib import Path

import jax
import numpy as np
import pytest
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from flax import traverse_util
from torch import nn

from autolora_jax.config import ConfigError, MMDiTConfig, T5Config
from autolora_jax.lora import save_lora
from autolora_jax.training.deltas import GROUPS, choose_layers, new_delta, stored_delta
from autolora_jax.weights.lora.export import DIALECTS
from autolora_jax.weights.lora.files import read_lora, targets_of
from autolora_jax.weights.lora.names import Layer, layers
from autolora_jax.weights.tables import torch_module
from tests import reference_sd3
from tests.lora_reference import tiny_networks, tiny_targets
from tests.reference import UNET

TARGETS = tiny_targets()
DENOISER = {"unet": TARGETS["unet"]}
# What each group means in words of diffusers' modules: the endings of their names.
ENDINGS = {
    "attention": (".to_q", ".to_k", ".to_v", ".to_out.0"),
    "cross_attention": ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "projections": ("proj_in", "proj_out"),
    "convolutions": (".conv1", ".conv2", ".conv_shortcut", "samplers.0.conv"),
    "embeddings": ("time_emb_proj", "embedding.linear_1", "embedding.linear_2"),
}


def names(chosen: list[Layer]) -> list[str]:
    return [torch_module(layer.path) for layer in chosen]


@pytest.mark.parametrize("group", GROUPS)
def test_groups_are_the_modules_of_these_names(group: str):
    modules = UNet2DConditionModel(**UNET).named_modules()
    expected = {n for n, m in modules if isinstance(m, nn.Linear | nn.Conv2d) and n.endswith(ENDINGS[group])}
    assert set(names(choose_layers(DENOISER, [group]))) == expected and expected


def test_groups_are_all_layers_but_the_first_and_the_last():
    left = {layer.path for layer in layers(DENOISER)} - {layer.path for layer in choose_layers(DENOISER, list(GROUPS))}
    assert left == {"conv_in", "conv_out"}


# The same in SD3; it has none of the other groups.
SD3_ENDINGS = {
    "attention": (*ENDINGS["attention"], ".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out"),
    "feed_forward": (*ENDINGS["feed_forward"], "ff_context.net.0.proj", "ff_context.net.2"),
    "embeddings": ("embedder.linear_1", "embedder.linear_2", "norm1.linear", "norm1_context.linear", "norm_out.linear"),
}


def test_groups_mean_the_same_in_sd3():
    """SD3.5's attn2 attends to the image, not to the prompt. Left are the first layers and the last."""
    config = {**reference_sd3.TRANSFORMER, **reference_sd3.KINDS["sd3.5"]}
    modules = [n for n, m in SD3Transformer2DModel(**config).named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    model = targets_of({"transformer": MMDiTConfig.from_dict(config)})
    left = set(modules)
    for group in GROUPS:
        if group in SD3_ENDINGS:
            expected = {n for n in modules if n.endswith(SD3_ENDINGS[group])}
            assert set(names(choose_layers(model, [group]))) == expected and expected
            left -= expected
        else:
            with pytest.raises(ConfigError, match=f"target '{group}' is found in no layer of transformer"):
                choose_layers(model, [group])
    assert left == {"pos_embed.proj", "context_embedder", "proj_out"}


def test_t5_has_attention_and_feed_forward():
    sizes = dict(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    model = targets_of({"text_encoder_3": T5Config(**sizes)})
    assert choose_layers(model, ["attention", "feed_forward"]) == list(layers(model))
    assert len(choose_layers(model, ["attention"])) == 2 * 4


def test_text_encoders_have_attention_and_feed_forward():
    chosen = choose_layers(TARGETS, ["attention", "feed_forward"])
    for component, depth in (("text_encoder", 3), ("text_encoder_2", 4)):
        assert sum(layer.component == component for layer in chosen) == depth * (4 + 2)


def test_patterns_are_searched_in_published_names():
    assert names(choose_layers(DENOISER, [r"up_blocks\.0\.attentions\.1.*attn2\.to_k", r"^conv_out$"])) == [
        "conv_out",
        "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k",
        "up_blocks.0.attentions.1.transformer_blocks.1.attn2.to_k",
    ]
    twice = choose_layers(DENOISER, ["attention", "cross_attention"])
    assert twice == choose_layers(DENOISER, ["attention"])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("atention", r"target 'atention' is found in no layer of unet; layers are called like \w"),
        ("mlp.fc1", "found in no layer of unet"),
        ("to_(q", "target 'to_\\(q' is neither one of attention, cross_attention, .* nor a pattern: missing \\)"),
    ],
)
def test_patterns_without_a_layer_are_refused(pattern: str, words: str):
    with pytest.raises(ConfigError, match=words):
        choose_layers(DENOISER, ["attention", pattern])


def test_a_new_delta_is_nothing_yet():
    """`down` as PEFT begins: uniform in ±1/√fan_in, so of std 1/√(3 fan_in). `up` is zero."""
    chosen = choose_layers(DENOISER, [r"mid_block.*(attn2|resnets\.0\.conv1)", "^conv_out$"])
    delta = new_delta(chosen, 8, seed=1)["unet"]
    flat = traverse_util.flatten_dict(delta, sep="/")
    assert len(flat) == 2 * len(chosen)
    for layer in chosen:
        down, up = flat[f"{layer.path}/down"], flat[f"{layer.path}/up"]
        assert down.shape[:-1] == layer.kernel[:-1] and up.shape[1] == layer.kernel[-1]
        assert down.shape[-1] == up.shape[0] == (4 if layer.path == "conv_out" else 8)  # it has no more outputs
        bound = np.prod(layer.kernel[:-1]) ** -0.5
        assert np.abs(down).max() <= bound and abs(down.std() / bound - 3**-0.5) < 0.1
        assert not up.any() and down.dtype == up.dtype == np.float32
    again, other = new_delta(chosen, 8, seed=1)["unet"], new_delta(chosen, 8, seed=2)["unet"]
    jax.tree.map(np.testing.assert_array_equal, again, delta)
    assert np.abs(other["conv_out"]["down"] - delta["conv_out"]["down"]).max() > 0.01


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_layer_has_a_name_in_every_dialect(dialect: str, tmp_path: Path):
    """So what can be trained can be written, and read again."""
    rng = np.random.default_rng(0)
    chosen = choose_layers(TARGETS, ["."])
    assert len(chosen) == len(list(layers(TARGETS)))
    trees: dict = {}
    for layer in chosen:
        node = trees.setdefault(layer.component, {})
        for name in layer.path.split("/"):
            node = node.setdefault(name, {})
        node["down"] = rng.standard_normal((*layer.kernel[:-1], 2), np.float32)
        node["up"] = rng.standard_normal((2, layer.kernel[-1]), np.float32)
    save_lora(tmp_path / "all.safetensors", stored_delta(trees, 0.5), dialect, None, tiny_networks()["unet"])
    read = read_lora(tmp_path / "all.safetensors", TARGETS).layers
    assert read.keys() == set(chosen)
    for layer in chosen:
        node = trees[layer.component]
        for name in layer.path.split("/"):
            node = node[name]
        np.testing.assert_array_equal(read[layer].matrix.up, 0.5 * node["up"])
        assert read[layer].matrix.scale == 1
