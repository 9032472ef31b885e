"""LoRA files that bring words of their own: loaded with their layers, listed, or refused with the reason."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from autolora_jax import AutoLoRAPipeline
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.export import convert_lora
from autolora_jax.weights.lora.files import read_lora
from tests.lora_reference import good, saved, tiny_networks, tiny_targets
from tests.parity import error, normal

ZIB = {"bundle_emb.zib.clip_l": normal(1, 3, 32), "bundle_emb.zib.clip_g": normal(2, 2, 48)}


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(tiny_folder, dtype="float32", devices=jax.devices()[:1])


def told(pipe: AutoLoRAPipeline, kind: str) -> np.ndarray:
    return pipe.conditioning("a zib", "zib")[kind]["encoder_hidden_states"][0]


def test_words_come_and_go_with_their_lora(pipe, tmp_path: Path):
    plain = told(pipe, "base")
    pipe.load_lora(saved(tmp_path / "layers.safetensors", good()))
    report = pipe.load_lora(saved(tmp_path / "both.safetensors", {**good(), **ZIB}), 0.5)
    assert report.embeddings == ("zib",) and "\n  embeddings      zib\n" in str(report)
    brought = told(pipe, "lora")
    assert error(brought, plain) > 0.1 and error(told(pipe, "base"), plain) == 0
    pipe.unload_lora()
    save_file({name.rpartition(".")[2]: rows for name, rows in ZIB.items()}, tmp_path / "zib.safetensors")
    pipe.load_textual_inversion(tmp_path / "zib.safetensors")
    for name in ("layers", "both"):
        with_layers = {
            k: v for k, v in load_file(tmp_path / f"{name}.safetensors").items() if not k.startswith("bundle")
        }
        pipe.load_lora(saved(tmp_path / "again.safetensors", with_layers), 1.0 if name == "layers" else 0.5)
    np.testing.assert_array_equal(told(pipe, "lora"), brought)  # the same vectors, from a file of their own
    with pytest.raises(WeightsError, match=r"its word 'zib' stands for an embedding of .*zib\.safetensors already"):
        pipe.load_lora(tmp_path / "both.safetensors")
    assert len(pipe.reports) == 2  # nothing of it is left
    pipe.unload_lora()
    pipe.unload_textual_inversion()
    np.testing.assert_array_equal(told(pipe, "lora"), plain)


def test_a_file_may_bring_nothing_else(pipe, tmp_path: Path):
    report = pipe.load_lora(saved(tmp_path / "only.safetensors", ZIB))
    assert report.embeddings == ("zib",) and not report.modules
    assert error(told(pipe, "lora"), told(pipe, "base")) > 0.1
    pipe.unload_lora()


def test_words_go_along_into_another_file(tmp_path: Path):
    first = read_lora(saved(tmp_path / "a.safetensors", {**good(), **ZIB}), tiny_targets())
    convert_lora(tmp_path / "b.safetensors", first, "kohya", tiny_networks()["unet"])
    second = load_file(tmp_path / "b.safetensors")
    for key, rows in ZIB.items():
        np.testing.assert_array_equal(second[key], rows)
    with pytest.raises(ValueError, match="the words zib have no place in a PEFT file; write it as kohya"):
        convert_lora(tmp_path / "c.safetensors", first, "peft", tiny_networks()["unet"])


def test_words_are_listed(tmp_path: Path):
    path = saved(tmp_path / "both.safetensors", {**good(), **ZIB, "bundle_emb.v1.0\x1b.clip_l": normal(0, 1, 32)})
    description = describe_lora(path)
    assert description.embeddings == ("v1.0\x1b", "zib") and not description.problems
    assert "embeddings      v1.0, zib" in str(description)
    (problem,) = describe_lora(path, tiny_targets()).problems
    assert "'v1.0\\x1b': it has nothing for text_encoder_2 (clip_g or text_encoders_1)" in problem


@pytest.mark.parametrize(
    ("key", "tensor", "words"),
    [
        ("bundle_emb.zib.clip_l", normal(0, 1, 768), "clip_l is 768 wide, the vectors of text_encoder are 32"),
        ("bundle_emb.zib.clip_l_out", normal(0, 1, 32), "output embedding"),
        ("bundle_emb.zib.string_to_param.*", normal(0, 1, 768), "one text encoder"),
        ("bundle_emb.zib.clip_g", np.full((1, 48), np.nan, np.float32), r"bundle_emb\.zib\.clip_g holds nan"),
        ("clip_l", normal(0, 1, 32), "not a LoRA: load it with load_textual_inversion"),
    ],
)
def test_what_cannot_be_used_is_refused(pipe, key: str, tensor: np.ndarray, words: str, tmp_path: Path):
    path = saved(tmp_path / "bad.safetensors", {**good(), **ZIB, key: tensor})
    with pytest.raises(WeightsError, match=words) as caught:
        pipe.load_lora(path)
    assert str(path) in str(caught.value)
    assert not pipe.reports and not list(pipe.text.words)
