"""LoRA files for a tiny SD3.5, and what they mean: dense changes of the fused weights, taken apart by diffusers.

Nothing here knows how the library names or cuts a layer: single files' names and shapes are written out, and diffusers'
own converter of single files leads from them to its layers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file

from autolora_jax.weights.lora.files import LoraFile
from autolora_jax.weights.lora.kinds.matrix import to_torch
from autolora_jax.weights.tables import torch_module
from tests.lora_reference import Change
from tests.parity import error
from tests.reference_sd3 import KINDS, TRANSFORMER

Config = Mapping[str, object]
Changes = dict[str, Change]  # a module's name in its layout -> its change
CONFIG = {**TRANSFORMER, **KINDS["sd3.5"]}
Deltas = Mapping[str, torch.Tensor]
EXACT = 1e-6  # of a layer's largest change; seen: 3.9e-8, of an alpha / rank that float32 rounds
TEXT_PREFIX = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"}


def fused_shapes(config: Mapping[str, int | tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Weights of a denoiser's linear layers and convolutions, by single files' names."""
    f = config["caption_projection_dim"]
    channels, patch = config["in_channels"], config["patch_size"]
    shapes = {
        "x_embedder.proj": (f, channels, patch, patch),
        "t_embedder.mlp.0": (f, 256),
        "t_embedder.mlp.2": (f, f),
        "y_embedder.mlp.0": (f, config["pooled_projection_dim"]),
        "y_embedder.mlp.2": (f, f),
        "context_embedder": (f, config["joint_attention_dim"]),
        "final_layer.linear": (patch**2 * channels, f),
        "final_layer.adaLN_modulation.1": (2 * f, f),
    }
    last = config["num_layers"] - 1
    for i in range(config["num_layers"]):
        dual = i in config["dual_attention_layers"]
        for stream in ("x_block", "context_block"):
            ends = stream == "context_block" and i == last
            vectors = 2 if ends else 9 if dual and stream == "x_block" else 6
            block = {"adaLN_modulation.1": (vectors * f, f), "attn.qkv": (3 * f, f)}
            if not ends:
                block |= {"attn.proj": (f, f), "mlp.fc1": (4 * f, f), "mlp.fc2": (f, 4 * f)}
            if dual and stream == "x_block":
                block |= {"attn2.qkv": (3 * f, f), "attn2.proj": (f, f)}
            shapes |= {f"joint_blocks.{i}.{stream}.{name}": shape for name, shape in block.items()}
    return shapes


def random_change(shape: tuple[int, ...], rank: int, alpha: float, seed: int, strength: float = 0.5) -> Change:
    """A change about `strength` times a unit-gain weight of this shape, at scale 1."""
    g = torch.Generator().manual_seed(seed)
    outputs, *rest = shape
    down = torch.randn(rank, *rest, generator=g) / np.prod(rest) ** 0.5
    up = torch.randn(outputs, rank, *(1 for _ in rest[1:]), generator=g) * strength * rank**0.5 / alpha
    return Change(down, up, alpha)


def random_changes(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Changes:
    """Of every module, with ranks and alphas that differ from one to the next."""
    ranks, alphas = (2, 4, 3), (1.0, 4.0, 2.5, 8.0)
    return {
        name: random_change(shape, ranks[i % 3], alphas[i % 4], 1000 * seed + i)
        for i, (name, shape) in enumerate(shapes.items())
    }


def kohya_tensors(changes: Changes, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a file in kohya's dialect."""
    tensors = {}
    for module, change in changes.items():
        name = prefix + module.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": change.down, f"{name}.lora_up.weight": change.up}
        tensors[f"{name}.alpha"] = torch.tensor(change.alpha)
    return tensors


def fused_deltas(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ΔW of every module of the denoiser in a file of kohya's, as sd-scripts reads it: alpha / rank · up @ down."""
    ending = ".lora_down.weight"
    modules = [name.removesuffix(ending) for name in tensors if name.startswith("lora_unet_") and name.endswith(ending)]
    return {
        module.removeprefix("lora_unet_"): Change(
            tensors[f"{module}.lora_down.weight"],
            tensors[f"{module}.lora_up.weight"],
            float(tensors[f"{module}.alpha"]),
        ).delta
        for module in modules
    }


def taken_apart(deltas: Mapping[str, torch.Tensor], config: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Changes of fused weights, by their names with dots or underscores, as changes of diffusers' layers.

    The converter wants whole checkpoints: the rest is zero, and so is what it makes of that.
    """
    checkpoint = {"pos_embed": torch.zeros(1)}
    for name, shape in fused_shapes(config).items():
        zero = torch.zeros(shape, dtype=torch.float64)
        checkpoint[f"{name}.weight"] = deltas.get(name, deltas.get(name.replace(".", "_"), zero))
        checkpoint[f"{name}.bias"] = torch.zeros(shape[0])
    converted = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    return {
        name.removesuffix(".weight"): delta
        for name, delta in converted.items()
        if name.endswith(".weight") and delta.any()
    }


def written(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Writes a file."""
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def deltas_of(file: LoraFile) -> dict[str, np.ndarray]:
    """ΔW of every layer that a file changes, by its canonical name."""
    products = {
        torch_module(layer.path): matrix.scale * (matrix.down.astype(np.float64) @ matrix.up.astype(np.float64))
        for layer, matrix in ((layer, change.matrix) for layer, change in file.layers.items())
    }
    return {name: to_torch(kernel) for name, kernel in products.items()}


def assert_same(file: LoraFile, deltas: Deltas) -> None:
    """A file changes these layers by these changes, and no others."""
    ours = deltas_of(file)
    assert ours.keys() == deltas.keys()
    for name, theirs in deltas.items():
        assert error(ours[name], theirs.numpy()) < EXACT, name


def peft_file(layers: Mapping[str, Changes]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header of a file as diffusers writes it."""
    tensors: dict[str, torch.Tensor] = {}
    header: dict[str, Any] = {}
    for component, changes in layers.items():
        for module, change in changes.items():
            name = f"{component}.{module}"
            tensors |= {f"{name}.lora_A.weight": change.down, f"{name}.lora_B.weight": change.up}
        header |= {
            f"{component}.r": 1,
            f"{component}.lora_alpha": 1.0,
            f"{component}.target_modules": list(changes),
            f"{component}.rank_pattern": {f"^{m}": x.down.shape[0] for m, x in changes.items()},
            f"{component}.alpha_pattern": {f"^{m}": x.alpha for m, x in changes.items()},
        }
    return tensors, {"lora_adapter_metadata": json.dumps(header)}
