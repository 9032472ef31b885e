"""Whole networks with every kind of change at once: as LyCORIS and PEFT compute them, alone, stacked, written again."""

import contextlib
import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from autolora_jax import lora
from autolora_jax.weights.lora.export import convert_lora
from autolora_jax.weights.lora.files import LoraFile, read_lora
from tests.lora_reference import COMPONENTS
from tests.lora_runs import Both, Outputs, Tree, assert_changed, assert_close
from tests.lycoris_reference import KINDS, applied, names_of, tensors_of, trained

TOLERANCE = 2e-5  # of the maximum; seen: 2.2e-6
SCALES = (1.0, 0.5)
DORA_TARGETS = r".*(attn[12]\.to_[qkv]|ff\.net\.2|resnets\.0\.conv1|conv_shortcut|downsamplers\.0\.conv)"


class Trained(NamedTuple):
    """A file, our tree of it, and what its trainer's package computes at SCALES."""

    path: Path
    file: LoraFile
    tree: Tree
    wanted: list[Outputs]


def attached(both: Both, path: Path) -> tuple[LoraFile, Tree]:
    file = read_lora(path, both.targets)
    return file, lora.attach(file, base=both.params)[0]


@pytest.fixture(scope="module")
def lycoris(both: Both, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Layer by layer the kinds of LyCORIS in turn; every norm trained, too."""
    path = tmp_path_factory.mktemp("lycoris") / "a.safetensors"
    layers = {name: layer for c in COMPONENTS for name, layer in names_of(both.pipe, c).items()}
    kinds = [kind for kind in KINDS if kind != "norm"]
    modules = []
    for i, (name, layer) in enumerate(layers.items()):
        is_norm = isinstance(layer, torch.nn.GroupNorm | torch.nn.LayerNorm)
        modules.append(trained("norm" if is_norm else kinds[i % len(kinds)], name, layer, i, strength=0.3))
    save_file({key: tensor for module in modules for key, tensor in tensors_of(module).items()}, path)
    wanted = []
    for scale in SCALES:
        with contextlib.ExitStack() as stack:
            for module in modules:
                stack.enter_context(applied(module, scale))
            wanted.append(both.torch())
    return Trained(path, *attached(both, path), wanted)


@pytest.fixture(scope="module")
def dora(both: Both, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """PEFT's DoRA of the UNet, linear layers and convolutions, with mixed ranks and rank-stabilised scales."""
    folder = tmp_path_factory.mktemp("peft")
    config = peft.LoraConfig(
        r=3, lora_alpha=4, use_dora=True, use_rslora=True, target_modules=DORA_TARGETS, rank_pattern={"to_q": 2}
    )
    plain, unet = both.pipe.unet, copy.deepcopy(both.pipe.unet)
    peft.inject_adapter_in_model(config, unet)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
            elif "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    tensors = {f"unet.{key}": tensor.contiguous() for key, tensor in peft.get_peft_model_state_dict(unet).items()}
    raw = {key: list(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    header = json.dumps({f"unet.{key}": value for key, value in raw.items()}, default=str)
    save_torch(tensors, folder / "a.safetensors", {"lora_adapter_metadata": header})
    wanted = []
    try:
        both.pipe.unet = unet.eval()
        for scale in SCALES:
            for module in unet.modules():
                if isinstance(module, LoraLayer):
                    module.set_scale("default", scale)
            wanted.append(both.torch())
    finally:
        both.pipe.unet = plain
    return Trained(folder / "a.safetensors", *attached(both, folder / "a.safetensors"), wanted)


@pytest.fixture(params=["lycoris", "dora"])
def made(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


def test_whole_networks_compute_what_the_trainer_does(both: Both, made: Trained) -> None:
    base = both.torch()
    for scale, want in zip(SCALES, made.wanted, strict=True):
        assert_close(both.ours(made.tree, [[scale]] * 2), want, TOLERANCE)
    assert max(np.abs(made.wanted[0]["unet"] - base["unet"]).ravel()) > 0.1
    assert_close(both.ours(made.tree, [[0.0]] * 2), base, TOLERANCE)


def test_scales_per_image(both: Both, made: Trained) -> None:
    mixed = {name: np.stack([made.wanted[i][name][i] for i in (0, 1)]) for name in made.wanted[0]}
    assert_close(both.ours(made.tree, [[scale] for scale in SCALES]), mixed, TOLERANCE)


def test_stacked_with_another(both: Both, lycoris: Trained, dora: Trained) -> None:
    """Each at its scale while the other is off; and the order does not matter."""
    stacked, turned = lora.stack([lycoris.tree, dora.tree]), lora.stack([dora.tree, lycoris.tree])
    assert_close(both.ours(stacked, [0.5, 0.0]), lycoris.wanted[1], TOLERANCE)
    assert_close(both.ours(stacked, [0.0, 1.0]), dora.wanted[0], TOLERANCE)
    both_on = both.ours(stacked, [1.0, 0.5])
    assert_changed(both_on, both.torch())
    assert_close(both_on, both.ours(turned, [0.5, 1.0]), TOLERANCE)


def test_room_for_other_ranks_changes_nothing(both: Both, lycoris: Trained) -> None:
    roomy = {name: lora.padded(tree, both.params[name]) for name, tree in lycoris.tree.items()}
    assert_close(both.ours(roomy, [1.0, 0.0]), lycoris.wanted[0], TOLERANCE)


def test_merged_weights_equal_the_delta(both: Both, made: Trained) -> None:
    params = {name: lora.merge_into(both.params[name], made.tree.get(name), np.float32([0.5])) for name in COMPONENTS}
    kept, both.params = both.params, params
    try:
        assert_close(both.ours({}, []), made.wanted[1], TOLERANCE)
    finally:
        both.params = kept


def same(one: Any, other: Any) -> bool:
    return sorted(layer.path for layer in one) == sorted(layer.path for layer in other)


def test_written_again_it_is_the_same_lora(both: Both, made: Trained, tmp_path: Path) -> None:
    """From the file's own changes and from the tree, with every kind by its own keys."""
    convert_lora(tmp_path / "a.safetensors", made.file, "kohya", both.networks["unet"])
    lora.save_lora(tmp_path / "b.safetensors", made.tree, "kohya", None, both.networks["unet"])
    for name in ("a", "b"):
        file, tree = attached(both, tmp_path / f"{name}.safetensors")
        assert same(file.layers, made.file.layers)
        assert_close(both.ours(tree, [[1.0]] * 2), made.wanted[0], TOLERANCE)


def test_peft_has_no_name_for_some_kinds(both: Both, lycoris: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write it as kohya"):
        lora.save_lora(tmp_path / "a.safetensors", lycoris.tree, "peft", None, both.networks["unet"])


def test_dora_for_peft_is_read_by_peft(both: Both, dora: Trained, tmp_path: Path) -> None:
    lora.save_lora(tmp_path / "a.safetensors", dora.tree, "peft", None, both.networks["unet"])
    _, tree = attached(both, tmp_path / "a.safetensors")
    assert_close(both.ours(tree, [[0.5]] * 2), dora.wanted[1], TOLERANCE)
    plain = both.pipe.unet
    both.pipe.unet = copy.deepcopy(plain)
    try:
        both.pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
        assert_close(both.torch(), dora.wanted[0], TOLERANCE)
    finally:
        both.pipe.unload_lora_weights()
        both.pipe.unet = plain
