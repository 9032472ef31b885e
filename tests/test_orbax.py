"""The converted form: bitwise the same, placed as asked, there whole or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autolora_jax.config import ConfigError
from autolora_jax.weights import WeightsError, convert_checkpoint, describe, open_checkpoint, orbax_folder
from autolora_jax.weights.rules import flat_shapes
from autolora_jax.weights.verify import verify
from tests.checkpoint_files import COMPONENTS, ROOT, networks_of, write_single_file


@pytest.fixture(scope="module")
def converted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny folder, converted in float32. Read-only: copy it to change it."""
    return convert_checkpoint(tiny_folder, tmp_path_factory.mktemp("converted") / "tiny", "float32")


def assert_same_trees(ours, theirs) -> None:
    assert flat_shapes(ours) == flat_shapes(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_converted_folder_is_the_same_checkpoint(tiny_folder, converted):
    ours, theirs = open_checkpoint(converted), open_checkpoint(tiny_folder)
    assert ours.networks == theirs.networks
    assert ours.scheduler == theirs.scheduler
    assert ours.force_zeros_for_empty_prompt == theirs.force_zeros_for_empty_prompt
    for mine, original in zip(ours.tokenizers.values(), theirs.tokenizers.values(), strict=True):
        assert (mine / "vocab.json").read_bytes() == (original / "vocab.json").read_bytes()
    for component in COMPONENTS:
        assert_same_trees(ours.load(component), theirs.load(component))


def test_the_dtype_is_chosen_at_conversion_and_at_loading(tiny_folder, tmp_path):
    dtype = "bfloat16"
    out = convert_checkpoint(tiny_folder, tmp_path / "out", dtype)
    ours, theirs = open_checkpoint(out), open_checkpoint(tiny_folder)
    assert_same_trees(ours.load("unet", dtype), theirs.load("unet", dtype))
    stored = describe(out).components
    assert stored["unet"].dtypes.keys() == {dtype}
    assert stored["vae"].dtypes.keys() == {"float32"}  # force_upcast: it overflows in half precision
    assert_same_trees(ours.load("vae"), theirs.load("vae"))
    wide = jax.tree.map(lambda x: x.astype("float32"), theirs.load("unet", dtype))
    assert_same_trees(ours.load("unet", "float32"), wide)


def test_a_single_file_converts_to_what_its_folder_converts_to(tiny_folder, tmp_path, converted):
    file = write_single_file(tmp_path / "model.safetensors", tiny_folder)
    networks = networks_of(tiny_folder)
    out = convert_checkpoint(file, tmp_path / "out", "float32", tokenizer=tiny_folder, networks=networks)
    ours, theirs = open_checkpoint(out), open_checkpoint(converted)
    assert ours.networks == theirs.networks
    for component in COMPONENTS:
        assert_same_trees(ours.load(component), theirs.load(component))
    assert json.loads((out / orbax_folder.MANIFEST).read_text())["source"] == str(file)


def test_leaves_are_restored_onto_their_devices(converted):
    mesh = Mesh(np.array(jax.devices()), ("model",))
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "model"))

    def by_shape(path: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
        return split if path.endswith("/kernel") and len(shape) == 2 and shape[1] % 8 == 0 else everywhere

    checkpoint = open_checkpoint(converted)
    plain = checkpoint.load("text_encoder_2", "bfloat16")
    assert {leaf.sharding.device_set == {jax.devices()[0]} for leaf in jax.tree.leaves(plain)} == {True}
    for placement in (everywhere, by_shape):
        placed = checkpoint.load("text_encoder_2", "bfloat16", placement)
        assert_same_trees(placed, plain)
        for path, leaf in jax.tree.leaves_with_path(placed):
            name = "/".join(key.key for key in path)
            assert leaf.sharding == (placement(name, leaf.shape) if callable(placement) else placement)
    kernel = placed["text_projection"]["kernel"]
    assert [s.data.shape for s in kernel.addressable_shards] == [(48, 6)] * 8


def test_the_manifest_says_where_it_is_from(tiny_folder, converted):
    manifest = orbax_folder.read_manifest(converted)
    size = (tiny_folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert manifest["source"] == str(tiny_folder)
    assert manifest["source_files"]["unet"] == {"diffusion_pytorch_model.safetensors": size}
    assert manifest["dtypes"] == dict.fromkeys(COMPONENTS, "float32")
    assert {f"{c}/config.json" for c in COMPONENTS} <= manifest["files"].keys()


# ---- all or nothing --------------------------------------------------------------------------------------------------


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_full_disk_leaves_nothing(tiny_folder, tmp_path, monkeypatch, component):
    write = orbax_folder.write_component

    def fails(path: Path, params) -> None:
        if path.name == component:
            raise OSError(28, "No space left on device")
        write(path, params)

    monkeypatch.setattr(orbax_folder, "write_component", fails)
    with pytest.raises(WeightsError, match=r"out can't be written: No space left on device; nothing is left of it"):
        convert_checkpoint(tiny_folder, tmp_path / "out")
    assert left_in(tmp_path) == []


def test_a_disk_that_is_too_small_is_said_so_first(tiny_folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(
        WeightsError, match=rf"out needs up to 0\.0 GB, {tmp_path} has 0\.0 GB left; choose another disk"
    ):
        convert_checkpoint(tiny_folder, tmp_path / "out")
    assert left_in(tmp_path) == []


def test_what_orbax_raises_is_said_plainly(tiny_folder, tmp_path, monkeypatch):
    class Fails:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def save(self, *_):
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device\n[source locations]")

    monkeypatch.setattr(orbax_folder, "_writer", Fails)
    with pytest.raises(WeightsError, match="can't be written: RESOURCE_EXHAUSTED: No space left on device; nothing"):
        convert_checkpoint(tiny_folder, tmp_path / "out")
    assert left_in(tmp_path) == []


def test_an_unwritable_target_is_said_so(tiny_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="out can't be written: Not a directory"):
        convert_checkpoint(tiny_folder, tmp_path / "file" / "out")
    with pytest.raises(WeightsError, match="file already exists; remove it or choose another name"):
        convert_checkpoint(tiny_folder, tmp_path / "file")
    with pytest.raises(WeightsError, match=r"already exists; remove it or choose another name"):
        convert_checkpoint(tiny_folder, tiny_folder)
    assert left_in(tmp_path) == ["file"]


@pytest.mark.parametrize("source", ["nothing", "bad.safetensors"])
def test_a_bad_source_leaves_nothing(tmp_path, source):
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(WeightsError, match=r"nothing does not exist|is a pickle"):
        convert_checkpoint(tmp_path / source, tmp_path / "out")
    assert left_in(tmp_path) == ["bad.safetensors"]


def test_only_known_dtypes_are_written(tiny_folder, tmp_path):
    with pytest.raises(WeightsError, match="dtype='int8': use one of bfloat16, float32, float16"):
        convert_checkpoint(tiny_folder, tmp_path / "out", "int8")


def test_a_killed_conversion_leaves_nothing_that_loads(tiny_folder, tmp_path):
    code = "import sys; from autolora_jax.weights import convert_checkpoint as c; c(sys.argv[1], sys.argv[2])"
    command = [sys.executable, "-c", code, str(tiny_folder), str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out.part-*/text_encoder_2/orbax*")):  # in the middle of it
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [part] = tmp_path.iterdir()
    assert part.name.startswith("out.part-")
    with pytest.raises((WeightsError, ConfigError)):
        open_checkpoint(part)


# ---- damaged folders -------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "copy"))


def largest(folder: Path) -> Path:
    return max((p for p in (folder / "unet" / "orbax").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_missing_and_truncated_files_are_named(copy):
    path = largest(copy)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        WeightsError, match=rf"{path.name} \(\d+ bytes, not \d+\); the folder is damaged, convert or copy"
    ):
        open_checkpoint(copy)
    assert not describe(copy).loads
    path.unlink()
    with pytest.raises(WeightsError, match=rf"{path.name} \(None bytes, not \d+\)"):
        open_checkpoint(copy)


def test_a_flipped_byte_is_found_and_named(copy):
    whole = verify(describe(copy))
    assert whole.loads
    assert whole.verified == (
        f"{len(whole_manifest(copy))} of {len(whole_manifest(copy))} files have the SHA-256 that autolora.json gives",
    )
    told: list[tuple[int, int]] = []
    for path in (largest(copy), copy / "unet" / "config.json", copy / "tokenizer" / "merges.txt"):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        found = verify(describe(copy), lambda done, total: told.append((done, total)))
        assert not found.loads
        assert [str(path) in problem for problem in found.problems].count(True) >= 1
        assert "has another SHA-256 than autolora.json gives" in str(found)
        assert told[-1][0] == told[-1][1] > 0
        path.write_bytes(content)


def whole_manifest(folder: Path) -> dict[str, str]:
    return orbax_folder.read_manifest(folder)["sha256"]


def test_a_folder_of_before_there_were_checksums_is_read(copy):
    path = copy / orbax_folder.MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    path.write_text(json.dumps(manifest))
    found = verify(describe(copy))
    assert found.loads
    assert "no checksums are in autolora.json: convert again to have them; values were read" in str(found)


def test_what_orbax_can_not_read_is_one_error(copy):
    path = copy / "unet" / "orbax" / "_METADATA"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(WeightsError, match=r"unet/orbax can't be read: .*; convert the checkpoint again"):
        open_checkpoint(copy)


def test_another_tree_is_refused(copy):
    config = copy / "text_encoder" / "config.json"
    size = config.stat().st_size
    config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    assert config.stat().st_size == size
    with pytest.raises(
        WeightsError, match=r"text_encoder/orbax does not fit this network:\n  16 arrays missing: text_model"
    ):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=2), "version 2; 'autolora-jax checkpoint' version 1 is expected"),
        (lambda m: m.update(format="?"), r"has format '\?'"),
        (lambda m: m.update(files=None), "lists no files or dtypes"),
        (lambda m: m["dtypes"].pop("vae"), "has no vae"),
    ],
)
def test_other_manifests_are_refused(copy, change, message):
    path = copy / orbax_folder.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(copy)


# ---- the program -----------------------------------------------------------------------------------------------------


def test_the_program_converts(tiny_folder, tmp_path):
    command = [sys.executable, "convert/sdxl.py", str(tiny_folder), str(tmp_path / "out"), "--dtype", "float32"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert open_checkpoint(tmp_path / "out").networks == open_checkpoint(tiny_folder).networks
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.returncode == 1
    assert "already exists" in again.stderr
    assert "Traceback" not in again.stderr
