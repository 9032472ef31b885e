"""SD3's files for tests, written without the library's tables: sd3-ref's layout, files of one encoder, hollow files."""

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from autolora_jax.models.networks import Networks
from autolora_jax.weights.diffusers_folder import read_index, read_networks
from autolora_jax.weights.hub import LocalFolder
from tests.checkpoint_files import StateDict, ldm_vae

ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
FILES = {component: f"{name}.safetensors" for component, name in ENCODERS.items()} | {
    "text_encoder_3": "t5xxl_fp16.safetensors"
}
COMPONENTS = (*ENCODERS, "transformer", "vae")

_ENDS = (
    ("pos_embed.proj.", "x_embedder.proj."),
    ("time_text_embed.timestep_embedder.linear_1.", "t_embedder.mlp.0."),
    ("time_text_embed.timestep_embedder.linear_2.", "t_embedder.mlp.2."),
    ("time_text_embed.text_embedder.linear_1.", "y_embedder.mlp.0."),
    ("time_text_embed.text_embedder.linear_2.", "y_embedder.mlp.2."),
    ("proj_out.", "final_layer.linear."),
)
_BLOCK = (
    ("norm1.linear.", "x_block.adaLN_modulation.1."),
    ("norm1_context.linear.", "context_block.adaLN_modulation.1."),
    ("attn.norm_added_", "context_block.attn.ln_"),
    ("attn.norm_", "x_block.attn.ln_"),
    ("attn2.norm_", "x_block.attn2.ln_"),
    ("attn.to_add_out.", "context_block.attn.proj."),
    ("attn.to_out.0.", "x_block.attn.proj."),
    ("attn2.to_out.0.", "x_block.attn2.proj."),
    ("ff_context.net.0.proj.", "context_block.mlp.fc1."),
    ("ff_context.net.2.", "context_block.mlp.fc2."),
    ("ff.net.0.proj.", "x_block.mlp.fc1."),
    ("ff.net.2.", "x_block.mlp.fc2."),
)
_QKV = (
    ("attn.to_{}.", "x_block.attn.qkv."),
    ("attn2.to_{}.", "x_block.attn2.qkv."),
    ("attn.add_{}_proj.", "context_block.attn.qkv."),
)


def state_dict(folder: Path, component: str) -> StateDict:
    """A component's tensors as diffusers and transformers save them."""
    stem = "model" if component in ENCODERS else "diffusion_pytorch_model"
    return load_file(folder / component / f"{stem}.safetensors")


def networks_of(folder: Path) -> Networks:
    """The configs of a diffusers folder."""
    local = LocalFolder(folder)
    return read_networks(local, read_index(local)[0])


def alone(folder: Path, component: str) -> StateDict:
    """An encoder as files of one encoder, and single files, have it."""
    tensors = state_dict(folder, component)
    if component == "text_encoder":
        del tensors["text_projection.weight"]
    if component == "text_encoder_3":
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()
    return tensors


def single_file_tensors(folder: Path, encoders: Iterable[str] = ENCODERS) -> StateDict:
    """The denoiser, the VAE and these encoders in sd3-ref's layout."""
    denoiser = {f"model.diffusion_model.{k}": v for k, v in _sd3_ref(state_dict(folder, "transformer")).items()}
    vae = {f"first_stage_model.{k}": v for k, v in ldm_vae(state_dict(folder, "vae")).items()}
    texts = {f"text_encoders.{ENCODERS[c]}.transformer.{k}": v for c in encoders for k, v in alone(folder, c).items()}
    return {**denoiser, **vae, **texts}


def write_single_file(
    path: Path, folder: Path, encoders: Iterable[str] = ENCODERS, extra: Mapping[str, np.ndarray] | None = None
) -> Path:
    """A folder's weights as a single file."""
    return write(path, {**single_file_tensors(folder, encoders), **(extra or {})})


def write_encoders(path: Path, folder: Path, encoders: Iterable[str] = ENCODERS) -> Path:
    """Files of one encoder each, in the folder `path`."""
    path.mkdir(parents=True)
    for component in encoders:
        write(path / FILES[component], alone(folder, component))
    return path


def write(path: Path, tensors: StateDict) -> Path:
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return path


def eight_bit(tensors: StateDict) -> StateDict:
    """Plain casts."""
    return {name: value.astype(ml_dtypes.float8_e4m3fn) for name, value in tensors.items()}


def write_hollow(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A file of float16 tensors of these shapes, full of holes: as large as it says, but taking no room. All zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + end)
    return path


def _sd3_ref(tensors: StateDict) -> StateDict:
    """The denoiser's canonical tensors under sd3-ref's names: q, k and v in one, two norms' shift and scale swapped."""
    last = max(int(match[1]) for name in tensors if (match := re.match(r"transformer_blocks\.(\d+)\.", name)))
    result = {}
    for name, value in tensors.items():
        if match := re.match(r"transformer_blocks\.\d+\.", name):
            block, rest = match[0], name.removeprefix(match[0])
            joint = block.replace("transformer_blocks", "joint_blocks")
            for template, fused in _QKV:
                if rest.startswith(template.format("q")):
                    leaf = rest.removeprefix(template.format("q"))
                    parts = [tensors[f"{block}{template.format(p)}{leaf}"] for p in "qkv"]
                    result[f"{joint}{fused}{leaf}"] = np.concatenate(parts)
            for old, new in _BLOCK:
                if rest.startswith(old):
                    ends = block == f"transformer_blocks.{last}." and old.startswith("norm1_context")
                    result[joint + new + rest.removeprefix(old)] = _swapped(value) if ends else value
                    break
        elif name.startswith("norm_out.linear."):
            result[name.replace("norm_out.linear", "final_layer.adaLN_modulation.1")] = _swapped(value)
        else:
            for old, new in _ENDS:
                name = new + name.removeprefix(old) if name.startswith(old) else name
            result["pos_embed" if name == "pos_embed.pos_embed" else name] = value
    return result


def _swapped(x: np.ndarray) -> np.ndarray:
    first, second = np.split(x, 2)
    return np.concatenate([second, first])
