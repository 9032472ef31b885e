"""Bad LoRA files give one error each that names file, key and remedy, whatever is wrong with them."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.lora.describe import LoraDescription, describe_lora
from autolora_jax.weights.lora.dialects import guess_family
from autolora_jax.weights.lora.files import read_lora
from autolora_jax.weights.lora.match import examine_modules, match_layers, raise_problems
from autolora_jax.weights.lora.names import Names
from tests.lora_reference import TEXT_MODULE, UNET_MODULE, Tensors, good, halves, saved, tiny_targets


def drop(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k != key}


def put(key: str, value: np.ndarray) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, key: value}


def also(more: Tensors) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, **more}


DOWN, UP = f"{UNET_MODULE}.lora_down.weight", f"{UNET_MODULE}.lora_up.weight"
ONES = np.ones((2, 64), np.float32)
NORM = "lora_unet_down_blocks_1_resnets_0_norm1"
RANK_0 = {
    f"{TEXT_MODULE.replace('fc1', 'fc2')}.{part}": np.ones(shape, np.float32)
    for part, shape in {"lokr_w1_a": (4, 0), "lokr_w1_b": (0, 8), "lokr_w2": (8, 8), "alpha": ()}.items()
}
BAD: dict[str, tuple[Callable[[Tensors], Tensors], tuple[str, ...]]] = {
    "empty": (lambda _: {}, ("no tensors", "download it again")),
    "no up": (drop(UP), ("LoRA modules without their up", UNET_MODULE)),
    "no down": (drop(DOWN), ("LoRA modules without their down", UNET_MODULE)),
    "alphas alone": (lambda t: {f"{UNET_MODULE}.alpha": t[f"{UNET_MODULE}.alpha"]}, ("alphas alone", "no weights")),
    "ranks differ": (put(DOWN, np.ones((3, 64), np.float32)), ("share no rank", UNET_MODULE)),
    "rank 0": (also({DOWN: np.ones((0, 64), np.float32), UP: np.ones((64, 0), np.float32)}), ("share no rank",)),
    "too wide": (put(DOWN, np.ones((2, 65), np.float32)), (r"down \[2, 65\]", r"takes \[2, 64\] and \[64, 2\]")),
    "too tall": (put(UP, np.ones((63, 2), np.float32)), (r"up \[63, 2\]", r"takes \[2, 64\] and \[64, 2\]")),
    "a window on a Linear": (put(DOWN, np.ones((2, 64, 3, 3), np.float32)), (r"\[2, 64, 3, 3\]",)),
    "one axis": (put(DOWN, np.ones((2,), np.float32)), (r"down \[2\]",)),
    "no axis": (put(DOWN, np.array(1.0, np.float32)), (r"down \[\]",)),
    "a NaN": (put(DOWN, np.where(np.eye(2, 64) > 0, np.nan, 1).astype(np.float32)), (DOWN, "nan")),
    "infinite": (put(UP, np.full((64, 2), np.inf, np.float32)), (UP, "inf")),
    "NaN alpha": (put(f"{UNET_MODULE}.alpha", np.array(np.nan, np.float32)), ("alpha", "nan")),
    "many alphas": (put(f"{UNET_MODULE}.alpha", np.ones(2, np.float32)), (r"alpha \[2\]", UNET_MODULE)),
    "integers": (put(DOWN, np.ones((2, 64), np.int8)), ("no floats", "I8", DOWN)),
    "two endings": (put(f"{UNET_MODULE}.lora_A.weight", ONES), ("given twice", "lora_A.weight", DOWN)),
    "two names": (
        also(halves("lora_unet_down_blocks_1_attentions_0_proj_in", 64, 64)),
        ("named twice", UNET_MODULE, "lora_unet_down_blocks_1_attentions_0_proj_in"),
    ),
    "unknown module": (also(halves("lora_unet_input_blocks_9_1_proj_in", 64, 64)), ("does not have", "_9_1_proj_in")),
    "unknown ending": (put(f"{UNET_MODULE}.sparkle", ONES), ("nothing known", "sparkle")),
    "a model's weight": (put("model.diffusion_model.out.2.weight", ONES), ("a whole model", "as the model itself")),
    "embedding": (put("bundle_emb.cat.string_to_param.*", ONES), ("textual-inversion", "bundle_emb")),
    "bias": (put(f"{UNET_MODULE}.lora_A.bias", np.ones(2, np.float32)), ("a bias between its halves", "extract")),
    "a bias of another layer": (put(f"{UNET_MODULE}.diff_b", np.ones(63, np.float32)), (r"bias \[63\] instead of",)),
    "two changes": (put(f"{UNET_MODULE}.diff", np.ones((64, 64), np.float32)), ("do not belong", "diff in a LoRA")),
    "half a LoHa": (put(f"{TEXT_MODULE}_.hada_w1_a", ONES), ("LoHa .* without their hada_w1_b and hada_w2_a",)),
    "a LoKr of rank 0": (also(RANK_0), ("the halves of a factor do not fit each other",)),
    "half a LoKr": (put(f"{TEXT_MODULE}_.lokr_w1", ONES), ("LoKr .* without their lokr_w2",)),
    "magnitudes": (put(f"{UNET_MODULE}.dora_scale", np.ones((63, 1), np.float32)), (r"magnitudes \[63, 1\]",)),
    "a matrix for a norm": (also(halves(NORM, 32, 32)), ("a norm, which has no matrix", NORM)),
    "a norm for a matrix": (also({f"{TEXT_MODULE.replace('fc1', 'fc2')}.w_norm": ONES[0]}), ("the layer is no norm",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_content(tmp_path: Path, case: str) -> None:
    spoil, expected = BAD[case]
    path = saved(tmp_path / "bad.safetensors", spoil(good()))
    with pytest.raises(WeightsError) as caught:
        read_lora(path, tiny_targets())
    message = str(caught.value)
    for words in (*expected, re.escape(str(path))):
        assert re.search(words, message), message
    assert " – " in message  # every line ends in what to do
    assert isinstance(describe_lora(path, tiny_targets()), LoraDescription)


def test_all_problems_come_in_one_error(tmp_path: Path) -> None:
    tensors = good()
    for case in ("no up", "unknown module", "unknown ending", "embedding"):
        tensors = BAD[case][0](tensors)
    tensors[f"{TEXT_MODULE}.lora_down.weight"] = np.ones((2, 31), np.float32)
    with pytest.raises(WeightsError) as caught:
        read_lora(saved(tmp_path / "bad.safetensors", tensors), tiny_targets())
    lines = str(caught.value).splitlines()
    assert len(lines) == 6, lines


def truncated(path: Path) -> bytes:
    return path.read_bytes()[:-100]


def absurd_header(path: Path) -> bytes:
    return (2**62).to_bytes(8, "little") + path.read_bytes()[8:]


def header_only(path: Path) -> bytes:
    return path.read_bytes()[:60]


@pytest.mark.parametrize(
    "make, words",
    [
        (truncated, "incomplete download"),
        (absurd_header, "download it again"),
        (header_only, "download it again"),
        (lambda path: b"", "empty"),
        (lambda path: pickle.dumps({"a": 1}), "pickle"),
        (lambda path: b"PK\x03\x04" + bytes(100), "pickle"),
        (lambda path: b"<!doctype html><html>", "web page"),
    ],
)
def test_broken_files(tmp_path: Path, make: Callable[[Path], bytes], words: str) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(make(saved(tmp_path / "a.safetensors", good())))
    with pytest.raises(WeightsError, match=words) as caught:
        read_lora(path, tiny_targets())
    assert str(path) in str(caught.value)
    [problem] = describe_lora(path).problems
    assert words in problem


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        read_lora(tmp_path / "none.safetensors", tiny_targets())
    assert describe_lora(tmp_path / "none.safetensors").problems


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 1200), byte=st.integers(0, 255))
def test_one_changed_byte_never_breaks_the_reader(tmp_path: Path, at: int, byte: int) -> None:
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 1.0})}
    content = bytearray(saved(tmp_path / "a.safetensors", good(), header).read_bytes())
    content[at % len(content)] = byte
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content)
    describe_lora(path)
    describe_lora(path, tiny_targets())
    try:
        read_lora(path, tiny_targets())
    except WeightsError as e:
        assert str(path) in str(e)


CROSS = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    "key, width, family",
    [
        (f"lora_unet_{CROSS.replace('.', '_')}.lora_down.weight", 768, "Stable Diffusion 1"),
        (f"unet.{CROSS}.lora.down.weight", 1024, "Stable Diffusion 2"),
        (f"unet.{CROSS}.lora_A.weight", 1280, "the SDXL refiner"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", 768, "Stable Diffusion 1 or 2"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", 3072, "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", 3072, "Flux"),
        ("diffusion_model.blocks.0.cross_attn.k.lora_A.weight", 1536, "another diffusion transformer"),
    ],
)
def test_wrong_base_model_is_named(key: str, width: int, family: str) -> None:
    up = key.replace("lora_down", "lora_up").replace("lora.down", "lora.up").replace("lora_A", "lora_B")
    shapes = {key: (4, width), up: (width, 4)}
    assert guess_family(shapes) == family
    with pytest.raises(WeightsError, match="use it with the model it was trained on") as caught:
        raise_problems("file.safetensors", match_layers(examine_modules(shapes), shapes, Names(tiny_targets())))
    assert f"looks made for {family}" in str(caught.value)


def test_another_model_is_spoken_of_only_where_the_file_does() -> None:
    known = Names(tiny_targets())
    for shapes, words in (
        ({"what.lora_A.weight": (4, 5), "what.lora_B.weight": (5, 4)}, "no naming of SDXL's layers that is known here"),
        ({DOWN: (2, 64), UP: (65, 2)}, "laid out in a way not known here"),
        ({DOWN: (2, 64), UP: (64, 2), "lora_unet_x.diff": (2, 2)}, "the rest fits this model"),
    ):
        with pytest.raises(WeightsError, match=words) as caught:
            raise_problems("file.safetensors", match_layers(examine_modules(shapes), shapes, known))
        assert "use it with the model" not in str(caught.value)
