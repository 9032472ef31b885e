"""DINOv2 against transformers': both feed-forwards, other sizes than the table of positions has, published names."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Dinov2Config as ReferenceConfig
from transformers import Dinov2Model as Reference

from autolora_jax.config import ConfigError, Dinov2Config, read_json
from autolora_jax.models.dinov2 import Dinov2Model, bicubic
from autolora_jax.models.networks import param_shapes, shapes_of
from autolora_jax.weights import WeightsError, rules, tables
from tests.parity import channels_first, error, normal, params_of
from tests.reference import randomize

PARITY = 2e-5  # seen: 7e-7
POSITIONS = 1e-6  # seen: 2e-7
SIZES = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=70, patch_size=14)


def build(swiglu: bool, **changes) -> tuple[torch.nn.Module, Dinov2Model]:
    reference = ReferenceConfig(**{**SIZES, "use_swiglu_ffn": swiglu, **changes})
    module = randomize(Reference(reference), 3)
    with torch.no_grad():
        for layer in module.encoder.layer:  # near 0 they would hide what the layers do
            layer.layer_scale1.lambda1.add_(1)
            layer.layer_scale2.lambda1.add_(1)
    return module, Dinov2Model(config=Dinov2Config.from_dict(reference.to_dict()))


@pytest.mark.parametrize("swiglu", [False, True], ids=["gelu", "swiglu"])
@pytest.mark.parametrize("height, width", [(70, 70), (42, 42), (98, 56)], ids=["table", "smaller", "oblong"])
@torch.no_grad()
def test_matches_transformers(swiglu: bool, height: int, width: int):
    module, network = build(swiglu)
    pixels = normal(0, 2, height, width, 3)
    theirs = module(channels_first(pixels))
    ours = network.apply({"params": params_of(module, network)}, jnp.asarray(pixels))
    assert error(ours, theirs.last_hidden_state) < PARITY
    assert error(ours[:, 0], theirs.pooler_output) < PARITY


@pytest.mark.parametrize("old, new", [(5, 5), (37, 16), (5, 3), (3, 8), (16, 37)])
def test_positions_are_resized_as_torch_does(old: int, new: int):
    """jax.image.resize's cubic is another one, by 0.1 and more, and so is torch's with antialiasing."""
    table = normal(1, 1, 7, old, old)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(table), (new, 4), mode="bicubic", align_corners=False)
    ours = np.einsum("yi,xj,bcij->bcyx", bicubic(old, new), bicubic(old, 4), table)
    assert np.abs(ours - theirs.numpy()).max() < POSITIONS * np.abs(table).max()
    np.testing.assert_allclose(bicubic(old, new).sum(axis=1), 1, atol=1e-6)
    assert (new != old) or np.array_equal(bicubic(old, new), np.eye(old, dtype=np.float32))


def published(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The tensors under the names that published files have: before transformers 5."""
    old = {}
    for name, tensor in module.state_dict().items():
        for new, before in (("q", "query"), ("k", "key"), ("v", "value")):
            name = name.replace(f"attention.{new}_proj.", f"attention.attention.{before}.")
        name = name.replace("attention.o_proj.", "attention.output.dense.").replace("down_proj", "weights_out")
        old[name] = tensor.numpy()
    for name in [name for name in old if ".gate_proj." in name]:
        both = old.pop(name), old.pop(name.replace("gate_proj", "up_proj"))
        old[name.replace("gate_proj", "weights_in")] = np.concatenate(both)
    return old


@pytest.mark.parametrize("swiglu", [False, True], ids=["gelu", "swiglu"])
def test_both_generations_of_names(swiglu: bool):
    module, network = build(swiglu)
    old = rules.convert(published(module), tables.DINOV2, param_shapes(network))
    assert ("encoder.layer.0.mlp.weights_in.weight" in published(module)) == swiglu
    assert jax.tree.all(jax.tree.map(np.array_equal, old, params_of(module, network)))


def test_all_tensors_of_the_published_giant_have_a_place(facts: Path):
    lines = (facts / "keys" / "dinov2-giant" / "model.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    shapes = {name: tuple(map(int, shape.strip("[]").split(","))) for name, shape, _ in rows}
    config = Dinov2Config.from_file(facts / "configs" / "dinov2-giant" / "config.json")
    found = rules.examine(shapes, tables.stages_for(config), shapes_of(config))
    assert not found.problems
    assert set(found.dropped) == {"embeddings.mask_token"}
    assert len(found.assignments) == len(shapes) - 1 + 2 * config.num_hidden_layers  # weights_in falls into two


def test_a_file_of_another_size_is_refused():
    module, _ = build(False)
    other = build(False, hidden_size=64)[1]
    with pytest.raises(WeightsError, match=r"cls_token \[1, 1, 48\].*where \[1, 1, 64\] is expected"):
        params_of(module, other)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"qkv_bias": False}, "qkv_bias = False is not supported"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"num_register_tokens": 4}, "num_register_tokens = 4 is not known here"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 should divide hidden_size = 768"),
    ],
)
def test_what_is_another_network_is_refused(changes: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        Dinov2Config.from_dict(changes)


def test_the_config_comes_back(facts: Path):
    config = Dinov2Config.from_file(facts / "configs" / "dinov2-giant" / "config.json")
    assert config == Dinov2Config.from_dict(config.to_dict())
    assert (config.intermediate_size, config.num_hidden_layers) == (4096, 40)
    assert Dinov2Config() == Dinov2Config.from_dict(ReferenceConfig().to_dict())
    assert read_json(facts / "configs" / "dinov2-giant" / "config.json")["image_size"] == config.image_size


def test_bfloat16_is_close():
    module, network = build(True)
    params, pixels = {"params": params_of(module, network)}, jnp.asarray(normal(0, 2, 42, 42, 3))
    exact, half = (n.apply(params, pixels) for n in (network, network.clone(dtype=jnp.bfloat16)))
    assert half.dtype == jnp.bfloat16
    assert error(half.astype(jnp.float32), exact) < 0.05  # seen: 0.01
