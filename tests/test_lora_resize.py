"""Resizing: fewer ranks hold the nearest change that they can, against numpy's SVD of the dense change."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from autolora_jax import lora
from autolora_jax.demo import builtin
from autolora_jax.lora import Truncation, resize
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.lora.base_model import read_alone
from autolora_jax.weights.lora.files import read_lora
from tests.lora_reference import UNET_MODULE, good, halves, saved, tiny_networks, tiny_targets
from tests.parity import normal
from tests.programs import autolora

NEAREST = 1e-6  # of the norm; seen: 4e-8, float32's rounding of the factors


def leaf(seed: int, kernel: tuple[int, ...], rank: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """A low-rank leaf whose singular values fall."""
    down, up = normal(seed, *kernel[:-1], rank), normal(seed + 1, rank, kernel[-1])
    fall = 0.6 ** np.arange(rank, dtype=np.float32)
    return {"down": (down * fall).astype(dtype), "up": up.astype(dtype), "owner": np.zeros(rank, np.int32)}


def matrix(leaf: dict[str, np.ndarray]) -> np.ndarray:
    """ΔW as a matrix, float64."""
    down = leaf["down"].astype(np.float64)
    return down.reshape(-1, down.shape[-1]) @ leaf["up"].astype(np.float64)


def truncated(dense: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """(the nearest matrix of that rank, how far it is), by numpy's SVD."""
    u, sigma, v = np.linalg.svd(dense, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ v[:rank], float(np.linalg.norm(sigma[rank:]))


KERNELS = {"wide": (20, 60), "tall": (60, 20), "conv": (3, 3, 12, 24), "few inputs": (4, 30)}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=list(KERNELS))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_is_the_truncated_svd_of_the_dense_change(kernel: tuple[int, ...], dtype: str):
    tree = {"unet": {"block_0": {"to_q": leaf(3, kernel, 8, dtype)}}}
    trees, fits = resize(tree, Truncation(rank=3))
    dense, found = matrix(tree["unet"]["block_0"]["to_q"]), trees["unet"]["block_0"]["to_q"]
    wanted, missing = truncated(dense, 3)
    assert found["down"].shape == (*kernel[:-1], 3) and found["down"].dtype == found["up"].dtype == np.float32
    assert np.linalg.norm(matrix(found) - wanted) < NEAREST * np.linalg.norm(dense)
    fit = fits.layers["unet/block_0/to_q"]
    assert fit.error == pytest.approx(missing) and fit.size == pytest.approx(np.linalg.norm(dense))
    # √σ on either side.
    sizes = [np.linalg.norm(half, axis=1) for half in (found["down"].reshape(-1, 3).T, found["up"])]
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=1e-5)


def test_every_layer_takes_the_ranks_that_its_error_needs():
    tree = {"unet": {"a": leaf(0, (40, 40), 16), "b": leaf(2, (3, 3, 8, 40), 16), "c": leaf(4, (40, 40), 1)}}
    trees, fits = resize(tree, Truncation(max_error=0.1))
    for name in "ab":
        rank = fits.layers[f"unet/{name}"].rank
        dense = matrix(tree["unet"][name])
        assert truncated(dense, rank)[1] <= 0.1 * np.linalg.norm(dense) < truncated(dense, rank - 1)[1]
        assert trees["unet"][name]["owner"].shape == (rank,)
    assert fits.layers["unet/c"].rank == 1 and fits.layers["unet/c"].relative < NEAREST
    total = np.sqrt(sum(fit.error**2 for fit in fits.layers.values()))
    assert fits.error == pytest.approx(total / np.sqrt(sum(fit.size**2 for fit in fits.layers.values())))
    assert sum(fits.ranks.values()) == 3


def test_more_ranks_than_there_are_change_nothing():
    tree = {"unet": {"a": leaf(0, (40, 30), 4), "nothing": leaf(2, (40, 30), 4)}}
    tree["unet"]["nothing"]["up"][:] = 0
    trees, fits = resize(tree, Truncation(rank=64))
    assert fits.layers["unet/a"].rank == 4 and fits.layers["unet/a"].relative < NEAREST
    assert np.linalg.norm(matrix(trees["unet"]["a"]) - matrix(tree["unet"]["a"])) < NEAREST * fits.layers["unet/a"].size
    assert trees["unet"].keys() == {"a"}


def test_convolutions_have_a_rank_of_their_own():
    tree = {"unet": {"a": leaf(0, (40, 30), 4), "conv": leaf(2, (3, 3, 4, 30), 4), "one": leaf(4, (1, 1, 40, 30), 4)}}
    _, fits = resize(tree, Truncation(rank=3, conv_rank=2))
    assert {name: fit.rank for name, fit in fits.layers.items()} == {"unet/a": 3, "unet/conv": 2, "unet/one": 3}
    trees, _ = resize(tree, Truncation(rank=3, conv_rank=0))
    assert trees["unet"].keys() == {"a", "one"}
    with pytest.raises(ValueError, match="conv_rank = 0 leaves out all that are"):
        resize({"unet": {"conv": tree["unet"]["conv"]}}, Truncation(rank=3, conv_rank=0))


# ---- other kinds -----------------------------------------------------------------------------------------------------


def lokr(path: Path) -> Path:
    """A file with a LoKr of one layer, and changed biases and norms beside it."""
    norm = "lora_unet_input_blocks_1_0_in_layers_0"
    return saved(
        path,
        {
            f"{UNET_MODULE}.lokr_w1": normal(0, 8, 4),
            f"{UNET_MODULE}.lokr_w2": normal(1, 8, 16),
            f"{UNET_MODULE}.diff_b": normal(2, 64),
            f"{norm}.w_norm": normal(3, 32),
            f"{norm}.b_norm": normal(4, 32),
        },
    )


def test_other_kinds_become_low_rank(tmp_path: Path):
    file = read_lora(lokr(tmp_path / "a.safetensors"), tiny_targets())
    trees, fits = resize(file, Truncation(rank=5))
    [layer] = [layer for layer, change in file.layers.items() if change.matrix]
    wanted, missing = truncated(file.layers[layer].matrix.kernel.astype(np.float64), 5)
    found = trees["unet"]
    for name in layer.path.split("/"):
        found = found[name]
    assert np.linalg.norm(matrix(found) - wanted) < NEAREST * np.linalg.norm(wanted)
    assert fits.layers == {
        f"unet/{layer.path}": (5, pytest.approx(np.hypot(np.linalg.norm(wanted), missing)), pytest.approx(missing))
    }
    np.testing.assert_array_equal(found["bias"]["rows"][0], normal(2, 64))
    lora.save_lora(tmp_path / "b.safetensors", trees, denoiser_config=tiny_networks()["unet"])
    again = read_lora(tmp_path / "b.safetensors", tiny_targets())
    assert again.layers.keys() == file.layers.keys()  # the norm is still there
    norm = next(change for change in again.layers.values() if change.weight is not None)
    np.testing.assert_array_equal(norm.weight, normal(3, 32))


def test_what_has_no_lower_rank_of_its_own_is_refused(tmp_path: Path):
    dora = {**halves(UNET_MODULE, 64, 64), f"{UNET_MODULE}.dora_scale": np.ones((64, 1), np.float32)}
    file = read_lora(saved(tmp_path / "a.safetensors", dora), tiny_targets())
    with pytest.raises(ValueError, match=r"proj_in is a DoRA, whose change depends on the base weights, too: merge it"):
        resize(file, Truncation(rank=1))
    words = {
        "bundle_emb.zib.clip_l": np.ones((1, 32), np.float32),
        "bundle_emb.zib.clip_g": np.ones((1, 48), np.float32),
    }
    file = read_lora(saved(tmp_path / "b.safetensors", {**good(), **words}), tiny_targets())
    with pytest.raises(
        ValueError, match=r"b.safetensors brings words of its own \(zib\), which delta trees do not hold"
    ):
        resize(file, Truncation(rank=1))
    trees = lora.stack([{"unet": {"a": leaf(i, (20, 20), 2)}} for i in range(2)])
    with pytest.raises(ValueError, match="unet/a holds several stacked LoRAs"):
        resize(trees, Truncation(rank=1))


# ---- the program -----------------------------------------------------------------------------------------------------


def contents(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors, header) of a file."""
    with safe_open(path, "np") as file:
        return load_file(path), file.metadata()


def test_a_lora_names_its_base(tmp_path: Path):
    """Wherever it lies: the header does."""
    file = shutil.copy(builtin("builtin:style"), tmp_path / "mine.safetensors")
    networks, _ = read_alone(file)
    assert networks["unet"].block_out_channels[0] < 320


def test_the_program_resizes_a_built_in_lora(tmp_path: Path):
    out = tmp_path / "small.safetensors"
    result = autolora("resize", "builtin:character", "--out", out, "--rank", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"LoRA in {out}\n"
    assert "rank            2\n" in result.stderr and "of the change, all layers together" in result.stderr
    (_, before), (_, after) = read_alone("builtin:character"), read_alone(out, "builtin")
    assert {layer for layer, change in before.layers.items() if change.matrix.up.any()} == after.layers.keys()
    assert {change.matrix.rank for change in after.layers.values()} == {2}
    old, was = contents(builtin("builtin:character"))
    new, said = contents(out)
    assert new.keys() < old.keys()  # the same dialect, without the few layers that training did not change
    assert {tensor.dtype for tensor in new.values()} == {tensor.dtype for tensor in old.values()}
    assert said["modelspec.title"] == was["modelspec.title"] and said["ss_network_dim"] == "2"
    assert "resized from character.safetensors" in said["ss_training_comment"]
    again = autolora("resize", "builtin:character", "--out", out, "--rank", 2)
    assert again.exit_code == 1 and "exists; remove it or choose another --out" in again.stderr


def test_the_program_keeps_the_dialect_and_forgets_what_is_no_longer_true(tmp_path: Path):
    names = {"unet.down_blocks.1.attentions.0.proj_in": (640, 640)}
    halves = {f"{n}.lora_A.weight": normal(0, 4, i).astype(np.float16) for n, (i, _) in names.items()}
    halves |= {f"{n}.lora_B.weight": normal(1, o, 4).astype(np.float16) for n, (_, o) in names.items()}
    header = {"ss_network_args": '{"split_qkv": "True"}', "sshs_model_hash": "0", "modelspec.title": "kept"}
    save_file(halves, tmp_path / "peft.safetensors", header)
    out = tmp_path / "out.safetensors"
    result = autolora("resize", tmp_path / "peft.safetensors", "--out", out, "--max-error", 0.5)
    assert result.exit_code == 0, result.output
    tensors, kept = contents(out)
    assert {key.rpartition(".lora_")[2] for key in tensors} == {"A.weight", "B.weight"}
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    assert kept["modelspec.title"] == "kept" and "ss_network_args" not in kept and len(kept["sshs_model_hash"]) == 64
    assert json.loads(kept["lora_adapter_metadata"])["unet.r"] == int(kept["ss_network_dim"]) < 4


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "nothing says how many ranks to keep"),
        (["--rank", "0"], 2, "rank 0 holds nothing"),
        (["--rank", "2", "--dialect", "lycoris"], 1, "dialect 'lycoris' is not known"),
        (["--rank", "2", "--model", "builtin"], 1, "can't be applied exactly"),
        (["--rank", "2"], 1, "can't be applied exactly"),  # a tiny model's, which is no published one
    ],
)
def test_the_program_says_what_is_wrong(tmp_path: Path, flags: list[str], code: int, message: str):
    file = saved(tmp_path / "tiny.safetensors", good())
    result = autolora("resize", file, "--out", tmp_path / "out.safetensors", *flags)
    assert result.exit_code == code and message in " ".join(result.stderr.split()), result.output
    assert not (tmp_path / "out.safetensors").exists()


def test_a_model_without_a_published_size_is_named(tiny_folder: Path, tmp_path: Path):
    file = saved(tmp_path / "tiny.safetensors", good())
    result = autolora("resize", file, "--out", tmp_path / "out.safetensors", "--rank", 1, "--model", tiny_folder)
    assert result.exit_code == 0, result.output
    with pytest.raises(WeightsError, match="can't be applied exactly"):
        read_alone(file)
