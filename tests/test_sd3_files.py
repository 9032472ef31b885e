"""SD3's files: single files with and without text encoders, encoders from elsewhere, 8-bit floats, conversion, info."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from autolora_jax.weights import WeightsError, convert_checkpoint, describe, open_checkpoint, published
from autolora_jax.weights.diffusers_folder import read_scheduler
from autolora_jax.weights.families import SD3
from autolora_jax.weights.files import open_tensors
from autolora_jax.weights.hub import LocalFolder
from autolora_jax.weights.single_file import read_single_file
from tests import reference_sd3
from tests.checkpoint_files import ROOT, key_list
from tests.hub_server import Hub
from tests.sd3_files import (
    COMPONENTS,
    FILES,
    alone,
    eight_bit,
    networks_of,
    single_file_tensors,
    state_dict,
    write,
    write_encoders,
    write_hollow,
    write_single_file,
)

CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"
PROJECTION = "text_projection/kernel"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SD3.5 saved by diffusers as a folder. Read-only."""
    folder = tmp_path_factory.mktemp("sd3") / "tiny"
    reference_sd3.tiny_sd3(folder, "sd3.5").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bare(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its denoiser and VAE as a single file, like sd3_medium.safetensors. Read-only."""
    return write_single_file(tmp_path_factory.mktemp("single") / "bare.safetensors", folder, ())


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """What the folder's components are, loaded."""
    checkpoint = open_checkpoint(folder)
    return {component: params_of(checkpoint, component) for component in COMPONENTS}


def params_of(checkpoint, component: str, dtype: str = "float32") -> dict[str, np.ndarray]:
    params = checkpoint.load(component, dtype)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == dtype for leaf in jax.tree.leaves(params))
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in flat}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], but: str = "") -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name != but:
            np.testing.assert_array_equal(ours[name], value, name)


# ---- names -----------------------------------------------------------------------------------------------------------

# File -> the networks that it is taken for, the encoders in it, its key list.
PUBLISHED = {
    "sd3_medium": (published.SD3_MEDIUM, (), "sd3-medium/single_file_sd3_medium"),
    "sd3_medium_incl_clips": (published.SD3_MEDIUM, CLIPS, "sd3-medium/single_file_sd3_medium_incl_clips"),
    "sd3_medium_incl_clips_t5xxlfp16": (
        published.SD3_MEDIUM,
        (*CLIPS, T5),
        "sd3-medium/single_file_sd3_medium_incl_clips_t5xxlfp16",
    ),
    "sd3.5_medium": (published.SD35_MEDIUM, (), "sd3.5-medium/single_file_mmdit"),
    "sd3.5_large": (published.SD35_LARGE, (), "sd3.5-large/single_file_mmdit"),
}


def published_shapes(facts: Path, name: str) -> dict[str, tuple[int, ...]]:
    """A single file's tensors. The lists of SD3.5 are of the denoiser alone; its VAE is SD3's."""
    medium = key_list(facts / "keys/sd3-medium/single_file_sd3_medium.txt")
    vae = {name: shape for name, shape in medium.items() if name.startswith("first_stage_model.")}
    return vae | key_list(facts / "keys" / f"{PUBLISHED[name][2]}.txt")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_tensor_of_single_files_has_its_place(facts, tmp_path, name):
    networks, encoders, _ = PUBLISHED[name]
    path = write_hollow(tmp_path / f"{name}.safetensors", published_shapes(facts, name))
    file, description = read_single_file(path), describe(path)
    assert file.layout.family == SD3 and not file.dropped
    assert {**file.networks, **file.absent} == networks
    assert file.networks.keys() == {*encoders, "transformer", "vae"}
    assert description.loads and description.kind == "Stable Diffusion 3, single file"
    dropped = {name for component in description.components.values() for name in component.dropped}
    assert dropped == ({"encoder.embed_tokens.weight"} if T5 in encoders else set())
    filled = {component: list(c.filled) for component, c in description.components.items() if c.filled}
    assert filled == ({"text_encoder": [PROJECTION]} if encoders else {})


def test_every_published_tensor_of_files_of_one_encoder_has_its_place(facts, tmp_path):
    path = write_hollow(tmp_path / "sd3_medium.safetensors", published_shapes(facts, "sd3_medium"))
    # The CLIP files are those of SDXL, bit for bit.
    lists = ("sdxl-base-1.0/text_encoder", "sdxl-base-1.0/text_encoder_2", "sd3-medium/t5xxl_fp16_single")
    for name, keys in zip(FILES.values(), lists, strict=True):
        write_hollow(tmp_path / name, key_list(facts / "keys" / f"{keys}.txt"))
    assert open_checkpoint(path, text_encoders=tmp_path).networks == published.SD3_MEDIUM


def test_a_single_file_has_the_published_schedule(facts, bare, folder):
    scheduler = open_checkpoint(bare, networks=networks_of(folder)).scheduler
    for model in ("sd3-medium", "sd3.5-medium", "sd3.5-large"):
        assert scheduler == read_scheduler(LocalFolder(facts / "configs" / model))


def test_diffusers_reads_the_tests_single_file_as_its_own_folder(folder):
    """So the single files that other tests write are what other programs understand, not just what we do."""
    from diffusers.loaders import single_file_utils as theirs

    tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in single_file_tensors(folder).items()}
    found = {
        "transformer": theirs.convert_sd3_transformer_checkpoint_to_diffusers(
            {k: v for k, v in tensors.items() if k.startswith("model.diffusion_model.")}
        ),
        "vae": theirs.convert_ldm_vae_checkpoint(
            dict(tensors), {"up_block_types": range(4), "down_block_types": range(4)}
        ),
        T5: theirs.convert_sd3_t5_checkpoint_to_diffusers(tensors),
    }
    assert found[T5].pop("encoder.embed_tokens.weight") is not None
    for component, converted in found.items():
        original = state_dict(folder, component)
        assert converted.keys() == original.keys()
        for name, value in original.items():
            np.testing.assert_array_equal(converted[name].numpy().reshape(value.shape), value, name)


@pytest.mark.parametrize("kind", reference_sd3.KINDS)
def test_a_single_file_and_its_folder_give_the_same_params(tmp_path, kind):
    reference_sd3.tiny_sd3(tmp_path, kind).save_pretrained(tmp_path)
    networks = networks_of(tmp_path)
    one = open_checkpoint(write_single_file(tmp_path / "one.safetensors", tmp_path), networks=networks)
    many = open_checkpoint(tmp_path)
    assert one.networks == many.networks and list(one.networks) == list(many.networks) == [*COMPONENTS]
    for component in COMPONENTS:
        but = PROJECTION if component == "text_encoder" else ""
        assert_same(params_of(one, component), params_of(many, component), but)
    np.testing.assert_array_equal(params_of(one, "text_encoder")[PROJECTION], np.eye(32))


def test_a_projection_that_is_there_is_taken(folder, whole, tmp_path):
    prefix = "text_encoders.clip_l.transformer."
    projection = {f"{prefix}text_projection.weight": state_dict(folder, "text_encoder")["text_projection.weight"]}
    path = write_single_file(tmp_path / "one.safetensors", folder, CLIPS, projection)
    one = open_checkpoint(path, networks=networks_of(folder))
    assert_same(params_of(one, "text_encoder"), whole["text_encoder"])


def test_no_other_leaf_is_filled_in(folder, tmp_path):
    """Neither another of CLIP-L, nor bigG's projection, nor CLIP-L's in a folder."""
    tensors = single_file_tensors(folder, CLIPS)
    for name in ("clip_l.transformer.text_model.final_layer_norm.bias", "clip_g.transformer.text_projection.weight"):
        part = {k: v for k, v in tensors.items() if k != f"text_encoders.{name}"}
        path = write(tmp_path / "part.safetensors", part)
        leaf = name.split("transformer.")[1].rpartition(".")[0].replace(".", "/")
        with pytest.raises(WeightsError, match=f"1 tensor missing: {leaf}"):
            open_checkpoint(path, networks=networks_of(folder))
    copied = Path(shutil.copytree(folder, tmp_path / "folder"))
    write(copied / "text_encoder" / "model.safetensors", alone(folder, "text_encoder"))
    with pytest.raises(WeightsError, match=f"1 tensor missing: {PROJECTION}"):
        open_checkpoint(copied)


def test_extra_tensors_of_real_single_files_are_left_out_with_a_reason(folder, tmp_path):
    extra = {
        "model.model_sampling.sigmas": np.zeros(1000, np.float32),
        "model_sampling.sigmas": np.zeros(1000, np.float32),
        "model_ema.decay": np.float32(1),
        "text_encoders.clip_l.logit_scale": np.float32(4.6),
        "text_encoders.t5xxl.logit_scale": np.float32(4.6),
    }
    path = write_single_file(tmp_path / "extra.safetensors", folder, (), extra)
    assert read_single_file(path, networks_of(folder)).dropped.keys() == extra.keys()
    write_single_file(path, folder, (), {"model.other": np.zeros(1, np.float32)})
    with pytest.raises(WeightsError, match=r"1 tensors of no component: model\.other"):
        read_single_file(path, networks_of(folder))


# ---- encoders from elsewhere -----------------------------------------------------------------------------------------


def test_what_a_file_leaves_out_comes_from_a_folder(folder, whole, bare):
    checkpoint = open_checkpoint(bare, networks=networks_of(folder), text_encoders=folder)
    assert checkpoint.networks == networks_of(folder)
    for component in FILES:
        assert_same(params_of(checkpoint, component), whole[component])
    assert checkpoint.tokenizers == open_checkpoint(folder).tokenizers


@pytest.mark.parametrize("place", ["clip", "models/text_encoders"])
def test_what_a_file_leaves_out_comes_from_files_of_one_encoder(folder, whole, bare, tmp_path, place):
    write_encoders(tmp_path / place, folder)
    given = tmp_path / place.removesuffix("text_encoders")
    checkpoint = open_checkpoint(bare, networks=networks_of(folder), text_encoders=given, tokenizer=folder)
    for component in FILES:
        but = PROJECTION if component == "text_encoder" else ""
        assert_same(params_of(checkpoint, component), whole[component], but)
    np.testing.assert_array_equal(params_of(checkpoint, "text_encoder")[PROJECTION], np.eye(32))
    assert [path.name for path in checkpoint.tokenizers.values()] == ["tokenizer", "tokenizer_2", "tokenizer_3"]


def test_t5_alone_can_be_added(folder, whole, tmp_path):
    path = write_single_file(tmp_path / "incl_clips.safetensors", folder, CLIPS)
    networks = networks_of(folder)
    assert T5 not in open_checkpoint(path, networks=networks).networks
    file = write_encoders(tmp_path / "beside", folder, [T5]) / FILES[T5]
    for place in (file, file.parent):
        checkpoint = open_checkpoint(path, networks=networks, text_encoders=place)
        assert list(checkpoint.networks) == [*COMPONENTS]
        assert_same(params_of(checkpoint, T5), whole[T5])
    write(file.with_name("t5xxl_fp8_e4m3fn.safetensors"), eight_bit(load_file(file)))
    both = open_checkpoint(path, networks=networks, text_encoders=file.parent)
    assert_same(params_of(both, T5), whole[T5])  # the exact one is preferred


def test_bad_encoders_are_refused_when_a_checkpoint_is_opened(folder, bare, tmp_path):
    networks = networks_of(folder)
    beside = write_encoders(tmp_path / "beside", folder)
    write(beside / FILES["text_encoder_2"], alone(folder, "text_encoder"))
    with pytest.raises(WeightsError, match=r"beside/clip_g.safetensors does not fit this network"):
        open_checkpoint(bare, networks=networks, text_encoders=beside)
    (beside / FILES["text_encoder_2"]).unlink()
    message = (
        r"beside has no text_encoder_2 \(text_encoder_2/ or clip_g.safetensors\); give a folder or hub id with all"
    )
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(bare, networks=networks, text_encoders=beside)
    (empty := tmp_path / "empty").mkdir()
    clips = write_single_file(tmp_path / "incl_clips.safetensors", folder, CLIPS)
    message = (
        r"empty has no text_encoder_3 \(text_encoder_3/ or t5xxl_fp16.safetensors or t5xxl_fp8_e4m3fn.safetensors\)"
    )
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(clips, networks=networks, text_encoders=empty)
    with pytest.raises(WeightsError, match="nowhere is not on this machine"):
        open_checkpoint(bare, networks=networks, text_encoders=tmp_path.name + "/nowhere")


def test_encoders_that_nobody_needs_are_refused(folder, tmp_path):
    path = write_single_file(tmp_path / "whole.safetensors", folder)
    with pytest.raises(WeightsError, match="has all text encoders of Stable Diffusion 3; leave out text_encoders"):
        open_checkpoint(path, networks=networks_of(folder), text_encoders=folder)
    with pytest.raises(WeightsError, match="is a folder, which has its own text encoders; leave out text_encoders"):
        open_checkpoint(folder, text_encoders=folder)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub({SD3.repository: folder, "someone/encoders": folder})
    with served.as_the_hub(monkeypatch):
        yield served


def test_clip_comes_from_the_hub_when_it_is_loaded(hub, folder, whole, bare, tmp_path):
    checkpoint = open_checkpoint(bare, networks=networks_of(folder), cache_dir=tmp_path / "cache")
    checkpoint.check()
    assert hub.downloads == []
    assert list(checkpoint.networks) == [*CLIPS, "transformer", "vae"]
    for component in CLIPS:
        assert_same(params_of(checkpoint, component), whole[component])
    assert hub.downloads == [f"{component}/model.safetensors" for component in CLIPS]
    hub.downloads.clear()
    assert [path.name for path in checkpoint.tokenizers.values()] == ["tokenizer", "tokenizer_2"]
    assert all(name.startswith("tokenizer") for name in hub.downloads)


def test_t5_comes_from_the_hub_when_it_is_asked_for(hub, folder, whole, bare, tmp_path):
    given = {"text_encoders": "someone/encoders", "cache_dir": tmp_path / "cache"}
    checkpoint = open_checkpoint(bare, networks=networks_of(folder), **given)
    assert checkpoint.networks == networks_of(folder)
    assert not any("safetensors" in name for name in hub.downloads)
    assert_same(params_of(checkpoint, T5), whole[T5])


def test_without_a_hub_it_is_said_what_to_give(folder, bare, tmp_path):
    checkpoint = open_checkpoint(bare, networks=networks_of(folder), cache_dir=tmp_path / "cache")
    message = r"leaves out its text_encoder_2; give text_encoders= \(--text-encoders-from\).*HF_HUB_OFFLINE is set"
    with pytest.raises(WeightsError, match=message):
        checkpoint.load("text_encoder_2")
    with pytest.raises(WeightsError, match=r"a single file holds no tokenizers; give tokenizer=.*HF_HUB_OFFLINE"):
        _ = checkpoint.tokenizers


# ---- other sizes and kinds -------------------------------------------------------------------------------------------


def test_another_size_needs_its_configs(bare):
    message = (
        r"denoiser of 3 blocks, 32 wide, with norms of q and k; known are SD3 Medium \(24 blocks, 1536 wide, without"
    )
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(bare)
    assert not describe(bare).loads


def test_a_denoiser_alone_is_refused(folder, tmp_path):
    tensors = {k: v for k, v in single_file_tensors(folder, ()).items() if k.startswith("model.")}
    path = write(tmp_path / "denoiser.safetensors", tensors)
    with pytest.raises(WeightsError, match="not a whole Stable Diffusion 3 checkpoint:\n  no vae"):
        open_checkpoint(path)
    bare = {k.removeprefix("model.diffusion_model."): v for k, v in tensors.items()}
    with pytest.raises(WeightsError, match=r"looks like a bare denoiser, .*give a checkpoint that holds its VAE, too"):
        open_checkpoint(write(path, bare))


@pytest.mark.parametrize("component", FILES)
def test_a_text_encoder_alone_is_described(folder, tmp_path, component):
    path = write_encoders(tmp_path / "beside", folder, [component]) / FILES[component]
    description = describe(path)
    assert description.kind == "a text encoder" and "--text-encoders-from" in str(description)


# ---- 8-bit floats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_8_bit_float_is_read_exactly(tmp_path, kind, dtype):
    values = np.arange(256, dtype=np.uint8).view(kind)
    values = values[np.isfinite(values.astype(np.float32))]
    save_file({"other": np.zeros(3, np.float32), "a": values.reshape(2, -1)}, tmp_path / "a.safetensors")
    with open_tensors(tmp_path / "a.safetensors") as files:
        files.require_floats(["a"])
        read = files.read("a")
    np.testing.assert_array_equal(read.astype(dtype).astype(np.float64), values.reshape(2, -1).astype(np.float64))


def test_t5_of_8_bits_in_a_single_file(folder, tmp_path):
    tensors = single_file_tensors(folder)
    small = {k: v for k, v in tensors.items() if ".t5xxl." in k}
    path = write(tmp_path / "fp8.safetensors", {**tensors, **eight_bit(small)})
    networks = networks_of(folder)
    ours = params_of(open_checkpoint(path, networks=networks), T5)
    rounded = {k: v.astype(np.float32) for k, v in eight_bit(small).items()}
    theirs = open_checkpoint(write(tmp_path / "f32.safetensors", {**tensors, **rounded}), networks=networks)
    assert_same(ours, params_of(theirs, T5))


def test_factors_of_8_bit_floats_are_multiplied_in(folder, bare, tmp_path):
    file = write_encoders(tmp_path / "beside", folder, CLIPS) / "t5xxl_fp8_e4m3fn.safetensors"
    tensors = eight_bit(alone(folder, T5))
    beside = {"encoder.block.0.layer.0.SelfAttention.q.scale_weight": np.full((), 2, np.float32)}

    def read():
        with open_checkpoint(bare, networks=networks_of(folder), text_encoders=file.parent).leaves(T5) as leaves:
            return leaves.read("encoder/block_0/layer_0/SelfAttention/q/kernel").astype(np.float32)

    write(file, {**tensors, **beside, "scaled_fp8": np.zeros(2, ml_dtypes.float8_e4m3fn)})
    doubled = read()
    write(file, tensors)
    assert np.array_equal(doubled, 2 * read())


def test_an_8_bit_nan_is_named(tmp_path):
    save_file({"a": np.array([1, np.nan], ml_dtypes.float8_e4m3fn)}, tmp_path / "a.safetensors")
    with open_tensors(tmp_path / "a.safetensors") as files, pytest.raises(WeightsError, match=r"a holds nan at \[1\]"):
        files.read("a")


# ---- conversion, info ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t5", [True, False], ids=["with T5", "without T5"])
def test_a_converted_folder_is_the_same_checkpoint(folder, tmp_path, t5):
    encoders = [*CLIPS, T5] if t5 else CLIPS
    path = write_single_file(tmp_path / "one.safetensors", folder, encoders)
    given = {"networks": networks_of(folder), "tokenizer": folder}
    out = convert_checkpoint(path, tmp_path / "out", "float32", **given)
    ours, theirs = open_checkpoint(out), open_checkpoint(path, **given)
    assert (ours.family, ours.networks, ours.scheduler) == (theirs.family, theirs.networks, theirs.scheduler)
    assert ours.force_zeros_for_empty_prompt == theirs.force_zeros_for_empty_prompt
    for component in ours.networks:
        assert_same(params_of(ours, component), params_of(theirs, component))
    index = json.loads((out / "model_index.json").read_text())
    assert (index[T5] == index["tokenizer_3"] == [None, None]) is not t5
    assert [path.name for path in ours.tokenizers.values()] == ["tokenizer", "tokenizer_2", "tokenizer_3"][: 2 + t5]
    description = describe(out)
    assert description.loads and description.kind == "Stable Diffusion 3, converted folder (Orbax)"
    assert description.components.keys() == ours.networks.keys()


def test_info_says_what_is_not_in_a_file(facts, folder, tmp_path):
    assert describe(folder).kind == "Stable Diffusion 3, diffusers folder"
    path = write_hollow(tmp_path / "clips.safetensors", published_shapes(facts, "sd3_medium_incl_clips"))
    said = " ".join(str(describe(path)).split())
    assert "not in it: text_projection/kernel (the identity: SD3 takes this vector unprojected)" in said
    assert "not in it text_encoder_3 (optional; give it with --text-encoders-from)" in said
    assert "scheduler flow_euler, flow_prediction" in said
    path = write_hollow(path, published_shapes(facts, "sd3_medium"))
    assert "text_encoder, text_encoder_2 (give it with --text-encoders-from, or it is fetched from stabilityai/" in str(
        describe(path)
    )


def test_the_program_converts(folder, tmp_path):
    command = [sys.executable, "convert/sd3.py", str(folder), str(tmp_path / "out"), "--dtype", "float16"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert open_checkpoint(tmp_path / "out").networks == networks_of(folder)
