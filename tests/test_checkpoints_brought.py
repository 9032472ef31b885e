"""Checkpoints as other programs save them: read exactly, or refused with the true reason."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from autolora_jax.config import ConfigError, SchedulerConfig
from autolora_jax.schedules import make_schedule, own_scheduler
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import open_tensors
from autolora_jax.weights.inspect import describe
from tests.checkpoint_files import ldm_vae, networks_of, state_dict, write_single_file
from tests.parity import normal


def opened(path: Path, folder: Path, **more: Any) -> Any:
    return open_checkpoint(path, networks=networks_of(folder), tokenizer=folder, **more)


# ---- single files ----------------------------------------------------------------------------------------------------


def test_unused_tensors_of_clip_l_are_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    """ComfyUI from August 2023 to February 2024, ComfyUI#3161, OneTrainer#94."""
    start = "conditioner.embedders.0."
    extra = {f"{start}logit_scale": np.zeros(()), f"{start}text_projection": np.zeros((32, 32), np.float32)}
    opened(write_single_file(tmp_path / "a.safetensors", tiny_folder, extra), tiny_folder)


def test_one_stray_key_is_named_and_does_not_change_the_verdict(tiny_folder: Path, tmp_path: Path) -> None:
    for stray in ("cond_stage_model.transformer.x", "double_blocks.0.x", "a.lora_up.weight", "control_model.x"):
        path = write_single_file(tmp_path / "a.safetensors", tiny_folder, {stray: np.zeros(1)})
        with pytest.raises(WeightsError, match=f"a whole SDXL checkpoint with 1 tensors of no component: {stray}"):
            opened(path, tiny_folder)


def test_a_vae_alone_is_called_one(tiny_folder: Path, tmp_path: Path) -> None:
    own = state_dict(tiny_folder, "vae")
    ldms = {name: np.ascontiguousarray(x) for name, x in ldm_vae(own).items()}
    for form, tensors in {
        "ldm": ldms,
        "within": {f"first_stage_model.{k}": v for k, v in ldms.items()},
        "own": own,
    }.items():
        save_file(tensors, tmp_path / f"{form}.safetensors")
        with pytest.raises(WeightsError, match=r"looks like a VAE, .*: give it as vae= \(--vae\)"):
            open_checkpoint(tmp_path / f"{form}.safetensors")
        assert describe(tmp_path / f"{form}.safetensors").kind == "a VAE"


def test_8_bit_floats_with_factors_are_read_exactly(tmp_path: Path) -> None:
    """ComfyUI's scaled fp8 of 2024 (scale_weight) and of today (weight_scale, comfy_quant)."""
    weight = torch.from_numpy(normal(0, 8, 4)).to(torch.float8_e4m3fn)
    said = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    forms = {
        "old": {"a.scale_weight": torch.tensor([0.37]), "a.scale_input": torch.ones(1), "scaled_fp8": torch.empty(0)},
        "new": {"a.weight_scale": torch.tensor(0.37), "a.input_scale": torch.ones(1), "a.comfy_quant": said},
    }
    for form, beside in forms.items():
        save_torch({"a.weight": weight, **beside}, tmp_path / f"{form}.safetensors")
        with open_tensors(tmp_path / f"{form}.safetensors") as files:
            assert [*files.tensors] == ["a.weight"] and files.tensors["a.weight"].read_as == np.float32
            found = files.read("a.weight")
        assert found.dtype == np.float32
        assert np.array_equal(found, weight.float().numpy() * np.float32(0.37))
    bad = {"int8": torch.tensor(list(b'{"format": "int8"}'), dtype=torch.uint8)}
    for more in ({"a.comfy_quant": bad["int8"]}, {"a.scale_weight": torch.ones(8)}, {"b.scale_weight": torch.ones(1)}):
        save_torch({"a.weight": weight, **more}, tmp_path / "bad.safetensors")
        with pytest.raises(WeightsError, match=r"is quantised: .* get the fp16 or bf16 version"):
            open_tensors(tmp_path / "bad.safetensors")


# ---- solvers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "HeunDiscreteScheduler", "DEISMultistepScheduler", "Odd"])
def test_an_unknown_solver_leaves_its_noise_schedule(name: str) -> None:
    """diffusers#1089: another scheduler is made from_config of the file's."""
    raw = {**SchedulerConfig(prediction_type="v_prediction").to_dict(), "_class_name": name, "solver_order": 3}
    read = SchedulerConfig.from_dict(
        {**raw, "use_karras_sigmas": True, "predict_x0": True, "original_inference_steps": 50}
    )
    assert dataclasses.replace(read, unknown="") == SchedulerConfig(prediction_type="v_prediction")
    make_schedule(read, 4, "ddim", None, 64)
    with pytest.raises(ValueError, match=rf"asks for {name} .*, which is no solver of ours; .*--scheduler"):
        own_scheduler(read)
    written = read.to_dict()
    assert (written["_class_name"], written["solver_order"], written["use_karras_sigmas"]) == (name, 3, True)
    assert SchedulerConfig.from_dict(written) == read


@pytest.mark.parametrize("own", [{"algorithm_type": "sde-dpmsolver"}, {"solver_order": 3}])
def test_so_does_a_known_class_set_up_as_another_solver(own: dict[str, Any]) -> None:
    raw = {**SchedulerConfig(solver="dpmpp_2m").to_dict(), **own}
    read = SchedulerConfig.from_dict(raw)
    make_schedule(read, 4, "euler", None, 64)
    with pytest.raises(ValueError, match="is no solver of ours"):
        own_scheduler(read)
    assert own.items() <= read.to_dict().items() and SchedulerConfig.from_dict(read.to_dict()) == read


def test_an_unknown_solver_of_a_flow_is_one() -> None:
    raw = {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0}
    read = SchedulerConfig.from_dict(raw)
    assert read.flow and read.shift == 3.0 and read.unknown
    raw = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 2.5}
    assert SchedulerConfig.from_dict(raw).shift == 2.5
    with pytest.raises(ConfigError, match="_class_name = None should name a scheduler"):
        SchedulerConfig.from_dict({"shift": 3.0})
    with pytest.raises(ConfigError, match="'EDMEulerScheduler' has no betas, so its noise is not known"):
        SchedulerConfig.from_dict({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5})
