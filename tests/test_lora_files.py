"""LoRA files: every published key list finds all its layers or is refused with a reason; every dialect reads alike."""

import ast
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.dialects import naming_style, split_key
from autolora_jax.weights.lora.files import read_lora, targets_of
from autolora_jax.weights.lora.kinds import KINDS
from autolora_jax.weights.lora.match import examine_modules, match_layers, raise_problems
from autolora_jax.weights.lora.names import Names
from autolora_jax.weights.published import SDXL_BASE as SDXL
from autolora_jax.weights.tables import torch_module
from tests.lora_reference import UNET_MODULE, good, halves, saved, tiny_targets

Shapes = dict[str, tuple[int, ...]]

# Every key list of facts/lora that is in scope: layers it must change.
LOADED = {
    "kohya_sdxl_lora.txt": 986,
    "kohya_sdxl_locon_conv.txt": 1052,
    "kohya_sdxl_diffusers_blocknames.txt": 1052,
    "REAL_pixel-art-xl-v1.1.txt": 722,
    "LIKELY_princess_xl_v2.txt": 986,
    "lycoris/locon_sdxl.txt": 1052,
    "lycoris/attn-mlp_lora_sdxl.txt": 986,
    "diffusers/sdxl_peft.txt": 736,
    "diffusers/sdxl_dreambooth_unet.txt": 560,
    "diffusers/sdxl_dreambooth_unet_te_published_style.txt": 736,
    "diffusers/sdxl_dreambooth_unet_te_transformers5.txt": 736,
    "diffusers/sdxl_convert_state_dict_to_kohya.txt": 736,
    "diffusers/sdxl_attn_processor_2023.txt": 736,
    "diffusers/sdxl_peft_dora.txt": 560,
    "lycoris/locon_dora_sdxl.txt": 1052,
    "lycoris/locon_dora_wd_on_input_sdxl.txt": 1052,
    "lycoris/loha_dora_sdxl.txt": 1052,
    "lycoris/lokr_dora_sdxl.txt": 1052,
    "lycoris/loha_sdxl.txt": 1052,
    "lycoris/loha_tucker_sdxl.txt": 1052,
    "lycoris/lokr_sdxl.txt": 1052,
    "lycoris/lokr_full_matrix_sdxl.txt": 1052,
    "lycoris/lokr_tucker_decompose_both_sdxl.txt": 1052,
    "lycoris/locon_tucker_sdxl.txt": 1052,
    "lycoris/locon_train_norm_sdxl.txt": 1307,
    "lycoris/full_sdxl.txt": 1052,
    "lycoris/glora_sdxl.txt": 1052,
    "lycoris/diag-oft_sdxl.txt": 1052,
}
# All others: words that the refusal must have.
REFUSED = {
    "REAL_pixel-art-medium-128-v0.1.txt": ("looks made for Stable Diffusion 3", "PEFT/diffusers"),
    "kohya_sd3_lora.txt": ("looks made for Stable Diffusion 3", "kohya", "joint_blocks_0"),
    "kohya_sd3_lora_with_t5.txt": ("looks made for Stable Diffusion 3", "lora_te3_"),
    "kohya_sd3_lora_emb_dims.txt": ("looks made for Stable Diffusion 3", "lora_unet_context_embedder"),
    "kohya_sd35_medium_lora.txt": ("looks made for Stable Diffusion 3.5 Medium",),
    "diffusers/sd3_old_default_targets.txt": ("looks made for Stable Diffusion 3",),
    "diffusers/sd3_new_default_targets_with_te.txt": ("looks made for Stable Diffusion 3",),
}


def key_list(path: Path) -> Shapes:
    """name -> shape of a published key list."""
    rows = (line.split() for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: tuple(ast.literal_eval(shape)) for name, shape, _ in rows}


@pytest.fixture(scope="module")
def sdxl_names() -> Names:
    return Names(targets_of(SDXL))


def test_every_kohya_name_finds_its_module(facts: Path, sdxl_names: Names) -> None:
    rows = [line.split("\t") for line in (facts / "lora/kohya_to_diffusers_map_sdxl.tsv").read_text().splitlines()[1:]]
    assert len(rows) == 1052
    for name, component, module, shape in rows:
        [(layer, _)] = sdxl_names[name].shares
        torch_shape = (layer.kernel[-1], layer.kernel[-2], *layer.kernel[:-2])
        assert (layer.component, torch_module(layer.path)) == (component, module)
        assert torch_shape == tuple(ast.literal_eval(shape))


def test_the_lists_are_all_there(facts: Path) -> None:
    found = {str(p.relative_to(facts / "lora")) for p in (facts / "lora").rglob("*.txt")}
    assert found == LOADED.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", LOADED)
def test_key_list_matches(facts: Path, sdxl_names: Names, name: str) -> None:
    shapes = key_list(facts / "lora" / name)
    match = match_layers(examine_modules(shapes), shapes, sdxl_names)
    assert match.problems.lines() == []
    assert len(match.layers) == LOADED[name]
    assert sorted(key for parts in match.modules.values() for key in parts.values()) == sorted(shapes)
    assert match.family == "SDXL"


@pytest.mark.parametrize("name", REFUSED)
def test_key_list_is_refused(facts: Path, sdxl_names: Names, name: str) -> None:
    shapes = key_list(facts / "lora" / name)
    with pytest.raises(WeightsError) as caught:
        raise_problems("file.safetensors", match_layers(examine_modules(shapes), shapes, sdxl_names))
    message = str(caught.value)
    for words in REFUSED[name]:
        assert re.search(words, message), message
    assert message.startswith("file.safetensors can't be applied exactly")
    assert len(message) < 2000


@pytest.mark.parametrize("name", REFUSED)
def test_describe_says_why_without_a_model(facts: Path, tmp_path: Path, name: str) -> None:
    tensors = {key: np.zeros(shape, np.float16) for key, shape in list(key_list(facts / "lora" / name).items())[:60]}
    about = describe_lora(saved(tmp_path / "a.safetensors", tensors))
    if about.family.startswith("Stable Diffusion 3"):
        assert not about.problems, about  # there are such models here
    elif not name.startswith(("kohya_sd3_lora", "diffusers/sd3_new")):
        assert about.problems, about  # those begin with text-encoder modules as SDXL has them


def test_tables_are_sound() -> None:
    assert all(kind.signs <= kind.parts.keys() for kind in KINDS)
    assert split_key("lora_unet_x.lora_down.weight") == ("lora_unet_x", "down")
    assert split_key("unet.a.lora_B.default_0.weight") == ("unet.a", "up")
    assert split_key("unet.a.attn1.processor.to_out_lora.up.weight") == ("unet.a.attn1.to_out.0", "up")
    assert split_key("unet.a.weight") is None
    assert naming_style(["lora_unet_input_blocks_1_0_op.alpha", "lora_te1_x.alpha"]) == "kohya (sgm block names)"
    assert naming_style([]) == "unknown"


def test_good_file(tmp_path: Path) -> None:
    file = read_lora(saved(tmp_path / "a.safetensors", good()), tiny_targets())
    by_path = {layer.path: change for layer, change in file.layers.items()}
    assert by_path.keys() == {
        "down_blocks_1/attentions_0/proj_in",
        "down_blocks_0/downsamplers_0/conv",
        "text_model/encoder/layers_0/mlp/fc1",
    }
    assert by_path["down_blocks_1/attentions_0/proj_in"].matrix.scale == 0.5
    assert by_path["down_blocks_0/downsamplers_0/conv"].matrix.down.shape == (3, 3, 32, 3)
    assert by_path["text_model/encoder/layers_0/mlp/fc1"].matrix.alpha is None
    assert file.dialect == "LoRA, kohya (sgm block names)"


@pytest.mark.parametrize(
    "alpha",
    [
        np.array(4, np.int64),
        np.array(4, np.int32),
        np.array(4.0, np.float16),
        np.array(4.0, ml_dtypes.bfloat16),
        np.array(4.0, np.float64),
        np.array([4.0], np.float32),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_alpha_of_any_type(tmp_path: Path, alpha: np.ndarray) -> None:
    tensors = {**halves(UNET_MODULE, 64, 64), f"{UNET_MODULE}.alpha": alpha}
    [change] = read_lora(saved(tmp_path / "a.safetensors", tensors), tiny_targets()).layers.values()
    assert change.matrix.alpha == 4.0 and change.matrix.scale == 2.0


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
def test_halves_of_other_float_types(tmp_path: Path, dtype: type) -> None:
    tensors = {k: v.astype(dtype) for k, v in halves(UNET_MODULE, 64, 64).items()}
    [change] = read_lora(saved(tmp_path / "a.safetensors", tensors), tiny_targets()).layers.values()
    assert change.matrix.down.dtype == dtype
    np.testing.assert_array_equal(change.matrix.down.T, tensors[f"{UNET_MODULE}.lora_down.weight"])


def test_linear_stored_as_convolution(tmp_path: Path) -> None:
    plain = halves(UNET_MODULE, 64, 64)
    conv = {k: v[:, :, None, None] for k, v in plain.items()}
    [a] = read_lora(saved(tmp_path / "a.safetensors", plain), tiny_targets()).layers.values()
    [b] = read_lora(saved(tmp_path / "b.safetensors", conv), tiny_targets()).layers.values()
    np.testing.assert_array_equal(a.matrix.down, b.matrix.down)
    np.testing.assert_array_equal(a.matrix.up, b.matrix.up)


@pytest.mark.parametrize("prefix", ["unet.", "unet.base_model.model.", "base_model.model.unet.", "base_model.model."])
@pytest.mark.parametrize("ending", ["lora_A.weight lora_B.weight", "lora_A.default.weight lora_B.default.weight"])
def test_peft_prefixes(tmp_path: Path, prefix: str, ending: str) -> None:
    down, up = halves("x", 64, 64).values()
    a, b = ending.split()
    module = f"{prefix}down_blocks.1.attentions.0.proj_in"
    file = read_lora(saved(tmp_path / "a.safetensors", {f"{module}.{a}": down, f"{module}.{b}": up}), tiny_targets())
    assert [layer.path for layer in file.layers] == ["down_blocks_1/attentions_0/proj_in"]


@pytest.mark.parametrize(
    "component, prefix",
    [
        (component, prefix.format(component) + inner)
        for component in ("text_encoder", "text_encoder_2")
        for prefix in ("{}.", "{}.base_model.model.", "base_model.model.{}.")
        for inner in ("text_model.", "")
    ],
)
def test_text_encoder_prefixes(tmp_path: Path, component: str, prefix: str) -> None:
    width = tiny_targets()[component][1].hidden_size  # type: ignore[attr-defined]
    down, up = halves("x", width, width).values()
    module = f"{prefix}encoder.layers.1.self_attn.q_proj.lora_linear_layer"
    file = read_lora(
        saved(tmp_path / "a.safetensors", {f"{module}.down.weight": down, f"{module}.up.weight": up}), tiny_targets()
    )
    [layer] = file.layers
    assert (layer.component, layer.path) == (component, "text_model/encoder/layers_1/self_attn/q_proj")
