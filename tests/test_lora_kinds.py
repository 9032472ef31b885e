"""Every kind of change that LyCORIS trains: its files, applied by our layers, equal what LyCORIS itself computes."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.numpy import save_file

from autolora_jax import lora
from autolora_jax.models.layers import NO_PAD, SAME_3X3, Conv, Dense, GroupNorm, LayerNorm
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.lora.files import read_lora, targets_of
from autolora_jax.weights.tables import torch_module
from tests.lora_reference import canonical
from tests.lycoris_reference import KINDS, MULTIPLIED, applied, names_of, tensors_of, trained
from tests.parity import channels_first, error, normal

TOLERANCE = 1e-5  # of the maximum; seen: 1.3e-6
SCALES = (1.0, 0.6, -0.5, 2.0)
LAYERS = {
    "linear": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
    "convolution": "lora_unet_down_blocks_1_resnets_0_conv1",
    "stride 2": "lora_unet_down_blocks_0_downsamplers_0_conv",
    "1x1": "lora_unet_down_blocks_1_resnets_0_conv_shortcut",
    "text": "lora_te1_text_model_encoder_layers_1_mlp_fc1",
}
NORMS = {
    "group norm": "lora_unet_down_blocks_1_resnets_0_norm1",
    "layer norm": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_norm2",
    "text": "lora_te2_text_model_encoder_layers_0_layer_norm1",
}
CASES = [
    (kind, layer)
    for kind in KINDS
    for layer in (NORMS if kind == "norm" else ("linear", "convolution") if kind in MULTIPLIED else LAYERS)
]


class Model:
    """The tiny pipeline in torch, and its parameters here."""

    def __init__(self, pipe: StableDiffusionXLPipeline, folder: Path) -> None:
        self.checkpoint = open_checkpoint(folder)
        self.targets = targets_of(self.checkpoint.networks)
        components = ("unet", "text_encoder", "text_encoder_2")
        self.params = {name: self.checkpoint.load(name) for name in components}
        self.layers = {k: v for name in components for k, v in names_of(pipe, name).items()}


@pytest.fixture(scope="module")
def model(tiny_pipeline: StableDiffusionXLPipeline, tiny_folder: Path) -> Model:
    return Model(tiny_pipeline, tiny_folder)


def ours(layer: torch.nn.Module) -> nn.Module:
    """Our layer for torch's."""
    match layer:
        case torch.nn.Linear():
            return Dense(layer.out_features, use_bias=layer.bias is not None)
        case torch.nn.Conv2d():
            size = layer.kernel_size[0]
            return Conv(layer.out_channels, size, layer.stride[0], SAME_3X3 if size == 3 else NO_PAD)
        case torch.nn.GroupNorm():
            return GroupNorm(layer.num_groups, layer.eps)
        case torch.nn.LayerNorm():
            return LayerNorm(layer.eps)
    raise TypeError(layer)


def inputs(layer: torch.nn.Module) -> np.ndarray:
    match layer:
        case torch.nn.Linear():
            return normal(0, 3, 5, layer.in_features)
        case torch.nn.LayerNorm():
            return normal(0, 3, 5, layer.normalized_shape[0])
        case torch.nn.Conv2d():
            return normal(0, 3, 6, 8, layer.in_channels)
    return normal(0, 3, 6, 8, layer.weight.shape[0])


def at(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def as_torch(x: np.ndarray) -> torch.Tensor:
    return channels_first(x) if x.ndim == 4 else torch.from_numpy(x)


@torch.no_grad()
def torch_output(module: Any, layer: torch.nn.Module, x: np.ndarray, scale: float) -> torch.Tensor:
    with applied(module, scale):
        return layer(as_torch(x))


@pytest.mark.parametrize("kind, which", CASES, ids=lambda x: x)
def test_a_layer_computes_what_lycoris_does(model: Model, tmp_path: Path, kind: str, which: str) -> None:
    name = (NORMS if kind == "norm" else LAYERS)[which]
    layer = model.layers[name]
    module = trained(kind, name, layer, seed=1)
    save_file(tensors_of(module), tmp_path / "a.safetensors")
    file = read_lora(tmp_path / "a.safetensors", model.targets)
    [where] = file.layers
    trees, _ = lora.attach(file, base=model.params)
    x, leaf, params = (
        inputs(layer),
        at(trees[where.component], where.path),
        at(model.params[where.component], where.path),
    )

    def run(scales: Any) -> jax.Array:
        return ours(layer).apply({"params": params, "lora": lora.at_scale({"x": leaf}, scales)["x"]}, jnp.asarray(x))

    base = (
        torch_output(module, layer, x, 0.0)
        if "dora" not in kind
        else layer(channels_first(x) if x.ndim == 4 else torch.from_numpy(x))
    )
    assert error(run(jnp.zeros(1)), base) < TOLERANCE
    wanted = [torch_output(module, layer, x, scale) for scale in SCALES]
    assert error(np.asarray(run(jnp.ones(1))), base) > 0.1  # a change that is worth looking at
    for scale, theirs in zip(SCALES, wanted, strict=True):
        assert error(run(jnp.array([scale])), theirs) < TOLERANCE
    per_image = jnp.array(SCALES[:3])[:, None]
    rows = torch.stack([theirs[i] for i, theirs in enumerate(wanted[:3])])
    assert error(run(per_image), rows) < TOLERANCE


def test_cases_cover_every_sort_of_layer(model: Model) -> None:
    assert {*LAYERS.values(), *NORMS.values()} <= model.layers.keys()
    for component, (tree, _) in model.targets.items():
        assert {canonical(component, torch_module(path)) for path in tree}  # names are those of torch
