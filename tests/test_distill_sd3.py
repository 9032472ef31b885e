"""SD3's guidance distilled, its flow in fewer steps, and the file in diffusers."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from autolora_jax import CFG, AutoLoRAPipeline, NoGuidance
from autolora_jax.training import DistillConfig, OptimizerConfig, TrainProgress, distill_lora
from autolora_jax.training.distill import _course
from autolora_jax.training.teacher import taught
from tests import reference_sd3
from tests.parity import error

PREDICTION = 2e-5  # of the reference's maximum; seen: 1.5e-6
CONFIG = DistillConfig(
    optimizer=OptimizerConfig(learning_rate=1e-2),
    student_steps=2,
    rank=4,
    layers=("attention", "feed_forward"),
    rounds=2,
    trajectories=4,
    updates=4,
    batch_size=2,
    sample_every=0,
)


def test_an_accelerator_of_the_base_model_draws_alike_in_diffusers(small_sd35: Path, tmp_path: Path):
    """Without a LoRA: CFG in four steps becomes a LoRA that draws in two without guidance."""
    pipe = AutoLoRAPipeline.from_pretrained(small_sd35, dtype="float32", devices=jax.devices()[:2])
    drawing = {"guidance": CFG(4.0), "num_inference_steps": 4}
    course = _course(pipe, ["a cat"], CONFIG, drawing)
    found, table = taught(course, 0, None, ()), course.student
    x, target = found["x"], found["target"][0]
    denoised = table.denoised_from_x[0] * x[0] + table.denoised_from_prediction[0] * target[0]
    assert error(table.keep[0] * x[0] + table.toward[0] * denoised, x[1]) < 1e-5  # seen: 2e-7

    losses: list[float] = []

    def told(progress: TrainProgress) -> None:
        losses.extend([progress.metrics["loss"]] if progress.stage == "train" else [])

    out = tmp_path / "fast.safetensors"
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e-2))
    report = distill_lora(pipe, ["a cat", "the dog"], out, config, dialect="peft", on_progress=told, **drawing)
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) and report.modules.keys() == {"transformer"}
    said = report.distilled
    assert said is not None and (said.guidance, said.steps, said.scheduler) == (NoGuidance(), 2, "flow_euler")

    pipe.load_lora(out)
    settings = pipe("a cat", output_type="latent").settings[0]
    assert (settings["guidance"], settings["steps"], settings["scheduler"]) == (NoGuidance(), 2, "flow_euler")
    changed, differs = reference_sd3.with_lora(pipe, small_sd35, out)
    assert changed > 1e-2  # the LoRA visibly changes it, or agreement would prove nothing
    assert differs < PREDICTION
