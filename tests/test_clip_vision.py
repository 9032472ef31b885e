"""CLIP whole against transformers' CLIPModel: vectors of pictures and of texts, and files of old and new configs."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPConfig as ReferenceConfig
from transformers import CLIPModel as Reference

from autolora_jax.config import CLIPConfig, ConfigError
from autolora_jax.models.clip import CLIPModel
from autolora_jax.models.networks import param_shapes
from autolora_jax.weights import rules, tables
from tests.parity import channels_first, error, normal, params_of
from tests.reference import randomize
from tests.test_clip import SIZES as TEXT
from tests.test_clip import prompts

PARITY = 5e-6  # seen: 5e-7
VISION = dict(
    hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7
)


def build(activation: str) -> tuple[torch.nn.Module, CLIPModel]:
    parts = {"text_config": {**TEXT, "eos_token_id": 2}, "vision_config": VISION}
    parts = {name: {**part, "hidden_act": activation} for name, part in parts.items()}
    reference = ReferenceConfig(**parts, projection_dim=20)
    module = Reference(reference)
    for seed, part in enumerate(module.children()):  # without logit_scale, one number
        randomize(part, seed)
    return module.eval(), CLIPModel(config=CLIPConfig.from_dict(reference.to_dict()))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_matches_transformers(activation: str):
    module, network = build(activation)
    pixels, ids = normal(0, 2, 28, 28, 3), prompts(0)
    theirs = module(torch.from_numpy(ids).long(), channels_first(pixels))
    pictures, texts = network.apply({"params": params_of(module, network)}, jnp.asarray(pixels), jnp.asarray(ids))
    for ours, reference in ((pictures, theirs.image_embeds), (texts, theirs.text_embeds)):
        ours = np.asarray(ours)
        assert ours.shape[1] == 20
        assert error(ours / np.linalg.norm(ours, axis=1, keepdims=True), reference) < PARITY
    # The lengths are not in their output.
    assert error(pictures, module.get_image_features(channels_first(pixels)).pooler_output) < PARITY
    assert error(texts, module.get_text_features(torch.from_numpy(ids).long()).pooler_output) < PARITY


def test_old_files_have_buffers():
    module, network = build("gelu")
    tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    buffers = {f"{half}_model.embeddings.position_ids": np.arange(5)[None] for half in ("text", "vision")}
    found = rules.examine(
        {name: x.shape for name, x in (tensors | buffers).items()}, tables.CLIP_WHOLE, param_shapes(network)
    )
    assert not found.problems
    assert set(found.dropped) == {*buffers, "logit_scale"}


def test_the_config_comes_back():
    config = build("gelu")[1].config
    assert config == CLIPConfig.from_dict(config.to_dict())
    assert config.vision_config.image_size == 28 and config.text_config.hidden_size == 32


def test_silent_files_mean_vit_b_32():
    reference = ReferenceConfig()
    config = CLIPConfig.from_dict({"model_type": "clip"})
    assert config == CLIPConfig.from_dict(reference.to_dict())


def test_the_published_vit_l_says_it_twice():
    """openai/clip-vit-large-patch14: defaults in vision_config, the truth in vision_config_dict."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "num_attention_heads": 16}
    raw = {
        "model_type": "clip",
        "projection_dim": 768,
        "logit_scale_init_value": 2.6592,
        "text_config": {"hidden_size": 768, "eos_token_id": 2, "pruned_heads": {}, "top_k": 50, "is_decoder": False},
        "text_config_dict": {"hidden_size": 768, "projection_dim": 768},
        "vision_config": {"hidden_size": 768, "pruned_heads": {}, "return_dict": True, "typical_p": 1.0},
        "vision_config_dict": large,
    }
    config = CLIPConfig.from_dict(raw)
    assert {name: getattr(config.vision_config, name) for name in large} == large
    assert config.text_config.eos_token_id == 2 and config.projection_dim == 768


def test_what_is_another_network_is_refused():
    with pytest.raises(ConfigError, match=r"vision_config: hidden_act = 'relu' is not supported"):
        CLIPConfig.from_dict({"vision_config": {"hidden_act": "relu"}})
    with pytest.raises(ConfigError, match="patch_size = 32 should divide image_size = 100"):
        CLIPConfig.from_dict({"vision_config": {"image_size": 100}})
    with pytest.raises(ConfigError, match=r"model_type = 'siglip' is not supported \(only 'clip'\)"):
        CLIPConfig.from_dict({"model_type": "siglip"})
