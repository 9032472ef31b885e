"""`autolora info` of LoRA files: what is told of every kind, of good and of bad ones, and how it looks."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

from autolora_jax.cli import console
from autolora_jax.demo import builtin
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.inspect import autov2, describe, sha256_of
from autolora_jax.weights.lora.describe import describe_lora
from tests.hub_server import Hub
from tests.lora_reference import CONV_MODULE, TEXT_MODULE, UNET_MODULE, Tensors, good, halves, saved, tiny_targets
from tests.programs import autolora

LORA = "builtin:character"
SHA256 = hashlib.sha256(builtin(LORA).read_bytes()).hexdigest()


def ones(**shapes: tuple[int, ...]) -> Tensors:
    return {name: np.ones(shape, np.float16) for name, shape in shapes.items()}


def module(name: str, parts: Tensors) -> Tensors:
    return {f"{name}.{part.replace('__', '.')}": tensor for part, tensor in parts.items()}


LOHA = ones(hada_w1_a=(64, 3), hada_w1_b=(3, 64), hada_w2_a=(64, 3), hada_w2_b=(3, 64), alpha=())
LOKR = ones(lokr_w1=(8, 8), lokr_w2_a=(8, 2), lokr_w2_b=(2, 8), alpha=())
WHOLE = ones(lokr_w1=(8, 8), lokr_w2=(8, 8), dora_scale=(64, 1))
NORM = "lora_unet_down_blocks_1_attentions_0_norm"


def mixed() -> Tensors:
    """One module of each kind, for the tiny pipeline."""
    to_q, to_k = (f"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_{x}" for x in "qk")
    to_v, out = (name.replace("to_k", other) for name, other in ((to_k, "to_v"), (to_k, "to_out_0")))
    return {
        **halves(UNET_MODULE, 64, 64),
        **halves(CONV_MODULE, 32, 32, 3, (3, 3)),
        **module(to_q, LOHA),
        **module(to_k, LOKR),
        **module(to_v, WHOLE),
        **halves(out, 64, 64),
        f"{out}.dora_scale": np.ones((64, 1), np.float32),
        **module(TEXT_MODULE, ones(diff=(64, 32))),
        **module(NORM, ones(w_norm=(64,), b_norm=(64,))),
        f"{UNET_MODULE}.alpha": np.array(1, np.int32),
    }


def test_every_kind_has_a_line_of_its_own(tmp_path: Path) -> None:
    about = describe_lora(saved(tmp_path / "a.safetensors", mixed()), tiny_targets())
    assert about.modules == {"unet": 7, "text_encoder": 1} and about.layers == 8 and not about.problems
    lines = [text for heading, text in about.rows() if heading == "holds"]
    assert lines == [
        "LoRA: 2 modules; rank 2 (1×), 3 (1×); alpha 1 (1×), not given (= rank) (1×)",
        "DoRA: 1 module; rank 2; alpha not given (= rank)",
        "LoHa (LyCORIS): 1 module; rank 3; alpha 1",
        "LoKr (LyCORIS): 1 module; rank 2; alpha 1; factors 8x8 ⊗ 8x8",
        "LoKr (LyCORIS) with DoRA: 1 module; factors 8x8 ⊗ 8x8",
        "full difference (diff): 1 module",
        "trained norms: 1 module",
    ]
    assert about.ranks == {2: 3, 3: 2} and about.kinds["LoHa (LyCORIS)"].alphas == {1.0: 1}
    assert about.parameters == sum(tensor.size for tensor in mixed().values())
    assert about.dtypes == {"F32": 7, "F16": 15, "I32": 1}
    assert "fits            the model: it changes 8 of its layers" in str(about)


def test_what_reading_would_refuse_is_said_without_a_model(tmp_path: Path) -> None:
    """Of a file that no program here can use, all else is told nevertheless."""
    replaced = module(UNET_MODULE, ones(set_weight=(64, 64)))
    eight_bit = {name: tensor.astype(np.int8) for name, tensor in halves(TEXT_MODULE, 32, 64).items()}
    alpha = {f"{CONV_MODULE}.alpha": np.ones(7, np.float32), **halves(CONV_MODULE, 32, 32, 3, (3, 3))}
    about = describe_lora(saved(tmp_path / "a.safetensors", {**replaced, **eight_bit, **alpha}))
    assert len(about.problems) == 3
    for words in (
        "modules that are replaced weights",
        "no floats: .* get a version in F64",
        r"alphas .* is \[7\], expected one",
    ):
        assert any(re.search(words, problem) for problem in about.problems), about
    assert about.modules == {"unet": 2, "text_encoder": 1} and about.ranks == {2: 1, 3: 1}
    assert describe_lora(saved(tmp_path / "b.safetensors", {})).problems


def test_the_header_is_summed_up(tmp_path: Path) -> None:
    header = {
        "ss_tag_frequency": json.dumps({"1_dog": {"sks dog": 9, "grass": 2}}),
        "ss_clip_skip": "2",
        "ss_network_args": '{"algo": "loha"}',
        "ss_training_comment": "None",
        "sshs_model_hash": "ab" * 32,
        "modelspec.description": "two\nlines \x1b[2J",
    }
    about = describe_lora(saved(tmp_path / "a.safetensors", good(), header))
    assert about.trigger_words == ("sks dog", "grass") and about.model_hash == "ab" * 32 and about.metadata == header
    assert about.training == {"description": "two lines [2J", "clip skip": "2", "its arguments": '{"algo": "loha"}'}
    assert f"tensors' hash   {'ab' * 32}, says the header" in str(about)


def test_the_hash_is_that_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autolora_jax.weights.files._PIECE", 1000)
    told: list[tuple[int, int]] = []
    path, size = builtin(LORA), builtin(LORA).stat().st_size
    assert sha256_of(path, lambda *pair: told.append(pair)) == SHA256
    assert told == [(min(1000 * (i + 1), size), size) for i in range(len(told))] and told[-1] == (size, size)
    assert autov2(SHA256) == SHA256[:10].upper()
    with pytest.raises(WeightsError, match="can't be read: No such file"):
        sha256_of(tmp_path / "none")


def test_files_that_are_not_even_read_have_a_hash(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04" + bytes(99))
    result = autolora("info", tmp_path / "model.ckpt")
    assert result.exit_code == 1 and "pickle" in result.stdout
    assert f"sha256          {hashlib.sha256((tmp_path / 'model.ckpt').read_bytes()).hexdigest()}" in result.stdout
    assert autolora("info", tmp_path).stdout.count("sha256") == 0  # a folder
    assert autolora("info", tmp_path / "none").exit_code == 1


def test_builtin_loras_and_json() -> None:
    result = autolora("info", LORA)
    assert result.exit_code == 0
    for line in ("holds           LoRA: 168 modules; rank 4; alpha 4", f"AutoV2          {SHA256[:10].upper()}"):
        assert line in result.stdout
    told = json.loads(autolora("info", LORA, "--json").stdout)
    assert told["loads"] and told["sha256"] == SHA256 and told["autov2"] == SHA256[:10].upper()
    assert told["lora"]["kinds"] == {
        "LoRA": {"modules": 168, "ranks": {"4": 168}, "alphas": {"4.0": 168}, "factors": {}}
    }
    assert told["lora"]["trigger_words"] == ["a zib"] and told["lora"]["metadata"]["modelspec.title"] == "character"
    assert json.loads(autolora("info", LORA, "--json", "--no-hash").stdout)["sha256"] is None
    assert "builtin:character, builtin:style" in autolora("info", "builtin:zib").stdout


def test_whether_it_fits_a_model(tmp_path: Path) -> None:
    fits = autolora("info", LORA, "--model", "builtin", "--no-hash")
    assert fits.exit_code == 0 and "fits            the model: it changes 168 of its layers" in fits.stdout
    path = saved(tmp_path / "a.safetensors", good())
    assert autolora("info", path, "--no-hash").exit_code == 0
    other = autolora("info", path, "--model", "builtin", "--no-hash")
    assert other.exit_code == 1 and "shapes that do not fit" in other.stdout and "fits   " not in other.stdout
    model = autolora("info", "builtin", "--model", "builtin")
    assert model.exit_code == 1 and "--model is for LoRAs, and builtin is a SDXL, diffusers folder" in model.stderr


def test_a_lora_of_the_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    saved(repository / "style.safetensors", good())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with Hub({"someone/style": repository}).as_the_hub(monkeypatch):
        assert describe("someone/style").lora == describe("someone/style/style.safetensors").lora
        assert describe("someone/style").lora is not None
        assert "someone/else is neither a path on this machine" in str(describe("someone/else"))


def test_embeddings_alone_are_known_for_what_they_are(tmp_path: Path) -> None:
    whole = describe(saved(tmp_path / "a.safetensors", ones(clip_l=(2, 768), clip_g=(2, 1280))))
    assert whole.kind == "a textual inversion" and whole.loads
    odd = describe(saved(tmp_path / "b.safetensors", ones(clip_l=(2, 768), sparkle=(2, 2))))
    assert "sparkle is no part of an embedding" in odd.problems[0]


def test_it_is_pleasant_to_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a terminal of 80 columns: long texts stay in their column, the hash in its line."""
    monkeypatch.setenv("COLUMNS", "80")
    rows: list[tuple[str, Any]] = [
        ("trigger words", "a zib"),
        ("sha256", SHA256),
        ("can't be used", "one " * 30),
        ("can't be used", "two [bold]"),
    ]
    console.show("a file", rows, red=("can't",))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["a file", "  trigger words a zib", f"  sha256        {SHA256}"]
    assert lines[3].startswith("  can't be used one one") and lines[4].startswith(" " * 16 + "one")
    assert lines[-1] == " " * 16 + "two [bold]" and max(map(len, lines)) <= 80
