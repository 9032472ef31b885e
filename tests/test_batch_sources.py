"""What models and LoRAs are known by: what their files hold."""

import hashlib
from pathlib import Path

import pytest

from autolora_jax.batch.sources import Sources, file_sha256
from autolora_jax.batch.storage import Bucket, Folder, open_storage
from autolora_jax.demo import builtin
from autolora_jax.settings import ModelConfig
from autolora_jax.weights.errors import WeightsError

CHARACTER = "builtin:character"


def test_the_built_in_models_hash_stays_what_it_is():
    """It changes with its files alone: else pictures that users have would be drawn again."""
    model = Sources().model(ModelConfig())
    assert model.sha256 == "e00bf5a1b061dbcd29d48bc1a8d70c6d4a0dd8176af52a23fccce0a813a333ab"
    assert (model.name, *model.canvas[:4]) == ("builtin", 8, 1, 12, 8)


def test_a_lora_is_known_by_its_file():
    path = builtin(CHARACTER)
    assert path
    lora = Sources().lora(CHARACTER)
    assert lora.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (lora.name, len(lora.autov3)) == ("character", 12)
    assert Sources().embedding(CHARACTER).sha256 == lora.sha256


def test_bad_files_are_said(tmp_path: Path):
    with pytest.raises(WeightsError, match="does not exist"):
        Sources().lora(str(tmp_path / "none.safetensors"))
    with pytest.raises(WeightsError, match="can't be read"):
        file_sha256(tmp_path / "none")
    with pytest.raises(WeightsError, match="does not exist"):
        Sources().model(ModelConfig(str(tmp_path / "none")))


def test_the_hubs_cache_is_believed(tmp_path: Path):
    """Its files are links to blobs named by their hash: gigabytes need not be read."""
    name = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / name).write_bytes(b"weights, as far as this test goes")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / name)
    assert file_sha256(tmp_path / "model.safetensors") == name
    small = tmp_path / "blobs" / hashlib.sha1(b"config").hexdigest()  # git's hash, of its small files
    small.write_bytes(b"config")
    assert file_sha256(small) == hashlib.sha256(b"config").hexdigest()


def test_places_are_told_apart_by_their_names(tmp_path: Path):
    assert isinstance(open_storage(tmp_path), Folder)
    assert open_storage(f"file://{tmp_path}").where == str(tmp_path)
    assert isinstance(open_storage("memory://bucket/out"), Bucket)
