"""SD3's denoiser against diffusers', its deltas against PEFT's, its sizes, its numbers in bfloat16, its memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel as Reference
from diffusers.models.normalization import RMSNorm
from flax import traverse_util
from peft import LoraConfig

from autolora_jax.config import ConfigError, MMDiTConfig
from autolora_jax.models.attention import IMPLEMENTATIONS
from autolora_jax.models.mmdit import SD3Transformer2DModel, sincos_table
from autolora_jax.models.networks import param_shapes
from autolora_jax.weights.rules import tree_path
from tests.parity import channels_first, equations, error, normal, params_of, submodule
from tests.reference import randomize

PARITY = 2e-5  # seen: 4.7e-6
DELTA = 2e-5  # seen: 2.2e-6
NORM = 2e-6  # seen: 2.0e-7; an eps of 1e-5 for 1e-6 is off by more than 1 here
BF16_RMS = 0.03  # seen: 0.008
SAME = 2e-5

MMDIT = dict(
    sample_size=8,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=24,
    caption_projection_dim=32,
    pooled_projection_dim=20,
    pos_embed_max_size=9,
)
STYLES = {
    "SD3": {},
    "SD3.5 Medium": {"num_layers": 3, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm", "patch_size": 1},
    "SD3.5 Large": {"qk_norm": "rms_norm", "out_channels": 6},
    "SD3.5 Medium's last block": {"dual_attention_layers": (1,)},
}


def inputs(height: int = 8, width: int = 12, batch: int = 2) -> dict[str, jax.Array]:
    """The network's keyword arguments."""
    told = {
        "sample": normal(1, batch, height, width, MMDIT["in_channels"]),
        "timesteps": np.float32([1000, 8.93])[:batch],
        "encoder_hidden_states": normal(2, batch, 7, MMDIT["joint_attention_dim"]),
        "pooled_projections": normal(3, batch, MMDIT["pooled_projection_dim"]),
    }
    return {name: jnp.asarray(x) for name, x in told.items()}


@torch.no_grad()
def reference(module: Reference, told: dict[str, jax.Array]) -> torch.Tensor:
    sample, t, prompt, pooled = (np.array(x) for x in told.values())
    return module(channels_first(sample), *(torch.from_numpy(x) for x in (prompt, pooled, t)))[0]


def build(**changes) -> tuple[Reference, SD3Transformer2DModel, dict]:
    """(torch's, ours, our params)."""
    module = randomize(Reference(**{**MMDIT, **changes}), 7)
    network = SD3Transformer2DModel(config=MMDiTConfig.from_dict(dict(module.config)))
    return module, network, params_of(module, network)


@pytest.fixture(scope="module")
def tiny():
    """(torch's, ours, our params, compiled): of SD3.5 Medium's kind, which has every part."""
    module, network, params = build(
        **STYLES["SD3.5 Medium"] | {"num_layers": 2, "dual_attention_layers": (0,), "patch_size": 2}
    )
    return module, network, params, jax.jit(network.apply)


@pytest.mark.parametrize("style", STYLES)
def test_matches_diffusers(style):
    module, network, params = build(**STYLES[style])
    told = inputs() if module.config.patch_size == 2 else inputs(4, 7)
    assert error(jax.jit(network.apply)({"params": params}, **told), reference(module, told)) < PARITY


@pytest.mark.parametrize("height, width", [(2, 18), (16, 4)])
def test_matches_diffusers_at_any_size(tiny, height, width):
    """As small as a patch, as large as the table, margins that no half divides."""
    module, _, params, apply = tiny
    told = inputs(height, width)
    assert error(apply({"params": params}, **told), reference(module, told)) < PARITY


@pytest.mark.parametrize("height, width, words", [(8, 20, "width 20 .* 18 .*use 18"), (7, 8, "height 7 .* 2,.*use 8")])
def test_other_sizes_are_refused(tiny, height, width, words):
    _, network, params, _ = tiny
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(network.apply, {"params": params}, **inputs(height, width))


def test_every_input_matters(tiny):
    """Each changes the prediction, and only of its own image."""
    _, _, params, apply = tiny
    told = inputs()
    y = np.asarray(apply({"params": params}, **told))
    for name, value in told.items():
        difference = np.abs(apply({"params": params}, **{**told, name: value.at[1].add(1)}) - y).max(axis=(1, 2, 3))
        assert difference[1] > 1e-3, name
        assert difference[0] == 0, name


def test_an_untrained_network_has_diffusers_positions():
    module = Reference(**MMDIT)
    assert error(sincos_table(MMDiTConfig.from_dict(dict(module.config))), module.pos_embed.pos_embed) < 1e-6


def test_every_norm_has_torchs_eps(tiny):
    """Each alone, on inputs so small that eps decides: in a whole network a wrong one drowns."""
    module, network, params, _ = tiny
    bound = network.bind({"params": params})
    kinds = torch.nn.LayerNorm | RMSNorm | torch.nn.RMSNorm
    norms = [(path, norm) for path, norm in module.named_modules() if isinstance(norm, kinds)]
    assert len(norms) == 18
    for path, norm in norms:
        size = 32 if isinstance(norm, torch.nn.LayerNorm) else 16
        x = 1e-3 * normal(0, 2, 9, size)
        assert error(submodule(bound, path)(jnp.asarray(x)), norm(torch.from_numpy(x)).detach()) < NORM, path


def test_deltas_equal_pefts(tiny):
    """Of every kind of layer that has a kernel."""
    _, network, params, apply = tiny
    module, *_ = build(**dataclasses.asdict(network.config))
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    targets = [name for name, m in module.named_modules() if isinstance(m, layers)]
    module.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False))
    assert sum(path[-1] == "kernel" for path in traverse_util.flatten_dict(params)) == len(targets)
    weights = {name: m for name, m in module.named_modules() if name in targets}
    change = {}
    for name, m in weights.items():
        down, up = (x["default"].weight.detach().numpy() for x in (m.lora_A, m.lora_B))
        path = tuple(tree_path(f"{name}.x").split("/")[:-1])
        change[*path, "down"] = 1.5 * down.transpose(2, 3, 1, 0) if down.ndim == 4 else 1.5 * down.T
        change[*path, "up"] = up.reshape(len(up), -1).T
    told = inputs()
    theirs = reference(module, told)
    assert error(apply({"params": params, "lora": traverse_util.unflatten_dict(change)}, **told), theirs) < DELTA
    assert error(apply({"params": params}, **told), theirs) > 0.1


def test_bfloat16_is_close(tiny):
    _, network, params, apply = tiny
    half = network.clone(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    y = jax.jit(half.apply)({"params": rounded}, **inputs())
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(apply({"params": params}, **inputs()))
    difference = np.asarray(y, np.float32) - exact
    assert np.sqrt(np.mean(difference**2) / np.mean(exact**2)) < BF16_RMS


def test_every_attention_uses_the_chosen_kernel(tiny, monkeypatch):
    _, network, params, _ = tiny
    calls = []
    monkeypatch.setitem(IMPLEMENTATIONS, "mine", lambda q, *_: calls.append(q.shape) or q)
    jax.eval_shape(network.clone(attention="mine").apply, {"params": params}, **inputs())
    assert calls == [(2, 24 + 7, 2, 16), (2, 24, 2, 16), (2, 24 + 7, 2, 16)]


def test_shapes_know_no_device(tiny):
    _, network, params, _ = tiny
    shapes = param_shapes(network.clone(attention="cudnn", remat=True, param_dtype=jnp.bfloat16))
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}


def test_recomputed_gradients_are_the_same(tiny):
    _, network, params, _ = tiny

    def loss(params, network):
        return jnp.square(network.apply({"params": params}, **inputs())).mean()

    recomputed = network.clone(remat=True)
    parts = equations(jax.make_jaxpr(lambda p: loss(p, recomputed))(params).jaxpr)
    assert [part.primitive.name for part in parts].count("remat2") == network.config.num_layers
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    ours, plain = (traverse_util.flatten_dict(gradient(params, n)) for n in (recomputed, network))
    # Some are nothing but rounding: what the last block does to the text, which nobody reads, moves nothing.
    assert max(error(ours[path], leaf) for path, leaf in plain.items() if np.abs(leaf).max() > 1e-7) < SAME


@pytest.mark.parametrize("folder", ["sd3-medium", "sd3.5-medium", "sd3.5-large"])
def test_config_there_and_back(facts, folder):
    config = MMDiTConfig.from_file(facts / "configs" / folder / "transformer" / "config.json")
    with torch.device("meta"):
        theirs = Reference.from_config({**config.to_dict(), "num_layers": 13})  # enough for the dual layers' numbers
    assert MMDiTConfig.from_dict({**theirs.config, "num_layers": config.num_layers}) == config
    assert (config == MMDiTConfig()) == (folder == "sd3-medium")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"qk_norm": "layer_norm"}, "qk_norm = 'layer_norm' is not supported"),
        ({"caption_projection_dim": 1152}, "is 1152, .* 1536; they must agree"),
        ({"dual_attention_layers": [3, 24]}, r"dual_attention_layers has \[24\]; there are 24 layers"),
        ({"guidance_embeds": True}, "guidance_embeds = True is not known"),
    ],
)
def test_other_denoisers_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        MMDiTConfig.from_dict({**MMDiTConfig().to_dict(), **change})
