"""Networks as transformers saves them: whole, in shards, from a hub, and folders that hold something else."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import Dinov2Config as ReferenceConfig
from transformers import Dinov2Model as Reference

from autolora_jax.config import CLIPConfig, ConfigError, Dinov2Config
from autolora_jax.models.networks import shapes_of
from autolora_jax.weights import WeightsError, transformers_folder
from autolora_jax.weights.rules import convert
from autolora_jax.weights.tables import DINOV2
from autolora_jax.weights.transformers_folder import open_pretrained
from tests.hub_server import Hub
from tests.reference import randomize
from tests.test_dinov2 import SIZES, published
from tests.test_features import save_clip


@pytest.fixture(scope="module")
def module() -> Reference:
    return randomize(Reference(ReferenceConfig(**SIZES, use_swiglu_ffn=True)), 3)


@pytest.fixture
def folder(module: Reference, tmp_path: Path) -> Path:
    module.save_pretrained(tmp_path / "dinov2")
    (tmp_path / "dinov2" / "pytorch_model.bin").write_bytes(b"a pickle")
    return tmp_path / "dinov2"


def same(module: Reference, params: dict) -> bool:
    tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    wanted = convert(tensors, DINOV2, shapes_of(Dinov2Config.from_dict(module.config.to_dict())))
    return jax.tree.all(jax.tree.map(np.array_equal, params, wanted))


def test_what_transformers_saves_is_read(folder: Path, module: Reference):
    opened = open_pretrained(folder)
    assert isinstance(opened.config, Dinov2Config) and opened.config.use_swiglu_ffn
    assert same(module, opened.load())
    half = jax.tree.leaves(opened.load("bfloat16"))
    assert {leaf.dtype.name for leaf in half} == {"bfloat16"}


def test_published_names_and_shards_are_read(folder: Path, module: Reference):
    tensors = published(module)
    files = {f"model-{i + 1:05}-of-00002.safetensors": dict(list(tensors.items())[i::2]) for i in range(2)}
    for file, part in files.items():
        save_file({name: np.ascontiguousarray(x) for name, x in part.items()}, folder / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert same(module, open_pretrained(folder).load())
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"names model-00002-of-00002.safetensors, which .* does not hold"):
        open_pretrained(folder)


def test_a_hub_is_asked_for_what_is_needed(
    folder: Path, module: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub = Hub({"facebook/dinov2-tiny": folder})
    with hub.as_the_hub(monkeypatch):
        opened = open_pretrained("facebook/dinov2-tiny", cache_dir=tmp_path / "cache")
        assert hub.downloads == ["config.json"]
        assert same(module, opened.load())
        assert hub.downloads == ["config.json", "model.safetensors"]
        assert opened.fingerprint() == open_pretrained(folder).fingerprint()
        with pytest.raises(WeightsError, match="nobody/nothing is neither a path on this machine nor a repository"):
            open_pretrained("nobody/nothing", cache_dir=tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(module, open_pretrained("facebook/dinov2-tiny", cache_dir=tmp_path / "cache").load())


def test_a_clip_has_its_tokenizer(tmp_path: Path):
    save_clip(tmp_path)
    opened = open_pretrained(tmp_path)
    assert isinstance(opened.config, CLIPConfig)
    assert opened.tokenizer() == tmp_path
    for name in ("tokenizer.json", "vocab.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(WeightsError, match=r"has no tokenizer\.json, nor vocab\.json with merges\.txt"):
        opened.tokenizer()


def test_a_fingerprint_is_of_config_and_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformers_folder, "SAMPLES", 8)  # as of a large file: a small part of it is looked at
    monkeypatch.setattr(transformers_folder, "SAMPLE_BYTES", 64)
    before = open_pretrained(folder).fingerprint()
    assert open_pretrained(Path(shutil.copytree(folder, tmp_path / "copy"))).fingerprint() == before
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    assert open_pretrained(folder).fingerprint() != before
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    save_file({name: x * np.float32(1.001) for name, x in tensors.items()}, folder / "model.safetensors")
    assert open_pretrained(folder).fingerprint() != before


def test_folders_that_hold_something_else(folder: Path, tmp_path: Path):
    def says(said: str, error: type[ValueError] = WeightsError) -> None:
        with pytest.raises(error, match=said):
            open_pretrained(folder)

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    says("holds a network of the type 'vit'; known are dinov2, clip")
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    says(r"model\.safetensors does not fit this network")
    (folder / "config.json").write_text(json.dumps({**config, "qkv_bias": False}))
    says("qkv_bias = False is not supported", ConfigError)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    says("dinov2 has no safetensors weights, only pytorch_model.bin; pickles .* are never opened")
    (folder / "config.json").unlink()
    says("has no config.json; give a folder that holds config.json and model.safetensors")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a file; give the folder that holds it"):
        open_pretrained(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"does not exist; give a folder with config\.json, or a hub id"):
        open_pretrained(tmp_path / "none")
