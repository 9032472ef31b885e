"""LoRA fine-tuning of a loaded pipeline: a folder of captioned pictures in, a LoRA file out."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autolora_jax import lora
from autolora_jax.config import ConfigError
from autolora_jax.pipeline import AutoLoRAPipeline, Output
from autolora_jax.settings.rules import CFG
from autolora_jax.settings.training import TrainConfig
from autolora_jax.sharding import WEIGHTS, replicated
from autolora_jax.training.cache import fingerprint
from autolora_jax.training.checkpoints import Checkpoints
from autolora_jax.training.data import ANY_SIZE, TrainingData, open_data
from autolora_jax.training.deltas import choose_layers, new_delta, stored_delta
from autolora_jax.training.denoiser import DenoiserLoss
from autolora_jax.training.header import names_of, training_header
from autolora_jax.training.loop import Report, fit
from autolora_jax.training.objective import Objective
from autolora_jax.training.optimizer import learning_rate, make_optimizer
from autolora_jax.training.progress import OnTrain, Summary, TrainProgress
from autolora_jax.training.step import State, initial_state
from autolora_jax.weights.lora.export import require_saveable
from autolora_jax.weights.lora.files import read_lora
from autolora_jax.weights.lora.metadata import by_component
from autolora_jax.weights.lora.names import Layer
from autolora_jax.weights.writing import require_writable

CHECKPOINTS = "checkpoints"  # in the work folder
CLIPS = ("text_encoder", "text_encoder_2")  # the encoders that may learn
LARGE = 512 * 512  # pixels from which activations are recomputed rather than kept
SAMPLES = 4  # pictures at most, where no prompts are given

OnStart = Callable[[Summary], None]
OnSample = Callable[[int, Output], None]  # finished steps, a picture per prompt


def train_lora(
    pipe: AutoLoRAPipeline,
    data: str | PathLike[str],
    out: str | PathLike[str],
    config: TrainConfig = TrainConfig(),  # noqa: B008  # frozen
    *,
    work: str | PathLike[str] | None = None,
    dialect: str = "kohya",
    save_dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
    on_start: OnStart | None = None,
    on_progress: OnTrain | None = None,
    on_sample: OnSample | None = None,
) -> lora.LoraReport:
    """Trains a LoRA of the pipeline's base model on a folder of captioned pictures, and writes it to `out`.

    data: see training.dataset.read_folder. out: a .safetensors file.
    work: checkpoints and latents; default: the folder `<out without ending>.train`. A run that finds a checkpoint of
        the same settings there goes on from it and ends with the very numbers of an uninterrupted one.
    dialect: "kohya" or "peft". save_dtype: of the file, "float32", "float16" or "bfloat16".
    metadata: further header entries, such as {"modelspec.trigger_phrase": …}.
    on_start: told what the run is, when all of it is known. on_progress: told of each stage and step.
    on_sample: gets the sample pictures, drawn with plain CFG at scale 1.
    What can be checked is checked before the first picture is encoded. Base weights stay as and where they are. LoRAs
    loaded into the pipeline are not used and must be unloaded first.
    Raises DatasetError for pictures that can't be trained on, ConfigError for settings that can't be meant or differ
    from those of the checkpoint found, TrainingError when the loss is not finite, WeightsError for unwritable files.
    """
    if pipe.reports:
        raise ValueError(
            "LoRAs are loaded into this pipeline; unload_lora() first: training starts from the base model"
        )
    out, folder = places(pipe, out, work, dialect, save_dtype)
    tell = on_progress or (lambda progress: None)
    model = pipe.lora_targets()
    denoiser = pipe.family.denoiser
    learning = (denoiser, *CLIPS) if config.lora.text_encoders else (denoiser,)
    chosen = choose_layers({name: model[name] for name in learning}, config.lora.targets)
    if config.lora.text_encoders and not any(layer.component in CLIPS for layer in chosen):
        raise ConfigError(
            f"text_encoders is on, but targets {config.lora.targets} are found in no layer of them; add 'attention' or "
            "'feed_forward', or turn it off"
        )
    objective = Objective(pipe.scheduler, config.loss)
    dataset = open_data(pipe, data, folder / "latents", config, tell)
    remat = recomputed(config.gradient_checkpointing, [crop.target for crop in dataset.latents.crops])
    loss = DenoiserLoss(
        name=denoiser,
        denoiser=pipe.denoiser.clone(remat=remat),
        encoders=tuple(pipe.text.encoders.items()),
        join=pipe.text.join(ANY_SIZE.max_sequence_length),
        objective=objective,
        lora_scale=config.lora.scale,
        caption_dropout=config.loss.caption_dropout,
    )
    if not dataset.embedded and pipe.text.streamed:
        where = ", ".join(pipe.text.streamed)
        raise ConfigError(
            f"{where} lies on the host, but is needed in every step where text encoders learn or captions are too many "
            "to keep their embeddings; load the pipeline with it on the device, or without it"
        )
    needed = (denoiser,) if dataset.embedded else (denoiser, *pipe.text.encoders)
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
            on_sample(int(state.step), draw_samples(pipe, trees, str(out), prompts))

    older = {"pictures": dataset.digest(by_size=True)}
    with Checkpoints(folder / CHECKPOINTS, _identity(pipe, dataset, config), older=older) as checkpoints:
        state = checkpoints.restore(jax.device_put(state, replicated(pipe.mesh)))
        if on_start:
            on_start(_summary(pipe, dataset, chosen, state, config, int(state.step)))
        state = fit(
            loss,
            optimizer,
            state,
            frozen,
            dataset.batches(config, pipe.mesh.size),
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
    rows, names = dataset.plan(config, pipe.mesh.size).batch_size, names_of(pipe.family.name, pipe.denoiser.config)
    header = {
        **training_header(pipe.name, names, objective, dataset.examples, config, rows, out.stem),
        **(metadata or {}),
    }
    lora.save_lora(out, trees, dialect, header, pipe.denoiser.config, save_dtype)
    tell(TrainProgress("save", 1, 1))
    return lora.report(read_lora(out, model))


def draw_samples(pipe: AutoLoRAPipeline, trees: Mapping[str, Any], name: str, prompts: Sequence[str]) -> Output:
    """A PIL picture per prompt by the LoRA in training, always from the same noise."""
    report = lora.LoraReport(name, "in training", {}, {}, {}, 0, (), {})
    pipe.add_lora(trees, report)
    try:
        return pipe(list(prompts), seeds=0, guidance=CFG(), progress=False)
    finally:
        pipe.unload_lora()


def places(
    pipe: AutoLoRAPipeline, out: str | PathLike[str], work: str | PathLike[str] | None, dialect: str, dtype: str
) -> tuple[Path, Path]:
    """The file that is to come of training, and the folder for what is kept meanwhile.

    Raises ValueError, ConfigError, WeightsError for a pipeline that can't learn and places that can't be written.
    """
    if pipe.mesh.shape[WEIGHTS] > 1:
        raise ValueError("training needs the whole model on every device; load the pipeline with weight_shards=1")
    if jnp.dtype(pipe.denoiser.dtype) == jnp.float16:
        raise ConfigError("gradients vanish in float16; load the pipeline for training with dtype bfloat16 or float32")
    out = Path(out)
    folder = Path(work) if work is not None else out.with_suffix(".train")
    require_places(out, folder, dialect, dtype)
    return out, folder


def recomputed(asked: bool | None, sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether activations are computed twice rather than kept: as asked, else by the largest size in pixels."""
    return max(height * width for height, width in sizes) > LARGE if asked is None else asked


def require_places(out: Path, work: Path, dialect: str, dtype: str) -> None:
    """Raises what would otherwise come when the training is done: ValueError or WeightsError."""
    require_saveable(out, dialect, dtype)
    require_writable(work)


def _summary(
    pipe: AutoLoRAPipeline,
    data: TrainingData,
    chosen: Sequence[Layer],
    state: State,
    config: TrainConfig,
    finished: int,
) -> Summary:
    devices = pipe.mesh.size
    plan = data.plan(config, devices)
    return Summary(
        model=pipe.name,
        pictures=len(data.examples),
        buckets=Counter(crop.target for crop in data.latents.crops),
        captions=len({example.caption for example in data.examples}),
        layers=by_component(layer.component for layer in chosen),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.trainable)),
        devices=devices,
        rows=plan.batch_size,
        steps=config.steps,
        steps_per_epoch=plan.steps_per_epoch,
        finished=finished,
    )


@jax.jit
def corners(params: Any) -> list[jax.Array]:
    """A few values of every tensor: whatever tuned or merged into the weights, it shows there."""
    return [leaf.reshape(-1)[:8] for leaf in jax.tree.leaves(params)]


# Settings that do not touch the numbers: a run may be resumed with others.
FREE = ("save_every", "sample_every", "sample_prompts")


def _identity(pipe: AutoLoRAPipeline, data: TrainingData, config: TrainConfig) -> dict[str, Any]:
    """All that the numbers of a run depend on, as JSON values."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}
    made_of = {
        "model": pipe.name,
        "weights": fingerprint(pipe.denoiser, corners(pipe.params[pipe.family.denoiser]))[:16],
        "dtype": str(pipe.denoiser.dtype),
        "devices": pipe.mesh.size,
    }
    return {**settings, **made_of, "pictures": data.digest(), "latents": data.latents.fingerprint[:16]}
