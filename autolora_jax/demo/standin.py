"""An SDXL in everything but size and training: the same classes, files and code path, about 5 MB of random weights.

It lets a fresh, offline machine run the whole way from files to pictures in seconds. Its pictures are textures; what a
prompt says does not matter to them. Written once, in the published diffusers layout, to a cache folder.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from autolora_jax import __version__
from autolora_jax.config import CLIPTextConfig, SchedulerConfig, UNetConfig, VAEConfig
from autolora_jax.demo.tokenizer import EOS, write_tokenizer
from autolora_jax.models.clip import CLIPTextModel
from autolora_jax.models.shapes import param_shapes
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.models.vae import AutoencoderKL
from autolora_jax.weights.tables import export, torch_name

RANK = 8
VOCABULARY = 2 * 256 + 2

CONFIGS: dict[str, dict[str, Any]] = {
    "unet": dict(
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=32 + 64,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=64 + 6 * 16,
        norm_num_groups=8,
        sample_size=16,
    ),
    "vae": dict(block_out_channels=(16, 32, 32, 64), layers_per_block=1, norm_num_groups=8, sample_size=128),
    "text_encoder": dict(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    ),
    "text_encoder_2": dict(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="gelu",
        projection_dim=64,
    ),
}
CLASSES: dict[str, tuple[str, str, str]] = {  # component -> library, class, weights file
    "unet": ("diffusers", "UNet2DConditionModel", "diffusion_pytorch_model.safetensors"),
    "vae": ("diffusers", "AutoencoderKL", "diffusion_pytorch_model.safetensors"),
    "text_encoder": ("transformers", "CLIPTextModel", "model.safetensors"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", "model.safetensors"),
    "tokenizer": ("transformers", "CLIPTokenizer", ""),
    "tokenizer_2": ("transformers", "CLIPTokenizer", ""),
    "scheduler": ("diffusers", "EulerDiscreteScheduler", ""),
}


def standin_model() -> Path:
    """The stand-in's diffusers folder, written on first use."""
    return _cached("standin-sdxl", _write_model)


def standin_lora() -> Path:
    """A random LoRA for it, on every attention and feed-forward layer of the UNet (PEFT names)."""
    return _cached("standin-lora.safetensors", _write_lora)


def cache_folder() -> Path:
    """Where files made once are kept: $AUTOLORA_CACHE, else ~/.cache/autolora_jax."""
    return Path(os.environ.get("AUTOLORA_CACHE") or Path.home() / ".cache" / "autolora_jax")


def _cached(name: str, write: Callable[[Path], None]) -> Path:
    target = cache_folder() / __version__ / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch) / name
            write(made)
            if not target.exists():  # another process may have been quicker
                shutil.move(made, target)
    return target


def _networks() -> dict[str, Any]:
    with_projection = {**CONFIGS["text_encoder_2"], "with_projection": True}
    return {
        "unet": UNet2DConditionModel(config=UNetConfig(**CONFIGS["unet"])),
        "vae": AutoencoderKL(config=VAEConfig(**CONFIGS["vae"])),
        "text_encoder": CLIPTextModel(config=CLIPTextConfig(**CONFIGS["text_encoder"])),
        "text_encoder_2": CLIPTextModel(config=CLIPTextConfig(**with_projection)),
    }


def _random_params(shapes: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Unit-gain matrices, norms and biases near their neutral values: signals neither die nor explode."""
    params = {}
    for path, leaf in traverse_util.flatten_dict(dict(shapes), sep="/").items():
        noise = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim == 1:
            params[path] = 0.1 * noise + (1.0 if path.endswith("/scale") else 0.0)
        elif path.endswith("/embedding"):
            params[path] = 0.5 * noise
        else:
            params[path] = noise / np.sqrt(np.prod(leaf.shape[:-1], dtype=np.float32))
    return traverse_util.unflatten_dict(params, sep="/")


def _write_model(folder: Path) -> None:
    for i, (component, network) in enumerate(_networks().items()):
        params = jax.tree.map(np.float16, _random_params(param_shapes(network), np.random.default_rng(i)))
        (folder / component).mkdir(parents=True)
        save_file(export(params), folder / component / CLASSES[component][2], {"format": "pt"})
        _write_json(folder / component / "config.json", network.config.to_dict())
    write_tokenizer(folder / "tokenizer", EOS)
    write_tokenizer(folder / "tokenizer_2", "!")
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", SchedulerConfig().to_dict())
    index: dict[str, Any] = {component: row[:2] for component, row in CLASSES.items()}
    index |= {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    _write_json(folder / "model_index.json", index)


def _write_lora(path: Path) -> None:
    rng = np.random.default_rng(7)
    tensors: dict[str, np.ndarray] = {}
    for name, leaf in traverse_util.flatten_dict(param_shapes(_networks()["unet"]), sep="/").items():
        if "/transformer_blocks_" in name and leaf.ndim == 2:
            module = torch_name(name, 2).removesuffix(".weight")
            fan_in, fan_out = leaf.shape
            down = rng.standard_normal((RANK, fan_in), np.float32) / np.sqrt(fan_in)
            up = 0.5 * rng.standard_normal((fan_out, RANK), np.float32) / np.sqrt(RANK)
            tensors |= {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up.astype(np.float32)}
    save_file(tensors, path, {"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
