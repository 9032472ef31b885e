"""The trained weights as files: the published diffusers layout, float16."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from autolora_jax.weights.diffusers_folder import INDEX, make_index
from autolora_jax.weights.families import SDXL
from autolora_jax.weights.tables import export
from autolora_jax.weights.writing import write_safetensors
from recipes.builtin.networks import MERGES, NETWORKS, SCHEDULER
from recipes.builtin.tokenizer import EOS, write_tokenizer

FILES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # the others: model


def write_model(folder: Path, params: Mapping[str, Any], scaling_factor: float) -> None:
    """Writes component -> weights as a model that diffusers and this library load."""
    configs = {component: NETWORKS[component].config for component in params}
    for component, tree in params.items():
        config = NETWORKS[component].config
        if component == "vae":
            config = dataclasses.replace(config, scaling_factor=scaling_factor)
        half = jax.tree.map(lambda x: np.asarray(x, np.float16), jax.device_get(tree))
        (folder / component).mkdir(parents=True, exist_ok=True)
        write_safetensors(
            folder / component / f"{FILES.get(component, 'model')}.safetensors", export(half), {"format": "pt"}
        )
        _write_json(folder / component / "config.json", config.to_dict())
    write_tokenizer(folder / "tokenizer", EOS, MERGES)
    write_tokenizer(folder / "tokenizer_2", "!", MERGES)
    (folder / "scheduler").mkdir(exist_ok=True)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER.to_dict())
    # An empty negative prompt is encoded: what the model was trained to take for no prompt.
    _write_json(folder / INDEX, make_index(SDXL, configs, force_zeros_for_empty_prompt=False, scheduler=SCHEDULER))


def write_half(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes a tree by its own names, float16."""
    flat = traverse_util.flatten_dict(jax.device_get(tree), sep="/")
    write_safetensors(path, {name: np.asarray(leaf, np.float16) for name, leaf in flat.items()})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
