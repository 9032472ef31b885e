"""Bad files: each gives one clear error, quickly, without being executed and without eating memory."""

import hashlib
import json
import pickle
import re
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from autolora_jax.cli.info import run
from autolora_jax.models.networks import shapes_of
from autolora_jax.settings.programs.info import Info
from autolora_jax.weights import WeightsError, describe, open_checkpoint
from autolora_jax.weights.files import kind_of, open_tensors
from autolora_jax.weights.tokenizer_files import check_tokenizer
from autolora_jax.weights.verify import verify
from tests.checkpoint_files import networks_of, single_file_tensors, write_single_file

SECONDS = 4.0
MEBIBYTES = 64


def header(entries: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), offsets: tuple[int, int] = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = header({"a": entry()}, b"\0" * 8)
A_AND_B = {"a": entry(), "b": entry(offsets=(4, 12))}
TWICE = json.dumps({"a": entry()})[:-1].encode() + b', "a": ' + json.dumps(entry(offsets=(8, 16))).encode() + b"}"

# name -> (content, what the error must say)
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty; download it again"),
    "a few bytes": (GOOD[:5], "not a safetensors file; download it again"),
    "truncated in its header": (GOOD[:40], "is broken .* its 40 bytes may be an incomplete download"),
    "truncated in its data": (GOOD[:-3], "is broken .*may be an incomplete download: download it again"),
    "too long": (GOOD + b"more", "is broken"),
    "absurd header length": (header({"a": entry()}, length=1 << 62), "is broken .*header"),
    "large header length": (header({"a": entry()}, length=99_000_000), "is broken .*header"),
    "broken JSON": (header(b'{"a": nonsense}'), "is broken .*JSON"),
    "no text": (header(b'{"\xff": 1}'), "is broken .*UTF-8"),
    "endless nesting": (header(b'{"a":' * 100_000), "is broken"),
    "overlapping tensors": (header(A_AND_B, b"\0" * 12), "is broken .*offset"),
    "offsets beyond the end": (header({"a": entry(offsets=(0, 80))}, b"\0" * 8), "is broken .*offset"),
    "a hole": (header({"a": entry(offsets=(8, 16))}, b"\0" * 16), "is broken .*offset"),
    "a name twice": (header(TWICE, b"\0" * 16), "is broken"),
    "shape beyond its data": (header({"a": entry(shape=(1 << 40, 1 << 30))}, b"\0" * 8), "is broken"),
    "negative shape": (header({"a": entry(shape=(-2,))}, b"\0" * 8), "is broken"),
    "unknown dtype": (header({"a": entry(dtype="X7")}, b"\0" * 8), "is broken .*X7"),
    "web page": (b"<!DOCTYPE html><html>Sign in</html>", "it is a web page, not weights"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run `git lfs pull`"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 64, "GGUF files"),
    "noise": (bytes(range(100, 200)), "it is not a safetensors file"),
}


@pytest.fixture(autouse=True)
def _warm(tiny_folder):
    """Tracing the tiny networks is no part of what a bad file costs."""
    for config in networks_of(tiny_folder).values():
        shapes_of(config)


def refused(run: Callable[[], object], message: str) -> str:
    """Runs something that must fail with one WeightsError, soon and in little memory."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=message) as e:
        run()
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024
    assert e.value.__cause__ is None
    assert len(str(e.value)) < 1000
    return str(e.value)


@pytest.mark.parametrize("name", BAD)
def test_bad_safetensors_are_refused(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    assert str(path) in refused(lambda: open_tensors(path), message)
    refused(lambda: open_checkpoint(path), message)
    description = describe(path)
    assert not description.loads
    assert description.problems


class Evil:
    """What a malicious file does when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def torch_zip(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", content)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".safetensors", ".json", ""])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5, "zip"])
def test_pickles_are_never_opened_whatever_they_are_called(tmp_path, suffix, protocol):
    made, path = tmp_path / "made-by-a-pickle", tmp_path / f"model{suffix}"
    if protocol == "zip":
        torch_zip(path, pickle.dumps(Evil(made)))
    else:
        path.write_bytes(pickle.dumps(Evil(made), protocol))
    known = protocol != 0  # the oldest protocol has no signature
    refused(lambda: open_checkpoint(path), "is a pickle, which can run any code" if known else "not a safetensors file")
    assert describe(path).kind == ("pickle" if known else "unknown")
    assert not made.exists()
    pickle.loads(pickle.dumps(Evil(made)))
    assert made.exists()  # the file would have done it


def test_a_header_that_starts_like_a_pickle_is_read(tmp_path):
    """A header of 0x280 bytes begins as pickles of protocol 2 do."""
    text = json.dumps({"a": entry()}).encode().ljust(0x280)
    path = tmp_path / "ok.safetensors"
    path.write_bytes(header(text, b"\0" * 8))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert kind_of(path) == ("safetensors", "")
    assert open_tensors(path).tensors["a"].shape == (2,)


def test_pickles_in_a_folder_are_not_opened(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "sdxl"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    made = tmp_path / "made-by-a-pickle"
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil(made)))
    message = r"unet/ has no safetensors weights, only diffusion_pytorch_model\.bin; pickles .* are never opened"
    refused(lambda: open_checkpoint(folder), message)
    assert not made.exists()


@pytest.mark.parametrize(
    ("value", "spelled"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")], ids=["nan", "inf", "-inf"]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_named(tiny_folder, tmp_path, value, spelled, dtype):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    tensors = {k: v for k, v in single_file_tensors(tiny_folder).items() if k == name}
    tensors[name] = tensors[name].astype(dtype)
    tensors[name][5, 2, 0, 1] = value
    path = write_single_file(tmp_path / "bad.safetensors", tiny_folder, tensors)
    checkpoint = open_checkpoint(path, networks=networks_of(tiny_folder))
    message = rf"bad\.safetensors: {name} holds {spelled} at \[5, 2, 0, 1\]; the file is damaged"
    refused(lambda: checkpoint.load("unet"), message)


def test_values_are_verified_when_asked_for(tiny_folder, tmp_path, capsys):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "sdxl"))
    good = verify(describe(folder))
    assert good.loads
    assert re.search(r"verified .* of ([\d,]+) tensors hold finite numbers alone", str(good))
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["encoder.conv_in.weight"].flat[0] = np.inf
    save_file(tensors, path)
    assert run(Info(file=str(folder))) == 0
    assert run(Info(file=str(folder), verify=True)) == 1
    said = capsys.readouterr().out
    assert f"{path}: encoder.conv_in.weight holds inf at [0, 0, 0, 0]" in said
    assert "no checksum is known of" in said


def test_a_file_of_the_hub_is_what_its_name_says(tmp_path):
    """The cache keeps files under their SHA-256."""
    content = header({"a": entry()}, b"\0" * 8)
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(content)
    (link := tmp_path / "model.safetensors").symlink_to(blob)
    assert "1 of 1 files have the SHA-256 that the hub gives" in verify(describe(link)).verified
    blob.write_bytes(content[:-1] + b"\1")
    assert f"{link} has another SHA-256 than the hub gives" in str(verify(describe(link)))


def test_large_tensors_are_searched_to_the_end(tmp_path):
    values = np.zeros(5_000_000, np.float16)
    values[-1] = np.nan
    path = tmp_path / "large.safetensors"
    save_file({"a": values}, path)
    refused(lambda: open_tensors(path).read("a"), r"a holds nan at \[4999999\]")


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (np.int64, r"out\.2\.bias is I64; weights should be one of F64, F32, F16, BF16"),
        (np.bool_, r"out\.2\.bias is BOOL"),
        (np.uint8, r"out\.2\.bias is U8"),
    ],
)
def test_weights_that_are_no_floats_are_named(tiny_folder, tmp_path, dtype, message):
    extra = {"model.diffusion_model.out.2.bias": np.ones(4, dtype)}
    path = write_single_file(tmp_path / "bad.safetensors", tiny_folder, extra)
    refused(lambda: open_checkpoint(path, networks=networks_of(tiny_folder)), message)


# ---- other models ----------------------------------------------------------------------------------------------------

OTHERS = {
    "LoRA": (["lora_unet_input_blocks_4_1_proj_in.lora_down.weight"], "a LoRA, .*give it to load_lora"),
    "PEFT LoRA": (["unet.mid_block.attentions.0.proj_in.lora_A.weight"], "a LoRA"),
    "SD 1": (
        ["cond_stage_model.transformer.text_model.embeddings.position_ids"],
        "a Stable Diffusion 1 checkpoint, .*: give one of SDXL or Stable Diffusion 3",
    ),
    "SD 2": (["cond_stage_model.model.ln_final.bias"], "a Stable Diffusion 2 checkpoint"),
    "refiner": (["conditioner.embedders.0.model.ln_final.bias"], "the SDXL refiner, .*give SDXL base"),
    "Flux": (["double_blocks.0.img_attn.qkv.weight"], "a Flux checkpoint"),
    "ControlNet": (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
    "inversion": (["clip_l", "clip_g"], "a textual inversion"),
    "Playground": (["edm_mean", "edm_std"], "an SDXL variant with EDM preconditioning"),
    "UNet alone": (["down_blocks.0.resnets.0.conv1.weight"], "a component of a diffusers folder"),
    "anything": (["layer1.weight"], "no model known here"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused_by_name(tmp_path, name):
    keys, message = OTHERS[name]
    path = tmp_path / "other.safetensors"
    save_file({key: np.zeros((2, 2), np.float32) for key in keys}, path)
    refused(lambda: open_checkpoint(path), f"other.safetensors looks like {message}")


def test_an_inpainting_single_file_is_refused_by_name(tiny_folder, tmp_path):
    extra = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((32, 9, 3, 3), np.float32)}
    path = write_single_file(tmp_path / "inpaint.safetensors", tiny_folder, extra)
    message = "looks like an inpainting checkpoint, .*takes 9 channels, 4 are needed"
    refused(lambda: open_checkpoint(path, networks=networks_of(tiny_folder)), message)


def test_missing_components_and_unknown_tensors_are_listed_together(tiny_folder, tmp_path):
    tensors = {k: v for k, v in single_file_tensors(tiny_folder).items() if not k.startswith("first_stage_model.")}
    path = tmp_path / "part.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in {**tensors, "stray": np.zeros(1)}.items()}, path)
    message = refused(lambda: open_checkpoint(path), "part.safetensors is not a whole SDXL checkpoint")
    assert "no vae: no tensor starts with first_stage_model." in message
    assert "1 tensors of no component: stray" in message


def test_a_single_file_of_another_size_is_refused(tiny_folder, tmp_path):
    path = write_single_file(tmp_path / "small.safetensors", tiny_folder)
    with pytest.raises(WeightsError, match="does not fit this network") as e:
        open_checkpoint(path)  # taken for SDXL itself
    assert "of another shape" in str(e.value)
    assert len(str(e.value)) < 3000


# ---- shards ----------------------------------------------------------------------------------------------------------


def with_index(folder: Path, weight_map: object) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


@pytest.mark.parametrize(
    "file",
    ["../secret.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "", "a\\b.safetensors", "a\0b.safetensors", 7],
)
def test_an_index_can_only_name_files_beside_it(tmp_path, file):
    (tmp_path / "in").mkdir()
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "secret.safetensors")
    index = with_index(tmp_path / "in", {"a": file})
    refused(
        lambda: open_tensors(index), "a shard must be a plain file name beside its index|is not a safetensors index"
    )


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', "{" * 100_000, "\xff"]
)
def test_a_broken_index_is_refused(tmp_path, content):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(content.encode("latin1"))
    refused(lambda: open_tensors(index), "is not a safetensors index .*; download it again")


def test_shards_and_index_must_agree(tmp_path):
    save_file({"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}, tmp_path / "1.safetensors")
    save_file({"c": np.zeros(2, np.float32)}, tmp_path / "2.safetensors")
    whole = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    assert open_tensors(with_index(tmp_path, whole)).tensors.keys() == {"a", "b", "c"}
    refused(lambda: open_tensors(with_index(tmp_path, {**whole, "c": "3.safetensors"})), "names 3.safetensors, which")
    refused(lambda: open_tensors(with_index(tmp_path, {**whole, "d": "2.safetensors"})), "disagree about d")
    refused(lambda: open_tensors(with_index(tmp_path, {**whole, "b": "2.safetensors"})), "disagree about b")
    refused(
        lambda: open_tensors(with_index(tmp_path, {"a": "1.safetensors", "c": "2.safetensors"})), "disagree about b"
    )
    refused(lambda: open_tensors(with_index(tmp_path, {**whole, "c": "2.bin"})), "2.bin, which is not a .safetensors")
    save_file({"a": np.zeros(2, np.float32), "c": np.zeros(2, np.float32)}, tmp_path / "2.safetensors")
    refused(lambda: open_tensors(with_index(tmp_path, whole)), "a stand in another shard, too")


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "not json", "[1]", '{"_class_name": 3}', "\xff\xfe"])
def test_a_broken_model_index_is_refused(tiny_folder, tmp_path, content):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "sdxl"))
    (folder / "model_index.json").write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=str(folder)):
        open_checkpoint(folder)
    assert not describe(folder).loads


def test_a_folder_that_is_none_is_refused(tmp_path):
    refused(lambda: open_checkpoint(tmp_path), "has no model_index.json; give a folder that holds")
    description = describe(tmp_path)
    assert description.kind == "folder"
    assert not description.loads
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    refused(lambda: open_checkpoint(tmp_path), r"give one of its files \(model\.safetensors\), or a folder that holds")


def test_a_damaged_component_is_named(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "sdxl"))
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(path) in refused(lambda: open_checkpoint(folder), "is broken")
    description = describe(folder)
    assert set(description.components) == {"text_encoder", "text_encoder_2", "unet"}
    assert [str(path) in problem for problem in description.problems] == [True]


# ---- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("merges.txt", lambda text: text[:-9], r"merges\.txt has no merge for 1 tokens of vocab\.json, such as"),
        ("merges.txt", lambda text: text[:-3], r"merges\.txt: line 7, 'th e</', makes no token of vocab\.json"),
        ("merges.txt", lambda text: text + "x y\n", r"line 8, 'x y', makes no token of vocab\.json"),
        ("merges.txt", lambda text: "", r"has no merge for 6 tokens of vocab\.json"),
        (
            "vocab.json",
            lambda text: text[:-30],
            r"vocab\.json is not valid JSON .*; the file is damaged",
        ),
        ("vocab.json", lambda text: "[]", r"vocab\.json is not valid JSON .expected an object, .* it holds a list"),
        ("vocab.json", lambda text: text.replace(": 7,", ': "7",'), r"vocab\.json: the number of .* is '7'"),
        ("tokenizer_config.json", lambda text: text[: len(text) // 2], r"tokenizer_config\.json is not valid JSON"),
    ],
)
def test_damaged_tokenizers_are_named(tiny_folder, tmp_path, file, change, message):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "sdxl"))
    path = folder / "tokenizer_2" / file
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    assert str(folder / "tokenizer_2") in refused(lambda: open_checkpoint(folder).tokenizers, message)
    assert not describe(folder).loads


def test_parts_of_real_tokenizers_are_refused(facts, tmp_path):
    for name in ("tokenizer", "tokenizer_3"):
        for path in sorted((facts / "configs" / "sd3-medium" / name).iterdir()):
            check_tokenizer([path])
            content, part = path.read_bytes(), tmp_path / path.name
            for length in () if path.suffix == ".txt" else (1, len(content) // 2, len(content) - 2):
                part.write_bytes(content[:length])
                refused(
                    lambda part=part: check_tokenizer([part]), f"{path.name} .*; the file is damaged or only a part"
                )
    clip = facts / "configs" / "sd3-medium" / "tokenizer"
    check_tokenizer([clip / "vocab.json", clip / "merges.txt"])
    (part := tmp_path / "merges.txt").write_bytes((clip / "merges.txt").read_bytes()[:100_000])
    refused(lambda: check_tokenizer([clip / "vocab.json", part]), "has no merge for 38373 tokens of vocab.json")


# ---- what `autolora info` says ---------------------------------------------------------------------------------------


def test_good_files_are_described(tiny_folder, tmp_path):
    folder = describe(tiny_folder)
    assert folder.loads
    assert folder.kind == "SDXL, diffusers folder"
    unet = load_file(tiny_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert folder.components["unet"].parameters == sum(v.size for v in unet.values())
    assert folder.components["unet"].dtypes == {"F32": len(unet)}
    assert "euler, epsilon" in str(folder)


def test_a_lora_is_described_as_one(tmp_path):
    path = tmp_path / "lora.safetensors"
    name = "lora_unet_input_blocks_4_1_proj_in"
    save_file({f"{name}.lora_down.weight": np.zeros((4, 640), np.float32)}, path)
    description = describe(path)
    assert description.kind == "a LoRA"
    assert description.lora is not None
    assert str(description) == str(description.lora)
    assert describe(tmp_path) == description  # a folder that holds just that


def test_a_small_single_file_is_described_with_what_does_not_fit(tiny_folder, tmp_path):
    average = {f"model_ema.a{i}": np.float32(1) for i in range(9)}
    path = write_single_file(tmp_path / "small.safetensors", tiny_folder, average)
    description = describe(path)
    assert description.kind == "SDXL, single file"
    assert not description.loads
    assert "of another shape" in str(description)
    assert "left out        model_ema.a0, model_ema.a1, … and 7 more (the training average" in str(description)
