"""Checkpoints from a hub: what is fetched and when, and what is said when it can't be. A loopback server is the hub."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from autolora_jax.weights import WeightsError, open_checkpoint
from autolora_jax.weights.families import SDXL
from autolora_jax.weights.hub import is_hub_id, split_hub_id
from tests.checkpoint_files import COMPONENTS, WEIGHTS, networks_of, write_single_file
from tests.hub_server import COMMIT, Hub

CONFIGS = ["model_index.json", *(f"{c}/config.json" for c in COMPONENTS), "scheduler/scheduler_config.json"]


@pytest.fixture
def repository(tiny_folder: Path, tmp_path: Path) -> Path:
    """A repository as they are published: each weights file in several formats, and pictures."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "repository"))
    for component in COMPONENTS:
        path = folder / component / f"{WEIGHTS[component]}.safetensors"
        half = {name: value.astype(np.float16) for name, value in load_file(path).items()}
        save_file(half, path.with_suffix(".fp16.safetensors"))
        path.with_suffix(".bin").write_bytes(b"a pickle")
        path.with_suffix(".onnx").write_bytes(b"large")
    (folder / "README.md").write_text("# tiny")
    (folder / "example.png").write_bytes(b"picture")
    return folder


@pytest.fixture
def hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub({"someone/tiny": repository})
    with served.as_the_hub(monkeypatch):
        yield served


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_only_the_files_needed_are_fetched_when_they_are_needed(hub, cache):
    checkpoint = open_checkpoint("someone/tiny", cache_dir=cache)
    assert sorted(hub.downloads) == sorted(CONFIGS)
    for component in ("vae", "text_encoder_2"):
        hub.downloads.clear()
        checkpoint.load(component)
        assert hub.downloads == [f"{component}/{WEIGHTS[component]}.safetensors"]
    hub.downloads.clear()
    first, second = checkpoint.tokenizers.values()
    assert all(name.startswith("tokenizer") for name in hub.downloads)
    assert (first / "vocab.json").exists()
    assert (second / "merges.txt").exists()
    hub.downloads.clear()
    open_checkpoint("someone/tiny", cache_dir=cache).load("vae")
    assert hub.downloads == []  # all cached


def test_the_weights_are_those_of_the_folder(hub, cache, repository):
    ours = open_checkpoint("someone/tiny", cache_dir=cache).load("unet")["conv_in"]["kernel"]
    theirs = open_checkpoint(repository).load("unet")["conv_in"]["kernel"]
    np.testing.assert_array_equal(ours, theirs)


def test_the_fp16_variant_is_fetched_when_asked_for(hub, cache):
    checkpoint = open_checkpoint("someone/tiny", variant="fp16", cache_dir=cache)
    hub.downloads.clear()
    for component in COMPONENTS:
        checkpoint.load(component, "bfloat16")
    assert hub.downloads == [f"{c}/{WEIGHTS[c]}.fp16.safetensors" for c in COMPONENTS]


def test_shards_are_fetched_with_their_index(hub, cache, repository, tiny_folder):
    from tests.test_checkpoint import shard

    shard(repository, "unet")
    expected = open_checkpoint(tiny_folder).load("unet")["conv_in"]["kernel"]
    checkpoint = open_checkpoint("someone/tiny", cache_dir=cache)
    hub.downloads.clear()
    np.testing.assert_array_equal(checkpoint.load("unet")["conv_in"]["kernel"], expected)
    stem = "unet/diffusion_pytorch_model"
    shards = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert hub.downloads == [f"{stem}.safetensors.index.json", *shards]


def test_all_files_come_from_one_commit(hub, cache):
    checkpoint = open_checkpoint("someone/tiny", cache_dir=cache, revision="main")
    hub.commits.append("f" * 40)  # somebody uploads
    checkpoint.load("vae")
    snapshots = cache / "models--someone--tiny" / "snapshots"
    assert [p.name for p in snapshots.iterdir()] == [COMMIT]
    open_checkpoint("someone/tiny", cache_dir=cache).load("vae")
    assert sorted(p.name for p in snapshots.iterdir()) == [COMMIT, "f" * 40]


def test_a_single_file_in_a_repository(hub, cache, repository, tiny_folder):
    write_single_file(repository / "tiny.safetensors", tiny_folder)
    hub.repositories[SDXL.repository] = tiny_folder
    networks = networks_of(tiny_folder)
    checkpoint = open_checkpoint("someone/tiny/tiny.safetensors", cache_dir=cache, networks=networks)
    assert hub.downloads == ["tiny.safetensors"]
    hub.downloads.clear()
    names = {path.name for path in checkpoint.tokenizers.values()}  # SDXL base's, as the file holds none
    assert names == {"tokenizer", "tokenizer_2"}
    assert hub.downloads
    assert all(name.startswith("tokenizer") for name in hub.downloads)
    with pytest.raises(WeightsError, match=r"has no other\.safetensors; it has .*tiny\.safetensors"):
        open_checkpoint("someone/tiny/other.safetensors", cache_dir=cache)


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        (
            "someone/else",
            None,
            "someone/else is neither a path on this machine nor a repository of the hub that you may read",
        ),
        ("someone/tiny", "v9", "someone/tiny at v9 does not exist; leave out the revision or choose another"),
        ("someone/.tiny..", None, "does not exist|is neither a path on this machine nor a hub id"),
    ],
)
def test_what_the_hub_lacks_is_said(hub, cache, source, revision, message):
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(source, revision=revision, cache_dir=cache)


def test_a_gated_repository_is_said_to_be_one(hub, cache):
    hub.gated.add("someone/tiny")
    with pytest.raises(WeightsError, match=r"wants its terms accepted: .*/someone/tiny, then run `hf auth login`"):
        open_checkpoint("someone/tiny", cache_dir=cache)


def test_pickles_are_not_fetched(hub, cache, repository):
    for path in (repository / "unet").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(WeightsError, match=r"unet/ has no safetensors weights, only .*\.bin.*; pickles"):
        open_checkpoint("someone/tiny", cache_dir=cache)
    assert not any(name.endswith(".bin") for name in hub.downloads)


def test_the_cache_serves_without_a_hub(hub, cache, monkeypatch):
    loaded = open_checkpoint("someone/tiny", cache_dir=cache).load("text_encoder")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        WeightsError, match=r"cached copy of .*someone/tiny; HF_HUB_OFFLINE is set.* lacks the folders tok"
    ):
        open_checkpoint("someone/tiny", cache_dir=cache)  # only some of its files have been fetched
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    whole = open_checkpoint("someone/tiny", cache_dir=cache)
    for component in COMPONENTS:
        whole.load(component)
    _ = whole.tokenizers
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.downloads.clear()
    again = open_checkpoint("someone/tiny", cache_dir=cache).load("text_encoder")
    np.testing.assert_array_equal(
        again["text_model"]["final_layer_norm"]["bias"], loaded["text_model"]["final_layer_norm"]["bias"]
    )
    assert hub.downloads == []


def test_being_offline_is_said_plainly(hub, cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        WeightsError, match="someone/tiny is not on this machine and HF_HUB_OFFLINE is set; connect, or"
    ):
        open_checkpoint("someone/tiny", cache_dir=cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    with pytest.raises(WeightsError, match=r"someone/tiny is not on this machine and the hub can't be reached \("):
        open_checkpoint("someone/tiny", cache_dir=cache)


def test_losing_the_hub_on_the_way_is_said(repository, cache, monkeypatch):
    served = Hub({"someone/tiny": repository})
    with served.as_the_hub(monkeypatch):
        checkpoint = open_checkpoint("someone/tiny", cache_dir=cache)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits longer before every new attempt
    with pytest.raises(WeightsError, match=r"unet/.* of hub repository someone/tiny could not be fetched"):
        checkpoint.load("unet")


def test_hub_ids():
    for source in ("a/b", "stabilityai/stable-diffusion-xl-base-1.0", "a/b/c.safetensors", "a/b/c/d.safetensors"):
        assert is_hub_id(source)
    for source in (
        "a",
        "./a/b",
        "../a",
        "/a/b",
        "a/b/c",
        "folder/file.safetensors",
        "a/b/c.ckpt",
        "https://a/b",
        "a b/c",
    ):
        assert not is_hub_id(source)
    assert split_hub_id("a/b") == ("a/b", None)
    assert split_hub_id("a/b/c/d.safetensors") == ("a/b", "c/d.safetensors")
