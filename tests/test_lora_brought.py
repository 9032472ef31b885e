"""LoRA files as other programs write them, reduced to a layer or two: applied exactly, with a word where one is due.

Sources: the reports and programs that each case names; ComfyUI's comfy/lora.py and comfy/weight_adapter/ at a125cd84.
"""

import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file as save_torch

from autolora_jax import lora
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.export import convert_lora
from autolora_jax.weights.lora.files import LoraFile, read_lora
from autolora_jax.weights.lora.names import Names
from tests.lora_reference import (
    CONV_MODULE,
    TEXT_MODULE,
    UNET_MODULE,
    Tensors,
    halves,
    saved,
    tiny_networks,
    tiny_targets,
)
from tests.parity import error, normal

SAME = 1e-6  # of the maximum; seen: 2e-7
MODULE, PATH = "down_blocks.1.attentions.0.proj_in", "down_blocks_1/attentions_0/proj_in"
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_model.encoder.layers.0.mlp.fc1"
DOWN, UP = normal(0, 2, 64), normal(1, 64, 2)


def opened(folder: Path, tensors: Tensors, **more: Any) -> LoraFile:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_lora(saved(folder / "a.safetensors", tensors, **more), tiny_targets())


def pair(module: str, down: str = "lora_down.weight", up: str = "lora_up.weight") -> Tensors:
    return {f"{module}.{down}": DOWN, f"{module}.{up}": UP}


# ---- names -----------------------------------------------------------------------------------------------------------

SGM = "input_blocks.3.1.proj_in"  # the tiny model has one block a level
NAMES = {
    "OMI (OneTrainer#885)": f"unet.{SGM}",
    "SimpleTuner's comfyui (SimpleTuner#2704)": f"diffusion_model.{MODULE}",
    "torch.compile": f"unet._orig_mod.{MODULE}",
    "torch.compile, kohya": f"lora_unet__orig_mod_{MODULE.replace('.', '_')}",
    "DDP": f"module.unet.{MODULE}",
    "FSDP within": "unet.down_blocks.1._fsdp_wrapped_module.attentions.0.proj_in",
    "PEFT twice": f"base_model.model.base_model.model.{MODULE}",
    "twice": f"unet.unet.{MODULE}",
    "sd-scripts' networks/oft.py": f"oft_unet_{SGM.replace('.', '_')}",
    "a checkpoint's": f"model.diffusion_model.{SGM}",
    "kohya with dots": "lora_unet_down_blocks_1_attentions.0.proj_in",
    "kohya, doubled underscore (Wan)": f"lora_unet__{SGM.replace('.', '_')}",
    "ai-toolkit before it replaced them": f"unet$${MODULE.replace('.', '$$')}",
}


@pytest.mark.parametrize("who", NAMES)
def test_a_name_in_any_wrapping_finds_its_layer(who: str) -> None:
    [(layer, _)] = Names(tiny_targets())[NAMES[who]].shares
    assert (layer.component, layer.path) == ("unet", PATH)


def test_text_encoders_have_comfyuis_names_and_no_names_without_a_prefix() -> None:
    names = Names(tiny_targets())
    for prefix in ("clip_l.", "text_encoders.clip_l.transformer.", "text_encoders.clip_l.", "module.lora_te1_"):
        assert names[f"{prefix}{TEXT}"].component == "text_encoder"
    assert names[f"clip_g.{TEXT}"].component == "text_encoder_2"
    for name in (TEXT, f"unet.{TEXT}", f"clip_l.{MODULE}", f"text_encoder.unet.{MODULE}", "model_" * 80 + "x"):
        assert name not in names


def test_attention_as_comfyui_reads_it() -> None:
    """comfy/lora.py: `.processor.` before q, k, v, and to_out without its number."""
    names = Names(tiny_targets())
    for name, layer in {"processor.to_q": "to_q", "processor.to_out": "to_out_0", "to_out.0": "to_out_0"}.items():
        assert names[f"unet.{ATTENTION}.{name}"].shares[0].layer.path.endswith(f"attn1/{layer}")


@pytest.mark.parametrize(
    "down, up",
    [
        ("lora_A", "lora_B"),  # Mochi's, in ComfyUI
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora.down.weight", "lora.up.weight"),
    ],
)
def test_endings(tmp_path: Path, down: str, up: str) -> None:
    [change] = opened(tmp_path, pair(f"unet.{MODULE}", down, up)).layers.values()
    assert error(change.matrix.dense[:, :, 0, 0], UP @ DOWN) < SAME
    tensors = {f"unet.{MODULE}_lora.down.weight": DOWN, f"unet.{MODULE}_lora.up.weight": UP}
    assert len(opened(tmp_path, tensors).layers) == 1


# ---- parts and layouts -----------------------------------------------------------------------------------------------


def test_magnitudes_belong_to_the_name_that_differs_in_dots_alone(tmp_path: Path) -> None:
    """diffusers' convert_state_dict_to_kohya of a DoRA, ComfyUI#3494."""
    flat, dotted = f"lora_unet_{MODULE.replace('.', '_')}", "lora_unet_down_blocks_1_attentions_0.proj_in"
    for ending, shape in (("lora_magnitude_vector", 64), ("magnitude", 64), ("dora_scale", (64, 1))):
        values = np.ones(shape, np.float32)
        [change] = opened(tmp_path, {**pair(flat), f"{dotted}.{ending}": values}).layers.values()
        assert change.magnitude is not None and change.magnitude.axis == "outputs"


def test_a_convolutions_halves_may_be_flat(tmp_path: Path) -> None:
    """ComfyUI's Train LoRA node, ComfyUI#12575."""
    whole = halves(CONV_MODULE, 32, 32, 3, (3, 3))
    down, up = f"{CONV_MODULE}.lora_down.weight", f"{CONV_MODULE}.lora_up.weight"
    flat = {down: whole[down].reshape(3, -1), up: whole[up].reshape(32, 3)}
    [one], [two] = (opened(tmp_path, tensors).layers.values() for tensors in (whole, flat))
    assert np.array_equal(one.matrix.kernel, two.matrix.kernel)
    [three] = opened(tmp_path, {f"{CONV_MODULE}.diff": normal(3, 32, 288)}).layers.values()
    assert three.matrix.kernel.shape == (3, 3, 32, 32)


def test_8_bit_floats(tmp_path: Path) -> None:
    tensors = {name: torch.from_numpy(x).to(torch.float8_e4m3fn) for name, x in pair(UNET_MODULE).items()}
    save_torch(tensors, tmp_path / "a.safetensors")
    [change] = read_lora(tmp_path / "a.safetensors", tiny_targets()).layers.values()
    down, up = (x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) for x in (DOWN, UP))
    assert error(change.matrix.dense[:, :, 0, 0], up @ down) < SAME


@pytest.mark.parametrize("alpha", [np.float16(np.inf), np.float32(9999999999), np.float32(np.nan)])
def test_an_alpha_that_nothing_uses_is_not_looked_at(tmp_path: Path, alpha: np.generic) -> None:
    """ai-toolkit's lokr_full_rank (ComfyUI#10973); a plain difference has no use for one either."""
    w1, w2 = normal(2, 4, 4), normal(3, 16, 16)
    whole = {f"{UNET_MODULE}.lokr_w1": w1, f"{UNET_MODULE}.lokr_w2": w2, f"{UNET_MODULE}.alpha": np.array(alpha)}
    [change] = opened(tmp_path, whole).layers.values()
    assert error(change.matrix.dense[:, :, 0, 0], np.kron(w1, w2)) < SAME
    assert not describe_lora(tmp_path / "a.safetensors").problems
    difference = {f"{UNET_MODULE}.diff": normal(4, 64, 64), f"{UNET_MODULE}.alpha": np.array(alpha)}
    assert opened(tmp_path, difference).layers
    halved = {f"{UNET_MODULE}.lokr_w1_a": w1, f"{UNET_MODULE}.lokr_w1_b": w1, f"{UNET_MODULE}.lokr_w2": w2}
    with pytest.raises(WeightsError, match="alpha"):
        opened(tmp_path, {**halved, f"{UNET_MODULE}.alpha": np.array(alpha)})


# ---- a word ----------------------------------------------------------------------------------------------------------

NOWHERE = "lora_te1_text_model_embeddings_token_embedding"
WORDS: dict[str, tuple[Tensors, str]] = {
    "a lone alpha": ({f"{TEXT_MODULE}.alpha": np.float32(1)}, "1 alphas have no weights to scale and are not used"),
    "no alpha, where others have one": (
        {f"{UNET_MODULE}.alpha": np.array(2, np.float32), **halves(TEXT_MODULE, 32, 64)},
        f"1 of 2 modules have no alpha, which is read as their rank .*{TEXT_MODULE}",
    ),
    "zeros for what we don't adapt": (
        {f"{NOWHERE}.diff": np.zeros((530, 32), np.float32)},
        f"1 modules that this model does not have are all zeros and left out: {NOWHERE}",
    ),
    "zeros of a kind that is refused": (
        {f"{NOWHERE}.set_weight": np.zeros((4, 4), np.float32)},
        "set_weight.* is all zeros and left out",
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_what_is_left_out_is_said(tmp_path: Path, case: str) -> None:
    more, words = WORDS[case]
    path = saved(tmp_path / "a.safetensors", {**pair(UNET_MODULE), **{k: np.asarray(v) for k, v in more.items()}})
    with pytest.warns(UserWarning, match=words):
        file = read_lora(path, tiny_targets())
    assert len(file.layers) == 1 + (case.startswith("no alpha"))
    about = describe_lora(path, tiny_targets())
    assert "unknown" not in about.kinds and about.modules.get("unknown") is None
    assert not about.problems and len(about.notes) == 1 and ("note", about.notes[0]) in about.rows()
    assert lora.report(file).notes == file.notes == about.notes


def test_a_lora_of_zeros_is_applied_with_a_word(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", {**pair(UNET_MODULE), f"{UNET_MODULE}.lora_up.weight": 0 * UP})
    with pytest.warns(UserWarning, match="it changes nothing"):
        assert len(read_lora(path, tiny_targets()).layers) == 1
    assert "it changes nothing" in str(describe_lora(path))
    whole = saved(tmp_path / "b.safetensors", pair(UNET_MODULE))
    assert not describe_lora(whole).notes and not opened(tmp_path, pair(UNET_MODULE)).notes


def test_what_is_not_zero_is_never_left_out(tmp_path: Path) -> None:
    some, none = np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)
    for more in (
        {"diff": some},
        {"lora_A.weight": none, "lora_B.weight": some, "lora_B.bias": some[0]},
        {"lora_A.weight": none, "lora_B.weight": some, "diff_b": some[0]},
        {"lora_A.weight": some, "lora_B.weight": some, "lora_A.bias": none[0]},
        {"boft_R": none, "boft_s": some},
        {"bm.weight": none, "a1.weight": some, "a2.weight": some, "b1.weight": none, "b2.weight": none},
    ):
        with pytest.raises(WeightsError, match=r"does not have|modules that are"):
            opened(tmp_path, {**pair(UNET_MODULE), **{f"{NOWHERE}.{ending}": x for ending, x in more.items()}})
    embedding = {"lora_embedding_A": none, "lora_embedding_B": some}  # as PEFT begins
    assert opened(
        tmp_path, {**pair(UNET_MODULE), **{f"{NOWHERE}.{ending}": x for ending, x in embedding.items()}}
    ).notes


# ---- kinds that multiply the layer's own weight ----------------------------------------------------------------------


def test_they_are_written_again_as_they_were(tmp_path: Path) -> None:
    glora = {f"{UNET_MODULE}.{p}.weight": normal(i, *s) for i, (p, s) in enumerate(GLORA.items())}
    oft = {f"{TEXT_MODULE}.oft_blocks": 0.1 * normal(5, 8, 8, 8)}
    ia3 = {f"{CONV_MODULE}.ia3_l": 1 + 0.1 * normal(7, 32, 1)}
    file = opened(tmp_path, {**glora, **oft, **ia3})
    convert_lora(tmp_path / "b.safetensors", file, "kohya", tiny_networks()["unet"])
    again = read_lora(tmp_path / "b.safetensors", tiny_targets())
    for layer, change in file.layers.items():
        base = normal(8, *layer.kernel)
        assert error(again.layers[layer].matrix.on(base), change.matrix.on(base)) < 2e-5  # Cayley's inverse, in float32
    with pytest.raises(ValueError, match="multiplies the base model's own weights"):
        convert_lora(tmp_path / "c.safetensors", file, "peft", tiny_networks()["unet"])


GLORA = {"a1": (64, 2), "a2": (2, 64), "b1": (64, 2), "b2": (2, 64)}


def test_glora_of_old_files_is_the_other_way_round(tmp_path: Path) -> None:
    """comfy/weight_adapter/glora.py: b2 @ b1 + (W @ a2) @ a1."""
    found = {part: normal(i, *shape) for i, (part, shape) in enumerate(GLORA.items())}
    today = {f"{UNET_MODULE}.{part}.weight": x for part, x in found.items()}
    swapped = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    old = {f"{UNET_MODULE}.{part}.weight": found[other] for part, other in swapped.items()}
    base = normal(9, 64, 64)
    [one], [two] = (opened(tmp_path, tensors).layers.values() for tensors in (today, old))
    assert np.array_equal(one.matrix.on(base), two.matrix.on(base))
    wanted = base.T @ found["a1"] @ found["a2"] + found["b1"] @ found["b2"]
    assert error(one.matrix.on(base), wanted.T) < SAME
