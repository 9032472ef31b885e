"""kohya's fused q, k and v: joined, cut, and as split_qkv trains them."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as load_torch

from autolora_jax.config import MMDiTConfig
from autolora_jax.weights.lora.export import convert_lora
from autolora_jax.weights.lora.files import read_lora, targets_of
from autolora_jax.weights.lora.names import Targets
from tests.lora_reference import Change
from tests.lora_sd3_reference import (
    CONFIG,
    EXACT,
    Changes,
    Deltas,
    assert_same,
    fused_deltas,
    kohya_tensors,
    peft_file,
    random_change,
    taken_apart,
    written,
)
from tests.parity import error

QKV = ("joint_blocks.0.x_block.attn.qkv", "joint_blocks.0.x_block.attn2.qkv", "joint_blocks.2.context_block.attn.qkv")
PROJ = "joint_blocks.0.x_block.attn.proj"


@pytest.fixture(scope="module")
def targets() -> Targets:
    return targets_of({"transformer": MMDiTConfig.from_dict(CONFIG)})


def joined(tmp_path: Path, targets: Targets, ranks: tuple[int, ...], alphas: tuple[float, ...]) -> tuple[Path, Deltas]:
    """(a file of kohya's made from q, k and v of their own, their changes)."""
    modules = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
    parts = zip(modules, ranks, alphas, itertools.count(), strict=False)
    changes = {module: random_change((32, 32), rank, alpha, i) for module, rank, alpha, i in parts}
    file = read_lora(written(tmp_path / "a.safetensors", *peft_file({"transformer": changes})), targets)
    convert_lora(tmp_path / "b.safetensors", file, "kohya", targets["transformer"][1])
    return tmp_path / "b.safetensors", {module: change.delta for module, change in changes.items()}


@pytest.mark.parametrize("ranks", [(2, 2, 2), (3, 1, 2), (2, 4), (3,)])
@pytest.mark.parametrize("alphas", [(1.0, 1.0, 1.0), (6.0, 6.0, 6.0), (0.5, 3.0, 2.0)])
def test_sd_scripts_and_we_read_joined_files_alike(
    tmp_path: Path, targets: Targets, ranks: tuple[int, ...], alphas: tuple[float, ...]
) -> None:
    """Never as split_qkv, whatever the alphas; sd-scripts: alpha / rank · up @ down of the fused layer."""
    path, deltas = joined(tmp_path, targets, ranks, alphas)
    assert_same(read_lora(path, targets), deltas)
    theirs = taken_apart(fused_deltas(load_torch(path)), CONFIG)
    assert theirs.keys() == deltas.keys()
    for name, delta in deltas.items():
        assert error(theirs[name].numpy(), delta.numpy()) < EXACT


def split_qkv(rank: int, alpha: float) -> tuple[Changes, Deltas]:
    """What sd-scripts trains with split_qkv=True: (modules as its file has them, trained changes of fused weights)."""
    changes, trained = {}, {}
    for seed, module in enumerate(QKV):
        parts = [random_change((32, 32), rank, alpha, 10 * seed + i) for i in range(3)]
        up = torch.block_diag(*(part.up for part in parts))
        changes[module] = Change(torch.cat([part.down for part in parts]), up, alpha)
        trained[module] = torch.cat([part.delta for part in parts])
    changes[PROJ] = random_change((32, 32), rank, alpha, 99)
    return changes, {**trained, PROJ: changes[PROJ].delta}


KOHYAS_HEADER = {"ss_network_args": json.dumps({"conv_dim": "4", "split_qkv": "True"})}


@pytest.mark.parametrize("rank, alpha, header", [(2, 1.0, {}), (4, 4.0, {}), (2, 6.0, KOHYAS_HEADER)])
def test_split_qkv_is_as_it_was_trained(
    tmp_path: Path, targets: Targets, rank: int, alpha: float, header: dict[str, str]
) -> None:
    changes, trained = split_qkv(rank, alpha)
    path = written(tmp_path / "a.safetensors", kohya_tensors(changes, "lora_unet_"), header)
    file = read_lora(path, targets)
    assert file.dialect == "LoRA, kohya (SD3 block names), split_qkv"
    assert_same(file, taken_apart(trained, CONFIG))
    assert {change.matrix.rank for change in file.layers.values()} == {rank}
    # Converted, it means the same to programs that read alpha / rank.
    convert_lora(tmp_path / "b.safetensors", file, "kohya", targets["transformer"][1])
    assert_same(read_lora(tmp_path / "b.safetensors", targets), taken_apart(trained, CONFIG))
    theirs = taken_apart(fused_deltas(load_torch(tmp_path / "b.safetensors")), CONFIG)
    for name, delta in taken_apart(trained, CONFIG).items():
        assert error(theirs[name].numpy(), delta.numpy()) < EXACT


@pytest.mark.parametrize("what", ["alpha of all ranks", "an alpha of its own", "another order", "no alpha"])
def test_other_blocks_are_read_as_they_stand(tmp_path: Path, targets: Targets, what: str) -> None:
    changes, _ = split_qkv(2, 1.0)
    for module in QKV:
        change = changes[module]
        changes[module] = {
            "alpha of all ranks": Change(change.down, change.up, 6.0),
            "an alpha of its own": Change(change.down, change.up, 3.0),
            "another order": Change(change.down.flip(0), change.up.flip(1), 1.0),
            "no alpha": Change(change.down, change.up, 6.0),
        }[what]
    tensors = kohya_tensors(changes, "lora_unet_")
    if what == "no alpha":
        tensors = {name: x for name, x in tensors.items() if "qkv" not in name or not name.endswith("alpha")}
    if what == "alpha of all ranks":
        tensors |= {name: torch.tensor(6.0) for name in tensors if name.endswith("alpha")}
        changes[PROJ] = Change(changes[PROJ].down, changes[PROJ].up, 6.0)
    file = read_lora(written(tmp_path / "a.safetensors", tensors), targets)
    assert_same(file, taken_apart({name: change.delta for name, change in changes.items()}, CONFIG))
    assert "split" not in file.dialect


def test_an_untrained_file_keeps_its_layers(tmp_path: Path, targets: Targets) -> None:
    change = random_change((96, 32), 4, 1.0, 0)
    tensors = kohya_tensors({QKV[0]: Change(change.down, 0 * change.up, 1.0)}, "lora_unet_")
    file = read_lora(written(tmp_path / "a.safetensors", tensors), targets)
    assert len(file.layers) == 3 and not any(change.matrix.up.any() for change in file.layers.values())
