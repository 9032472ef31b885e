"""What PEFT says beside the tensors decides a LoRA's scale, or the file is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.files import read_lora
from autolora_jax.weights.lora.peft import PeftSettings
from tests.lora_reference import halves, saved, tiny_targets

PEFT_MODULE = "down_blocks.1.attentions.0.proj_in"


def peft_file(path: Path, raw: object, alpha: float | None = None) -> Path:
    """A PEFT file of one rank-2 module with a header; raw: the settings, or the text itself."""
    down, up = halves("x", 64, 64).values()
    tensors = {f"unet.{PEFT_MODULE}.lora_A.weight": down, f"unet.{PEFT_MODULE}.lora_B.weight": up}
    if alpha is not None:
        tensors[f"unet.{PEFT_MODULE}.alpha"] = np.array(alpha, np.float16)
    return saved(path, tensors, {"lora_adapter_metadata": raw if isinstance(raw, str) else json.dumps(raw)})


@pytest.mark.parametrize(
    "raw, scale",
    [
        ({"unet.r": 2, "unet.lora_alpha": 8}, 4.0),
        ({"unet.r": 2, "unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / 2**0.5),
        ({"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"proj_in": 1}}, 0.5),
        ({"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"roj_in": 1}}, 4.0),
        ({"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {f"^{PEFT_MODULE}": 3}}, 1.5),
        ({"unet.r": 16, "unet.lora_alpha": 8, "unet.rank_pattern": {"attentions.0.proj_in": 2}}, 4.0),
        ({"text_encoder.r": 5, "text_encoder.lora_alpha": 8}, 1.0),
        ({"unet.r": 2, "unet.lora_alpha": 8, "unet.use_dora": False, "unet.bias": "none", "unet.x": None}, 4.0),
    ],
)
def test_peft_scales(tmp_path: Path, raw: dict[str, object], scale: float) -> None:
    [change] = read_lora(peft_file(tmp_path / "a.safetensors", raw), tiny_targets()).layers.values()
    assert change.matrix.scale == pytest.approx(scale, rel=1e-12)


def test_peft_example_of_diffusers(facts: Path, tmp_path: Path) -> None:
    example = json.loads((facts / "lora/diffusers/lora_adapter_metadata_example.json").read_text())
    raw = {**json.loads(example["lora_adapter_metadata"]), "unet.r": 2}
    [change] = read_lora(peft_file(tmp_path / "a.safetensors", raw), tiny_targets()).layers.values()
    assert change.matrix.alpha == 4 and change.matrix.scale == 2


@pytest.mark.parametrize(
    "raw, words",
    [
        ({"unet.r": 4, "unet.lora_alpha": 8}, "rank 2, settings say 4"),
        ({"unet.r": 2, "unet.lora_alpha": 8, "unet.use_dora": True}, "without the magnitudes"),
        ({"unet.r": 2, "unet.use_dora": "yes"}, "use_dora"),
        ({"unet.r": 2, "unet.init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"unet.r": 2, "unet.modules_to_save": ["conv_in"]}, "modules_to_save"),
        ({"unet.r": 2, "unet.peft_type": "LOHA"}, "peft_type = 'LOHA'"),
        ({"unet.r": 2, "unet.some_new_thing": 3}, "some_new_thing = 3"),
        ({"unet.r": "2"}, "a positive integer"),
        ({"unet.r": True}, "a positive integer"),
        ({"unet.r": 2, "unet.lora_alpha": 10**400}, "must be a number"),
        ({"unet.r": 2, "unet.lora_alpha": "8"}, "must be a number"),
        ('{"unet.r": 2, "unet.lora_alpha": NaN}', "NaN is no JSON"),
        ({"unet.r": 2, "unet.use_rslora": "yes"}, "use_rslora"),
        ({"unet.r": 2, "unet.rank_pattern": [1]}, "rank_pattern must be an object"),
        ({"unet.r": 2, "unet.alpha_pattern": {"(a+)+": 1}}, "more than a module's name"),
        ({"unet.r": 2, "unet.alpha_pattern": {"a\\": 1}}, "more than a module's name"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("3", "expected an object"),
    ],
)
def test_peft_settings_refused(tmp_path: Path, raw: object, words: str) -> None:
    path = peft_file(tmp_path / "a.safetensors", raw)
    with pytest.raises(WeightsError, match=re.escape(words)) as caught:
        read_lora(path, tiny_targets())
    assert str(path) in str(caught.value)
    assert any(words in problem for problem in describe_lora(path, tiny_targets()).problems)


def test_alpha_tensor_and_peft_settings_must_agree(tmp_path: Path) -> None:
    settings = {"unet.r": 2, "unet.lora_alpha": 0.3}
    [change] = read_lora(peft_file(tmp_path / "a.safetensors", settings, 0.3), tiny_targets()).layers.values()
    assert change.matrix.alpha == 0.3  # not the tensor's 0.30005
    with pytest.raises(WeightsError, match="alphas that differ"):
        read_lora(peft_file(tmp_path / "b.safetensors", settings, 0.4), tiny_targets())


def test_peft_folder(tmp_path: Path) -> None:
    down, up = halves("x", 64, 64).values()
    module = f"base_model.model.{PEFT_MODULE}"
    tensors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    saved(tmp_path / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["proj_in"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    [change] = read_lora(tmp_path, tiny_targets()).layers.values()
    assert change.matrix.scale == 3
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(WeightsError, match="not valid JSON"):
        read_lora(tmp_path, tiny_targets())


def test_peft_pattern_is_pefts_own() -> None:
    from peft.utils.other import get_pattern_key

    module = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    for pattern in ("to_out.0", "0", "out.0", "attn1.to_out", f"^{module}", "^to_out.0", "attn..to_out.0", "blocks.0"):
        settings = PeftSettings(r=2, alpha_pattern={pattern: 5.0}, lora_alpha=1.0)
        assert (settings.alpha(module) == 5.0) == (get_pattern_key([pattern], module) == pattern), pattern
