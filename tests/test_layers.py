"""Layers against torch, and what a LoRA delta means to them: every form equals the explicitly merged kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from transformers.activations import ACT2FN

from autolora_jax.config import CLIPTextConfig, UNetConfig, VAEConfig
from autolora_jax.models import delta
from autolora_jax.models.clip import CLIPTextModel
from autolora_jax.models.layers import (
    ACTIVATIONS,
    NO_PAD,
    SAME_3X3,
    Conv,
    Dense,
    GroupNorm,
    LayerNorm,
    sinusoidal_embedding,
)
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.models.vae import BOTTOM_RIGHT, AutoencoderKL
from tests.parity import channels_first, equations, error, normal, params_of, submodule

NORM = 2e-6  # seen: 4e-7; an eps of 1e-5 for 1e-6 is off by more than 1 here
LAYER = 2e-6  # seen: 6e-7
GRADIENT = 5e-6
BF16 = 1e-2  # seen: 4e-3

B, RANK, WIDTH, FEATURES = 3, 2, 24, 32
LAYERS = {
    "dense": Dense(FEATURES),
    "dense without bias": Dense(FEATURES, use_bias=False),
    "conv 3x3": Conv(FEATURES),
    "conv 3x3 stride 2": Conv(FEATURES, stride=2),
    "conv 1x1": Conv(FEATURES, kernel_size=1, padding=NO_PAD),
}


def layer_case(name: str):
    """(layer, inputs, params, an unscaled delta)."""
    layer = LAYERS[name]
    x = jnp.asarray(normal(0, B, 50, WIDTH) if "dense" in name else normal(0, B, 8, 10, WIDTH))
    params = layer.init(jax.random.key(0), x)["params"]
    params = {k: v + (0.1 if k == "bias" else 0.0) for k, v in params.items()}
    shape = params["kernel"].shape
    down, up = normal(1, *shape[:-1], RANK) / np.sqrt(np.prod(shape[:-1])), normal(2, RANK, FEATURES)
    return layer, x, params, {"down": np.float32(down), "up": up}


def merged(params, change, scale: np.ndarray):
    """The kernel W + Σ_r scale_r down_r up_r, in float64."""
    kernel = np.asarray(params["kernel"], np.float64)
    low = np.asarray(change["down"], np.float64) * np.asarray(scale, np.float64)
    return {**params, "kernel": jnp.asarray(kernel + low @ np.asarray(change["up"], np.float64), jnp.float32)}


def shapes_in(function, *args) -> set[tuple[int, ...]]:
    """Shapes of all values in the traced function."""

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.shape for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "shape"))
            for sub in jax.core.jaxprs_in_params(eqn.params):
                yield from walk(sub)

    return set(walk(jax.make_jaxpr(function)(*args).jaxpr))


@pytest.mark.parametrize("form", ["merge", "low rank"])
@pytest.mark.parametrize("name", LAYERS)
def test_shared_scale_equals_the_merged_kernel(monkeypatch, name, form):
    layer, x, params, change = layer_case(name)
    if form == "low rank":  # chosen for few positions
        x = x[:1, :2] if x.ndim == 3 else x[:1, :2, :2]
    merges, merge = [], delta.merge
    monkeypatch.setattr(delta, "merge", lambda *args: merges.append(1) or merge(*args))
    scale = np.float32([0.5, -2.0])
    y = layer.apply({"params": params, "lora": {"down": change["down"] * scale, "up": change["up"]}}, x)
    assert error(y, layer.apply({"params": merged(params, change, scale)}, x)) < LAYER
    assert error(y, layer.apply({"params": params}, x)) > 0.1
    assert bool(merges) == (form == "merge")


@pytest.mark.parametrize("name", LAYERS)
def test_scale_per_image_equals_merged_kernels(name):
    layer, x, params, change = layer_case(name)
    scales = normal(5, B, RANK)
    y = layer.apply({"params": params, "lora": {**change, "scale": jnp.asarray(scales)}}, x)
    for image, scale in enumerate(scales):
        expected = layer.apply({"params": merged(params, change, scale)}, x[image : image + 1])
        assert error(y[image : image + 1], expected) < LAYER


@pytest.mark.parametrize("name", LAYERS)
def test_scale_zero_is_the_base_layer(name):
    layer, x, params, change = layer_case(name)
    base = layer.apply({"params": params}, x)
    for zeros in (np.zeros(RANK), np.zeros((B, RANK))):
        leaf = {**change, "scale": jnp.asarray(zeros)} if zeros.ndim == 2 else {**change, "down": 0 * change["down"]}
        assert error(layer.apply({"params": params, "lora": leaf}, x), base) < LAYER


@pytest.mark.parametrize("kind", ["base", "shared", "per image"])
@pytest.mark.parametrize("name", ["dense", "conv 3x3"])
def test_kernels_stay_single_under_vmap(name, kind):
    """A vmap over branches (inputs, or scales per image) makes no copy of a kernel for each branch."""
    layer, x, params, change = layer_case(name)
    branches = 5
    xs = jnp.broadcast_to(x, (branches, *x.shape))
    scales = jnp.ones((branches, B, RANK))

    def apply(x, scale):
        leaf = {"base": {}, "shared": change, "per image": {**change, "scale": scale}}[kind]
        return layer.apply({"params": params, "lora": leaf}, x)

    assert (branches, *params["kernel"].shape) not in shapes_in(jax.vmap(apply), xs, scales)


def test_a_delta_in_bfloat16():
    layer, x, params, change = layer_case("dense")
    half = Dense(FEATURES, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    low, low_change = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), (params, change))
    exact = layer.apply({"params": merged(params, change, np.ones(RANK))}, x)
    y = half.apply({"params": low, "lora": low_change}, x)
    assert y.dtype == jnp.bfloat16
    assert error(y.astype(jnp.float32), exact) < 2 * BF16
    per_image = half.apply({"params": low, "lora": {**low_change, "scale": jnp.ones((B, RANK))}}, x)
    assert error(per_image.astype(jnp.float32), exact) < 2 * BF16


@pytest.mark.parametrize("stride, padding", [(1, SAME_3X3), (2, SAME_3X3), (2, BOTTOM_RIGHT), (1, NO_PAD)])
def test_convolutions_pad_like_torch(stride, padding):
    x = normal(0, 2, 8, 11, 6)
    layer = Conv(4, stride=stride, padding=padding)
    params = layer.init(jax.random.key(0), jnp.asarray(x))["params"]
    (top, bottom), (left, right) = padding
    theirs = torch.nn.functional.conv2d(
        torch.nn.functional.pad(channels_first(x), (left, right, top, bottom)),
        torch.from_numpy(np.array(params["kernel"]).transpose(3, 2, 0, 1)),
        stride=stride,
    )
    assert error(layer.apply({"params": params}, jnp.asarray(x)), theirs) < LAYER


def tiny_networks(pipeline):
    two = CLIPTextConfig.from_dict({**pipeline.text_encoder_2.config.to_dict(), "architectures": ["…WithProjection"]})
    yield pipeline.unet, UNet2DConditionModel(config=UNetConfig.from_dict(dict(pipeline.unet.config)))
    yield pipeline.vae, AutoencoderKL(config=VAEConfig.from_dict(dict(pipeline.vae.config)))
    yield pipeline.text_encoder_2, CLIPTextModel(config=two)


def test_every_norm_of_every_network_has_torchs_eps(tiny_pipeline):
    """Each norm alone, on inputs so small that eps decides: in a whole network a wrong one drowns."""
    seen = 0
    for module, network in tiny_networks(tiny_pipeline):
        bound = network.bind({"params": params_of(module, network)})
        for path, norm in module.named_modules():
            if not isinstance(norm, torch.nn.GroupNorm | torch.nn.LayerNorm):
                continue
            seen += 1
            if isinstance(norm, torch.nn.GroupNorm):
                x = 1e-3 * normal(0, 2, 5, 7, norm.num_channels)
                theirs = norm(channels_first(x))
            else:
                x = 1e-3 * normal(0, 2, 9, norm.normalized_shape[0])
                theirs = norm(torch.from_numpy(x))
            assert error(submodule(bound, path)(jnp.asarray(x)), theirs) < NORM, path
    assert seen > 100


def test_group_norm_keeps_its_digits_in_bfloat16_with_a_large_mean():
    """|mean| = 300 std: E[x²] − E[x]² would leave one digit of the variance."""
    x = normal(0, 2, 16, 16, 32) + 300
    params = {"scale": jnp.ones(32), "bias": jnp.zeros(32)}
    exact = torch.nn.functional.group_norm(channels_first(x).double(), 8, eps=1e-6)
    y = GroupNorm(8, 1e-6).apply({"params": params}, jnp.asarray(x))
    assert error(y, exact) < 1e-4  # seen: 2e-5, the step of 300; one pass: 9e-4
    half = GroupNorm(8, 1e-6, dtype=jnp.bfloat16)
    rounded = jnp.asarray(x, jnp.bfloat16)  # the input's own rounding (2 in 300) is not the norm's to answer for
    exact = torch.nn.functional.group_norm(channels_first(np.asarray(rounded, np.float32)).double(), 8, eps=1e-6)
    y = half.apply({"params": params}, rounded)
    assert y.dtype == jnp.bfloat16
    assert error(y.astype(jnp.float32), exact) < BF16


@pytest.mark.parametrize("mean, dtype", [(300, jnp.float32), (100, jnp.bfloat16), (0, jnp.bfloat16)])
def test_layer_norm_keeps_its_digits_with_a_large_mean(mean, dtype):
    """Of float32 inputs all that they have; of bfloat16 ones more than their rounding has left."""
    x = np.array(jnp.asarray(normal(0, 2, 9, 1280) + mean, dtype).astype(jnp.float32))
    exact = torch.nn.functional.layer_norm(torch.from_numpy(x).double(), (1280,), eps=1e-6)
    y = LayerNorm(1e-6, affine=False, dtype=dtype).apply({}, jnp.asarray(x, dtype))
    assert y.dtype == dtype
    # float32, seen: 2e-5, the step of 300; one pass: 8e-3
    assert error(y.astype(jnp.float32), exact) < (1e-4 if dtype == jnp.float32 else BF16)


def test_a_flat_input_in_16_bits_has_no_negative_variance():
    """One pass may come out below 0 by rounding; what comes out of the norm stays finite."""
    for value in np.linspace(100, 3000, 50):
        x = jnp.full((1, 4, 1280), value, jnp.bfloat16)
        y = LayerNorm(1e-5, affine=False, dtype=jnp.bfloat16).apply({}, x)
        assert np.isfinite(np.asarray(y, np.float32)).all()


@pytest.mark.parametrize("name", ["dense", "conv 3x3"])
def test_a_merged_kernel_stands_alone(name):
    """Behind a barrier, without which a TPU merges again for every tile of a product; its gradient and vmap too."""
    layer, x, params, change = layer_case(name)

    def total(change, x):
        return jnp.square(layer.apply({"params": params, "lora": change}, x)).sum()

    traced = jax.make_jaxpr(total)(change, x)
    [barrier] = (eqn for eqn in equations(traced.jaxpr) if eqn.primitive.name == "optimization_barrier")
    assert [out.aval.shape for out in barrier.outvars] == [params["kernel"].shape]
    ours = jax.vmap(jax.grad(total), in_axes=(None, 0))(change, x[:, None])

    def explicit(change, x):
        kernel = params["kernel"] + jnp.matmul(change["down"], change["up"], precision="highest")
        return jnp.square(layer.apply({"params": {**params, "kernel": kernel}}, x)).sum()

    theirs = jax.vmap(jax.grad(explicit), in_axes=(None, 0))(change, x[:, None])
    assert max(error(ours[part], theirs[part]) for part in theirs) < GRADIENT


def test_sinusoids_equal_diffusers():
    t = np.float32([0, 1, 0.5, 501, 999, 1024])
    theirs = get_timestep_embedding(torch.from_numpy(t), 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert np.abs(np.asarray(sinusoidal_embedding(jnp.asarray(t), 320)) - theirs.numpy()).max() < 1e-4  # seen: 6e-5


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_transformers(name):
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    assert error(ACTIVATIONS[name](jnp.asarray(x)), ACT2FN[name](torch.from_numpy(x))) < 1e-6  # seen: 2e-7
