"""Checkpoint files for tests, written without the library's tables: state dicts, single files, key lists."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from autolora_jax.config import CLIPTextConfig, UNetConfig, VAEConfig, read_json
from autolora_jax.models.networks import Networks

StateDict = dict[str, np.ndarray]
ROOT = Path(__file__).resolve().parents[1]
COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae")
WEIGHTS = {c: "model" if "text" in c else "diffusion_pytorch_model" for c in COMPONENTS}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE = (
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_(q|k|v)\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"up_blocks\.(\d)", lambda m: f"up.{3 - int(m[1])}"),
    (r"down_blocks\.", "down."),
    (r"resnets\.", "block."),
    (r"(down|up)samplers\.0", r"\1sample"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)
_OPEN_CLIP = (
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_ln_", "ln_final"),  # after layer_norm -> ln_
)


def state_dict(folder: Path, component: str) -> StateDict:
    """A component's published tensors, CLIP's names with `text_model.`."""
    tensors = load_file(folder / component / f"{WEIGHTS[component]}.safetensors")
    bare = ("embeddings", "encoder", "final_layer_norm")
    prefix = "text_model." if component == "text_encoder" else ""
    return {(prefix + k if k.startswith(bare) else k): v for k, v in tensors.items()}


def single_file_tensors(folder: Path) -> StateDict:
    """All four components in the LDM/sgm layout."""
    blocks = _unet_blocks(read_json(folder / "unet" / "config.json"))
    unet = {f"model.diffusion_model.{_unet_name(k, blocks)}": v for k, v in state_dict(folder, "unet").items()}
    vae = {f"first_stage_model.{k}": v for k, v in ldm_vae(state_dict(folder, "vae")).items()}
    one = {f"conditioner.embedders.0.transformer.{k}": v for k, v in state_dict(folder, "text_encoder").items()}
    two = {f"conditioner.embedders.1.model.{k}": v for k, v in _open_clip(state_dict(folder, "text_encoder_2")).items()}
    return {**unet, **vae, **one, **two}


def write_single_file(
    path: Path, folder: Path, extra: Mapping[str, np.ndarray] | None = None, metadata: dict[str, str] | None = None
) -> Path:
    """The tiny folder's weights as a single file."""
    tensors = {**single_file_tensors(folder), **(extra or {})}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata)
    return path


def networks_of(folder: Path) -> Networks:
    """The configs of a diffusers folder."""
    two = {**read_json(folder / "text_encoder_2" / "config.json"), "architectures": ["CLIPTextModelWithProjection"]}
    return {
        "text_encoder": CLIPTextConfig.from_file(folder / "text_encoder" / "config.json"),
        "text_encoder_2": CLIPTextConfig.from_dict(two),
        "unet": UNetConfig.from_file(folder / "unet" / "config.json"),
        "vae": VAEConfig.from_file(folder / "vae" / "config.json"),
    }


def cast_folder(folder: Path, dtype: str) -> None:
    """Rewrites the weights of a (copied) folder in another dtype."""
    for component in COMPONENTS:
        path = folder / component / f"{WEIGHTS[component]}.safetensors"
        save_file({k: v.astype(DTYPES[dtype]) for k, v in load_file(path).items()}, path)


def key_list(path: Path) -> dict[str, tuple[int, ...]]:
    """A published key list: lines of `name [shape] dtype`."""
    rows = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: tuple(int(n) for n in shape[1:-1].split(",") if n) for name, shape, _ in rows}


def _unet_blocks(config: Mapping[str, Any]) -> dict[str, str]:
    """Block -> its LDM name: walks the levels and counts, as LDM's own constructor does."""
    blocks, n, layers = dict(_UNET_ENDS), 1, config["layers_per_block"]
    for level, kind in enumerate(config["down_block_types"]):
        for layer in range(layers):
            blocks[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{n}.0"
            if kind.startswith("Cross"):
                blocks[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{n}.1"
            n += 1
        if level < len(config["down_block_types"]) - 1:
            blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"
            n += 1
    n = 0
    for level, kind in enumerate(config["up_block_types"]):
        for layer in range(layers + 1):
            names = [f"up_blocks.{level}.resnets.{layer}"]
            if kind.startswith("Cross"):
                names.append(f"up_blocks.{level}.attentions.{layer}")
            if layer == layers and level < len(config["up_block_types"]) - 1:
                names.append(f"up_blocks.{level}.upsamplers.0")
            blocks |= {name: f"output_blocks.{n}.{i}" for i, name in enumerate(names)}
            n += 1
    return blocks


def _unet_name(name: str, blocks: Mapping[str, str]) -> str:
    for module, ldm in blocks.items():
        if name.startswith(module + "."):
            first, dot, leaf = name.removeprefix(module + ".").partition(".")
            return f"{ldm}.{_RESNET[first] if '.resnets.' in module else first}{dot}{leaf}"
    raise KeyError(name)


def ldm_vae(tensors: StateDict) -> StateDict:
    """A VAE's tensors under LDM's names."""
    result = {}
    for name, value in tensors.items():
        if ".attentions." in name and name.endswith("weight") and value.ndim == 2:
            value = value[:, :, None, None]
        for pattern, replacement in _VAE:
            name = re.sub(pattern, replacement, name)
        result[name] = value
    return result


def _open_clip(tensors: StateDict) -> StateDict:
    result = {}
    for name, value in tensors.items():
        if name == "text_projection.weight":
            result["text_projection"] = value.T
        elif ".q_proj." in name:
            qkv = [tensors[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            layer, leaf = re.findall(r"layers\.(\d+)\..*\.(\w+)$", name)[0]
            result[f"transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = np.concatenate(qkv)
        elif "k_proj" not in name and "v_proj" not in name:
            for old, new in _OPEN_CLIP:
                name = name.replace(old, new)
            name = name.removesuffix(".weight") if name == "positional_embedding.weight" else name
            result[name] = value
    return result
