"""LoRA fine-tuning of a loaded pipeline: a folder of captioned pictures in, a LoRA file out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from autolora_jax import lora
from autolora_jax.guidance import CFG
from autolora_jax.pipeline import AutoLoRAPipeline
from autolora_jax.sharding import DATA
from autolora_jax.text import ENCODERS
from autolora_jax.training.checkpoints import Checkpoints
from autolora_jax.training.config import TrainConfig
from autolora_jax.training.data import TrainingData, open_data
from autolora_jax.training.deltas import choose_layers, new_delta, stored_delta
from autolora_jax.training.denoiser import DenoiserLoss
from autolora_jax.training.header import training_header
from autolora_jax.training.loop import Report, fit
from autolora_jax.training.objective import Objective
from autolora_jax.training.optimizer import learning_rate, make_optimizer
from autolora_jax.training.progress import OnTrain, TrainProgress
from autolora_jax.training.step import State, initial_state
from autolora_jax.weights.lora.export import save_lora
from autolora_jax.weights.lora.files import read_lora

LARGE = 512 * 512  # pixels from which activations are recomputed rather than kept
SAMPLES = 4  # pictures at most, where no prompts are given


# Asked for samples: (finished steps, prompt, picture).
OnSample = Callable[[int, str, Any], None]


def train_lora(
    pipe: AutoLoRAPipeline,
    data: str | PathLike[str],
    out: str | PathLike[str],
    config: TrainConfig = TrainConfig(),  # noqa: B008  # frozen
    *,
    work: str | PathLike[str] | None = None,
    dialect: str = "kohya",
    metadata: Mapping[str, str] | None = None,
    on_progress: OnTrain | None = None,
    on_sample: OnSample | None = None,
) -> lora.LoraReport:
    """Trains a LoRA of the pipeline's base model on a folder of captioned pictures, and writes it to `out`.

    data: see training.dataset.read_folder. out: a .safetensors file.
    work: checkpoints and latents; default: the folder `<out without ending>.train`. A run that finds a checkpoint of
        the same settings there goes on from it and ends with the very numbers of an uninterrupted one.
    dialect: "kohya" or "peft". metadata: further header entries, such as {"modelspec.trigger_phrase": …}.
    on_progress: told of each stage and step. on_sample: gets the sample pictures, drawn with plain CFG at scale 1.
    Base weights stay as and where they are. LoRAs loaded into the pipeline are not used and must be unloaded first.
    Raises DatasetError for pictures that can't be trained on, ConfigError for settings that can't be meant or differ
    from those of the checkpoint found, TrainingError when the loss is not finite, WeightsError for unwritable files.
    """
    if pipe.reports:
        raise ValueError(
            "LoRAs are loaded into this pipeline; unload_lora() first: training starts from the base model"
        )
    out = Path(out)
    folder = Path(work) if work is not None else out.with_suffix(".train")
    tell = on_progress or (lambda progress: None)
    model = pipe.lora_targets()
    chosen = choose_layers(model if config.lora.text_encoders else {"unet": model["unet"]}, config.lora.targets)
    dataset = open_data(pipe, data, folder / "latents", config, tell)
    objective = Objective(
        pipe.scheduler,
        config.loss.min_snr_gamma,
        config.loss.noise_offset,
        config.loss.min_timestep,
        config.loss.max_timestep,
    )
    remat = config.gradient_checkpointing
    if remat is None:
        remat = max(crop.target[0] * crop.target[1] for crop in dataset.latents.crops) > LARGE
    loss = DenoiserLoss(
        unet=pipe.unet.clone(remat=remat),
        encoders=pipe.text.encoders,
        objective=objective,
        lora_scale=config.lora.scale,
        caption_dropout=config.loss.caption_dropout,
    )
    needed = ("unet",) if dataset.embedded else ("unet", *ENCODERS)
    frozen = {
        "seed": np.int32(config.seed),
        "empty_prompt": dataset.prompts[""],
        "params": {name: pipe.params[name] for name in needed},
    }
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = initial_state(new_delta(chosen, config.lora.rank, config.seed), optimizer)
    rate = learning_rate(config.optimizer, config.steps)

    def on_step(report: Report) -> None:
        metrics = {**report.metrics, "learning_rate": float(rate(report.step - 1))}
        tell(TrainProgress("train", report.step, report.steps, metrics))

    def on_state(state: State) -> None:
        if on_sample:
            tell(TrainProgress("sample", int(state.step), config.steps))
            prompts = config.sample_prompts or tuple(dict.fromkeys(e.caption for e in dataset.examples))[:SAMPLES]
            trees = stored_delta(state.trainable, config.lora.scale)
            for prompt, picture in zip(prompts, draw_samples(pipe, trees, str(out), prompts), strict=True):
                on_sample(int(state.step), prompt, picture)

    with Checkpoints(folder / "checkpoints", _identity(pipe, dataset, config)) as checkpoints:
        state = fit(
            loss,
            optimizer,
            state,
            frozen,
            dataset.batches(config, pipe.mesh.shape[DATA]),
            config.steps,
            pipe.mesh,
            checkpoints=checkpoints,
            save_every=config.save_every,
            on_step=on_step,
            every=config.sample_every,
            on_state=on_state,
        )
    tell(TrainProgress("save", 0, 1))
    trees = stored_delta(state.trainable, config.lora.scale)
    header = {**training_header(pipe.name, objective, dataset.examples, config, out.stem), **(metadata or {})}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_lora(out, trees, dialect, header, pipe.unet.config)
    tell(TrainProgress("save", 1, 1))
    return lora.report(read_lora(out, model))


def draw_samples(pipe: AutoLoRAPipeline, trees: Mapping[str, Any], name: str, prompts: Sequence[str]) -> list[Any]:
    """A PIL picture per prompt by the LoRA in training, always from the same noise."""
    report = lora.LoraReport(name, "in training", {}, {}, {}, 0, (), {})
    pipe.add_lora(trees, report)
    try:
        return list(pipe(list(prompts), seeds=0, guidance=CFG()).images)
    finally:
        pipe.unload_lora()


# Settings that do not touch the numbers: a run may be resumed with others.
FREE = ("save_every", "sample_every", "sample_prompts")


def _identity(pipe: AutoLoRAPipeline, data: TrainingData, config: TrainConfig) -> dict[str, Any]:
    """All that the numbers of a run depend on, as JSON values."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}
    return {**settings, "model": pipe.name, "dtype": str(pipe.unet.dtype), "pictures": data.digest()}
