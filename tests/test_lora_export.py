"""Finding, describing and writing LoRA files."""

import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
from safetensors import safe_open

from autolora_jax.lora import attach, save_lora
from autolora_jax.pictures import lora_hash
from autolora_jax.training.header import base_hashes, names_of
from autolora_jax.weights.errors import LONGEST, WeightsError, printable
from autolora_jax.weights.lora import export
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.files import read_lora
from autolora_jax.weights.lora.metadata import trigger_words
from autolora_jax.weights.lora.source import find_lora
from autolora_jax.weights.published import SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM
from autolora_jax.weights.writing import write_safetensors
from tests.conftest import ROOT
from tests.lora_reference import good, saved, tiny_networks, tiny_targets
from tests.parity import error

CONVERT = str(ROOT / "convert" / "lora.py")


def test_folder_with_one_file(tmp_path: Path) -> None:
    file = saved(tmp_path / "some.safetensors", good())
    assert find_lora(tmp_path) == file
    usual = saved(tmp_path / "pytorch_lora_weights.safetensors", good())
    assert find_lora(tmp_path) == usual
    saved(tmp_path / "third.safetensors", good())
    usual.unlink()
    with pytest.raises(WeightsError, match=r"several .safetensors files \(some.safetensors, third.safetensors\)"):
        find_lora(tmp_path)


def test_neither_path_nor_repository(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no \.safetensors file"):
        find_lora(tmp_path)
    assert find_lora("loras/missing.safetensors") == Path("loras/missing.safetensors")
    with pytest.raises(WeightsError, match="someone/something"):
        find_lora("someone/something")  # HF_HUB_OFFLINE is set in tests


def test_describe_good_file(tmp_path: Path) -> None:
    tags = {"10_cat": {"pixel art": 7, "cat": 3}, "5_dog": {"pixel art": 2}, "broken": 3}
    metadata = {
        "ss_tag_frequency": json.dumps(tags),
        "ss_network_dim": "2",
        "ss_sd_model_name": "base\x1b[31m.safetensors",
    }
    about = describe_lora(saved(tmp_path / "a.safetensors", good(), metadata))
    assert about.problems == ()
    assert about.modules == {"unet": 2, "text_encoder": 1}
    assert about.ranks == {2: 2, 3: 1}
    assert about.alphas == {1.0: 1, None: 2}
    assert about.trigger_words == ("pixel art", "cat")
    text = str(about)
    assert "kohya (sgm block names)" in text and "pixel art, cat" in text and "\x1b" not in text


def test_header_is_shown_safely() -> None:
    assert trigger_words({"modelspec.trigger_phrase": " my\nword "}) == ("my word",)
    assert trigger_words({"ss_tag_frequency": "nonsense"}) == ()
    assert trigger_words({"ss_tag_frequency": "[" * 100_000}) == ()
    assert len(printable("a" * 10_000)) == LONGEST


@pytest.mark.parametrize("dialect", export.DIALECTS)
def test_converted_file_is_the_same_lora(tmp_path: Path, dialect: str) -> None:
    metadata = {"modelspec.trigger_phrase": "pixel"}
    first = read_lora(saved(tmp_path / "a.safetensors", good(), metadata), tiny_targets())
    export.convert_lora(tmp_path / "b.safetensors", first, dialect, tiny_networks()["unet"])
    second = read_lora(tmp_path / "b.safetensors", tiny_targets())
    assert second.layers.keys() == first.layers.keys()
    assert second.metadata["modelspec.trigger_phrase"] == "pixel"
    for layer, change in first.layers.items():
        np.testing.assert_array_equal(second.layers[layer].matrix.down, change.matrix.down)
        np.testing.assert_array_equal(second.layers[layer].matrix.up, change.matrix.up)
        assert second.layers[layer].matrix.scale == change.matrix.scale
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_lora(saved(tmp_path / "a.safetensors", good()), tiny_targets())

    def fails(path: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fails)  # the last thing that is done to a file that is written
    with pytest.raises(OSError, match="disk full"):
        export.convert_lora(tmp_path / "b.safetensors", first, "peft", tiny_networks()["unet"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_convert_program(tmp_path: Path, tiny_folder: Path) -> None:
    source, out = saved(tmp_path / "a.safetensors", good()), tmp_path / "b.safetensors"
    command = [sys.executable, CONVERT, str(source), str(out), "--dialect", "peft", "--model", str(tiny_folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 in unet, 1 in text_encoder" in done.stderr
    assert read_lora(out, tiny_targets()).dialect == "LoRA, PEFT/diffusers"


@pytest.mark.parametrize(
    "out, status, words",
    [("b.safetensors", 1, "shapes that do not fit"), ("a.safetensors", 2, "exists"), ("x/b.safetensors", 2, "folder")],
)
def test_convert_program_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: str,
    status: int,
    words: str,
) -> None:
    source = saved(tmp_path / "a.safetensors", good())  # too narrow for SDXL
    monkeypatch.setattr(sys, "argv", ["lora.py", str(source), str(tmp_path / out), "--dialect", "kohya"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(CONVERT, run_name="__main__")
    assert stopped.value.code == status
    assert words in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("dialect", export.DIALECTS)
def test_a_file_in_half_precision(tmp_path: Path, dialect: str) -> None:
    first = read_lora(saved(tmp_path / "a.safetensors", good()), tiny_targets())
    trees, _ = attach(first)
    sizes = {}
    for dtype in export.DTYPES:
        path = tmp_path / f"{dtype}.safetensors"
        save_lora(path, trees, dialect, None, tiny_networks()["unet"], dtype)
        again = read_lora(path, tiny_targets())
        for layer, change in first.layers.items():
            ours, theirs = (c.down @ c.up * c.scale for c in (again.layers[layer].matrix, change.matrix))
            assert error(ours, theirs) < {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
        sizes[dtype] = path.stat().st_size
        assert path.stat().st_mode & 0o077 == 0o777 & ~umask() & 0o066
    assert max(sizes["float16"], sizes["bfloat16"]) < sizes["float32"]


def test_values_that_half_precision_can_not_hold(tmp_path: Path) -> None:
    first = read_lora(saved(tmp_path / "a.safetensors", good()), tiny_targets())
    trees = jax.tree.map(lambda leaf: leaf * 1e6 if leaf.dtype == np.float32 else leaf, attach(first)[0])
    with pytest.raises(ValueError, match="float16 can't hold; save it as float32"):
        save_lora(tmp_path / "b.safetensors", trees, "kohya", None, tiny_networks()["unet"], "float16")
    with pytest.raises(ValueError, match="'fp16' is not known; choose one of float32, float16, bfloat16"):
        save_lora(tmp_path / "b.safetensors", trees, "kohya", None, tiny_networks()["unet"], "fp16")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sd_scripts_hashes(path: Path) -> dict[str, str]:
    """As library/train_util.py precalculate_safetensors_hashes takes them of tensors and their training's entries."""
    with safe_open(path, "pt") as file:
        entries = {name: value for name, value in file.metadata().items() if name.startswith("ss_")}
    content = safetensors.torch.save(safetensors.torch.load_file(path), entries)
    start = 8 + int.from_bytes(content[:8], "little")
    legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    return {"sshs_model_hash": hashlib.sha256(content[start:]).hexdigest(), "sshs_legacy_hash": legacy}


@pytest.mark.parametrize("size", [3, 400_000], ids=["less than a megabyte", "more"])
def test_the_header_has_the_hashes_by_which_others_know_a_lora(size: int, tmp_path: Path):
    values = np.random.default_rng(0).normal(size=size)
    kinds = (np.float16, ml_dtypes.bfloat16, np.float32)
    tensors = {f"{'zya'[i]}.weight": values.astype(kind) for i, kind in enumerate(kinds)}
    entries = {"ss_steps": "3", "modelspec.title": "süß", "ss_a": "1", "format": "pt", "sshs_model_hash": "stale"}
    path = tmp_path / "a.safetensors"
    write_safetensors(path, tensors, entries, hashed=True)
    with safe_open(path, "np") as file:
        header = file.metadata()
    assert header == entries | sd_scripts_hashes(path)
    for name, tensor in safetensors.torch.load_file(path).items():
        np.testing.assert_array_equal(tensor.float().numpy(), tensors[name].astype(np.float32))
    assert lora_hash(path) == header["sshs_model_hash"][:12]
    assert path.read_bytes() == (write_safetensors(path, tensors, entries, hashed=True), path.read_bytes())[1]


def test_headers_name_the_base_model(tmp_path: Path):
    names = [
        names_of("Stable Diffusion 3", published["transformer"]).architecture
        for published in (SD3_MEDIUM, SD35_MEDIUM, SD35_LARGE)
    ]
    assert names == ["stable-diffusion-3-medium", "stable-diffusion-3-5-medium", "stable-diffusion-3-5-large"]
    assert base_hashes(str(tmp_path)) == base_hashes("owner/name") == {}
    content = np.random.default_rng(0).bytes(0x120000)
    (tmp_path / "base.safetensors").write_bytes(content)
    assert base_hashes(str(tmp_path / "base.safetensors")) == {
        "ss_sd_model_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
        "ss_new_sd_model_hash": hashlib.sha256(content).hexdigest(),
    }
