"""Tuned checkpoints for tests: diffusers folders with known changes in their tensors; changes compared."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.numpy import load_file, save_file

from autolora_jax.lora.save import changes
from autolora_jax.weights.lora.kinds.matrix import to_torch
from autolora_jax.weights.tables import torch_module
from tests.checkpoint_files import WEIGHTS
from tests.lora_reference import RandomLora, canonical
from tests.parity import error

Deltas = dict[tuple[str, str], np.ndarray]  # (component, canonical module name) -> ΔW in torch's layout, float64


def changed_folder(
    out: Path, base: Path, change: Callable[[str, dict[str, np.ndarray]], None], files: Mapping[str, str] = WEIGHTS
) -> Path:
    """A copy of a diffusers folder. change(component, its tensors): edits them. files: component -> its file's stem."""
    shutil.copytree(base, out)
    for component, stem in files.items():
        path = out / component / f"{stem}.safetensors"
        tensors = load_file(path)
        change(component, tensors)
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, {"format": "pt"})
    return out


def tuned_folder(out: Path, base: Path, lora: RandomLora, scale: float = 1.0) -> Path:
    """A copy of the tiny SDXL with a LoRA merged into its files, by definition and in float64."""
    deltas = deltas_of(lora)

    def add(component: str, tensors: dict[str, np.ndarray]) -> None:
        for name, tensor in tensors.items():
            delta = deltas.get((component, canonical(component, name.removesuffix(".weight"))))
            if name.endswith(".weight") and delta is not None:
                tensors[name] = (tensor.astype(np.float64) + scale * delta).astype(tensor.dtype)

    return changed_folder(out, base, add)


def deltas_of(lora: RandomLora) -> Deltas:
    """What a LoRA adds to each weight at scale 1."""
    return {key: change.delta.numpy() for key, change in lora.changes.items()}


def dense(trees: dict[str, Any]) -> Deltas:
    """What delta trees add to each weight at scale 1."""
    found = (item for component, tree in trees.items() for item in changes(component, tree))
    return {(layer.component, torch_module(layer.path)): to_torch(change.matrix.kernel) for layer, change in found}


def assert_same_deltas(ours: Deltas, theirs: Deltas, tolerance: float) -> None:
    """The same layers, and every change within `tolerance` of its largest value."""
    assert ours.keys() == theirs.keys()
    for key, delta in theirs.items():
        got = ours[key].reshape(delta.shape)
        assert error(got, delta) < tolerance, key


@torch.no_grad()
def prediction(pipe: StableDiffusionXLPipeline) -> np.ndarray:
    """torch's UNet on inputs that are always the same, told by its text encoders: all that a LoRA changes is in it."""
    g = torch.Generator().manual_seed(7)
    x = torch.randn(1, 4, 16, 16, generator=g)
    ids = torch.randint(0, 500, (1, 77), generator=g)
    one = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
    two = pipe.text_encoder_2(ids, output_hidden_states=True)
    told = torch.cat([one, two.hidden_states[-2]], dim=-1)
    added = {"text_embeds": two.text_embeds, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]])}
    return pipe.unet(x, torch.tensor([500.0]), told, added_cond_kwargs=added).sample.numpy()
