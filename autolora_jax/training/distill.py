"""Distilling guidance: what AutoLoRA draws with four evaluations a step becomes a LoRA that draws it with one.

    round      draw      the teacher's trajectories, then the student's, labelled by the teacher at each state
               learn     `updates` optimizer steps over all that was drawn so far

Learning from its own trajectories keeps the student's errors from drifting away from what it has seen (DAgger, arXiv
1011.0686); learning a guided prediction is guidance distillation, arXiv 2210.03142.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np

from autolora_jax import lora
from autolora_jax.config import ConfigError
from autolora_jax.output import Output
from autolora_jax.pictures import Picture
from autolora_jax.pipeline import AutoLoRAPipeline
from autolora_jax.schedules import FINER
from autolora_jax.settings.call import Call
from autolora_jax.settings.distilling import DistillConfig
from autolora_jax.settings.rules import CFG, NEUTRAL, NoGuidance, Rule, to_dict
from autolora_jax.sharding import replicated
from autolora_jax.training.cache import fingerprint
from autolora_jax.training.checkpoints import Checkpoints
from autolora_jax.training.header import as_texts, learned_header, names_of
from autolora_jax.training.loop import Report, fit
from autolora_jax.training.lora import CHECKPOINTS, SAMPLES, OnSample, corners, places, recomputed
from autolora_jax.training.optimizer import learning_rate, make_optimizer
from autolora_jax.training.progress import OnTrain, TrainProgress
from autolora_jax.training.step import State, initial_state
from autolora_jax.training.student import Start, StudentLoss, begin, model_of, most_ranks, trees_of
from autolora_jax.training.teacher import LESSONS, Course, Pairs, student_run
from autolora_jax.weights.lora.distilled import Distilled
from autolora_jax.weights.lora.files import read_lora
from autolora_jax.weights.lora.metadata import by_component

PAIRS = "pairs"  # in the work folder, while a run lasts


class Outline(NamedTuple):
    """What a run is about to do, told before its first step.

    rows: states a step learns from. layers: component -> layers that learn. parameters: numbers that learn.
    steps: optimizer steps. finished: those that are done, by a checkpoint.
    """

    model: str
    teacher: Rule
    loras: tuple[str, ...]
    prompts: int
    student_steps: int
    teacher_steps: int
    layers: Mapping[str, int]
    parameters: int
    devices: int
    rows: int
    steps: int
    finished: int


OnOutline = Callable[[Outline], None]


def distill_lora(
    pipe: AutoLoRAPipeline,
    prompts: Sequence[str],
    out: str | PathLike[str],
    config: DistillConfig = DistillConfig(),  # noqa: B008  # frozen
    *,
    work: str | PathLike[str] | None = None,
    dialect: str = "kohya",
    save_dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
    on_start: OnOutline | None = None,
    on_progress: OnTrain | None = None,
    on_sample: OnSample | None = None,
    **drawing: Any,
) -> lora.LoraReport:
    """Distils what the pipeline draws with its LoRAs and a guidance into one LoRA, and writes it to `out`.

    The teacher is the pipeline as a call with `drawing` would use it: AutoLoRA where LoRAs are loaded, CFG where none
    are, unless it says guidance=…; its negative prompt, size, scheduler and steps. No pictures are needed: only the
    latents' states on their way. The file stands for all LoRAs that act on the tuned model, at their scales, with what
    they change of text encoders. Its header says what it stands for and how to draw with it.

    prompts: a few dozen of what will be asked for. out: a .safetensors file.
    work: checkpoints and, while it runs, states: two latents each, for every step of every picture; default: the
        folder `<out without ending>.train`.
        A run that finds a checkpoint of the same settings there goes on from it, to the very numbers of an
        uninterrupted one.
    dialect, save_dtype, metadata, on_progress: as for train_lora. on_sample: gets pictures that the student draws.
    on_start: told what the run is, when all of it is known.
    Raises ConfigError for settings that can't be meant or differ from those of the checkpoint found, TrainingError when
    the loss is not finite, WeightsError for unwritable files.
    """
    out, folder = places(pipe, out, work, dialect, save_dtype)
    tell = on_progress or (lambda progress: None)
    course = _course(pipe, list(prompts), config, drawing)
    name, model = pipe.family.denoiser, pipe.lora_targets()
    loras = _strengths(course)
    words = {word.name: word.vectors for word in pipe.text.words if word.lora is not None}
    start = begin(loras, model, name, config, {} if config.target == "dial" else words)
    identity = _identity(course, start, loras)
    pairs = Pairs(course, folder / PAIRS / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16])
    for done in pairs.tell():
        tell(TrainProgress("captions", done, len(set(course.prompts))))

    params = pipe.params[name]
    assert course.call.size is not None
    loss = StudentLoss(pipe.denoiser.clone(remat=recomputed(config.gradient_checkpointing, [course.call.size])))
    frozen = {"params": params, "fixed": lora.stack(start.fixed), "scales": np.array(start.scales, np.float32)}
    optimizer = make_optimizer(config.optimizer, config.total)
    rate = learning_rate(config.optimizer, config.total)
    state = initial_state(start.learned, optimizer)

    def on_step(report: Report) -> None:
        metrics = {**report.metrics, "learning_rate": float(rate(report.step - 1))}
        tell(TrainProgress("train", report.step, config.total, metrics))

    def on_state(state: State) -> None:
        if on_sample:
            tell(TrainProgress("sample", int(state.step), config.total))
            on_sample(int(state.step), draw_samples(course, start, state.trainable, out.stem))

    with Checkpoints(folder / CHECKPOINTS, identity) as checkpoints:
        state = checkpoints.restore(jax.device_put(state, replicated(pipe.mesh)))
        if on_start:
            on_start(_outline(course, start, loras, int(state.step)))
        for number in range(config.rounds) if int(state.step) < config.total else ():
            begun = int(state.step) - number * config.updates
            leading = partial(model_of, start, state.trainable, params) if begun <= 0 else None
            for done in pairs.fill(number, leading, start.scales):
                tell(TrainProgress("draw", number * course.batches + done, config.rounds * course.batches))
            if begun >= config.updates:
                continue
            state = fit(
                loss,
                optimizer,
                state,
                frozen,
                pairs.batch_at,
                (number + 1) * config.updates,
                pipe.mesh,
                checkpoints=checkpoints,
                save_every=config.save_every,
                on_step=on_step,
                every=config.sample_every,
                on_state=on_state,
            )
    tell(TrainProgress("save", 0, 1))
    header = {**_header(course, start, loras, out.stem), **(metadata or {})}
    trees = trees_of(start, state.trainable, name)
    lora.save_lora(out, trees, dialect, header, pipe.denoiser.config, save_dtype, start.embeddings)
    shutil.rmtree(folder / PAIRS, ignore_errors=True)
    tell(TrainProgress("save", 1, 1))
    return lora.report(read_lora(out, model))


def _course(pipe: AutoLoRAPipeline, prompts: list[str], config: DistillConfig, drawing: Mapping[str, Any]) -> Course:
    """Raises ConfigError, ValueError."""
    if not prompts:
        raise ConfigError("there are no prompts to draw: a few dozen of what will be asked for are needed")
    few = config.student_steps
    if few is not None and not pipe.scheduler.flow and drawing.get("timestep_spacing") is None:
        drawing = {**drawing, "timestep_spacing": "trailing"}
    if few is not None and drawing.get("scheduler") is None:
        drawing = {**drawing, "scheduler": "flow_euler" if pipe.scheduler.flow else "euler"}
    call = pipe.request(Call(prompts[:1], **drawing)).call
    if not isinstance(call.guidance, Rule):
        raise ConfigError("a teacher has one guidance; give one rule")
    if call.guidance_rescale != 0:
        raise ConfigError("guidance_rescale is no weighted sum of predictions, which is what is taught: leave it at 0")
    if call.skip is not None:
        raise ConfigError("skip-layer guidance can't be taught: leave skip_guidance_layers out")
    if other := [name for name, usual in NEUTRAL.items() if getattr(call.guidance, name, usual) != usual]:
        raise ConfigError(f"what is taught is a sum of the predictions of one step: leave out {', '.join(other)}")
    LESSONS[config.target](call.guidance, 1.0)
    if few is None:
        schedule = pipe.canvas.schedule(call)
        return Course(pipe, prompts, call, config, schedule, schedule)
    assert call.num_inference_steps is not None
    parts, left = divmod(call.num_inference_steps, few)
    if left or not parts:
        near = max(1, round(call.num_inference_steps / few)) * few
        raise ConfigError(
            f"the teacher takes {call.num_inference_steps} steps, the student {few}: need a multiple, such as {near}"
        )
    if call.scheduler not in FINER:
        fitting = [name for name in FINER if name.startswith("flow") == pipe.scheduler.flow]
        raise ConfigError(f"scheduler = {call.scheduler!r} can't be taken in fewer steps; use {', '.join(fitting)}")
    if config.target == "cfg":
        raise ConfigError("target 'cfg' and student_steps don't go together: several steps are no sum of predictions")
    fewer = dataclasses.replace(call, num_inference_steps=few)
    schedules = [pipe.canvas.schedule(fewer, parts=each) for each in (1, parts)]
    return Course(pipe, prompts, call, config, *schedules)


def _strengths(course: Course) -> list[tuple[lora.Loaded, float]]:
    """The LoRAs that make the tuned model, and how strong they are. Raises ConfigError for those that change."""
    request = course.request(0)
    found = []
    for i, each in enumerate(course.pipe.loras):
        scales = np.unique(request.scales["lora"][..., i])
        if len(scales) != 1:
            raise ConfigError(f"the scale of {each.name} changes over the steps, and a LoRA's file has one; give one")
        if scales[0]:
            found.append((each, float(scales[0])))
    return found


def draw_samples(course: Course, start: Start, learned: Any, name: str) -> Output:
    """A PIL picture per prompt as the student in training draws it, always from the same noise."""
    pipe, config = course.pipe, course.config
    prompts = config.sample_prompts or tuple(dict.fromkeys(course.prompts))[:SAMPLES]
    rule = course.lesson(0).student
    filled = [*prompts, *prompts[-1:] * (-len(prompts) % pipe.mesh.size)]
    call = dataclasses.replace(course.call, num_inference_steps=course.steps, guidance=rule)
    request = pipe.request(dataclasses.replace(call, prompt=filled, seeds=(0,)))
    model = model_of(start, learned, pipe.params[pipe.family.denoiser])
    run = student_run(pipe, request, course.student, model, rule, [*start.scales, 1.0])
    while run.done < run.total:
        run.advance()
    pictures, _ = jax.device_get(pipe.engine.decoded(run.state.x))
    told = {"model": pipe.name, "loras": [name], "lora_scales": [1.0]}
    settings = [{**row, **told} for row in request.settings()][: len(prompts)]
    return Output([*map(Picture.of, pictures, settings)], settings)


def _outline(course: Course, start: Start, loras: Sequence[tuple[lora.Loaded, float]], finished: int) -> Outline:
    assert isinstance(course.call.guidance, Rule)
    return Outline(
        model=course.pipe.name,
        teacher=course.call.guidance,
        loras=tuple(f"{each.name} at {scale:g}" for each, scale in loras),
        prompts=len(set(course.prompts)),
        student_steps=course.steps,
        teacher_steps=len(course.teacher.timestep),
        layers=by_component(layer.component for layer in start.layers),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(dict(start.learned))),
        devices=course.pipe.mesh.size,
        rows=course.rows * course.config.gradient_accumulation_steps,
        steps=course.config.total,
        finished=finished,
    )


def _header(course: Course, start: Start, loras: Sequence[tuple[lora.Loaded, float]], title: str) -> dict[str, str]:
    """What the file says of itself, under the keys that other programs read and our own."""
    pipe, call, config = course.pipe, course.call, course.config
    names = names_of(pipe.family.name, pipe.denoiser.config)
    assert isinstance(call.guidance, Rule)
    few = config.student_steps is not None
    student = CFG(getattr(call.guidance, "w2", None)) if config.target == "cfg" else NoGuidance()
    told = Distilled(
        target=config.target,
        teacher=call.guidance,
        guidance=student,
        steps=course.steps if few else None,
        scheduler=call.scheduler if few else None,
        timestep_spacing=call.timestep_spacing if few else None,
        details={
            "loras": [each.report.name for each, _ in loras],
            "scales": [scale for _, scale in loras],
            "roles": [each.role for each, _ in loras],
            "steps": call.num_inference_steps,
            "scheduler": call.scheduler,
            "negative_prompt": call.negative_prompt,
        },
    )
    ranks = most_ranks(start.learned)
    values = {
        **learned_header(pipe.name, names, pipe.scheduler, config.optimizer, title, config.total, config.seed),
        "modelspec.usage_hint": f"{told}",
        "modelspec.trigger_phrase": next((word for each, _ in loras for word in each.report.trigger_words[:1]), None),
        "ss_network_dim": ranks,
        "ss_network_alpha": ranks,
        "ss_total_batch_size": course.rows * config.gradient_accumulation_steps,
    }
    return {**as_texts(values), **told.header()}


# Settings that do not touch the numbers: a run may be resumed with others.
FREE = ("save_every", "sample_every", "sample_prompts")


def _identity(course: Course, start: Start, loras: Sequence[tuple[lora.Loaded, float]]) -> dict[str, Any]:
    """All that the numbers of a run depend on, as JSON values."""
    pipe, call = course.pipe, course.call
    settings = {name: value for name, value in dataclasses.asdict(course.config).items() if name not in FREE}
    assert isinstance(call.guidance, Rule)
    trees = hashlib.sha256()
    for leaf in jax.tree.leaves([start.learned, start.fixed, start.beside]):
        trees.update(np.asarray(leaf).tobytes())
    schedule = hashlib.sha256(b"".join(np.asarray(row).tobytes() for row in jax.tree.leaves(course.teacher)))
    passing = ("guidance", "lora_scale", "prompt", "seeds", "progress", "on_progress", "on_images", "batch_size")
    drawing = {
        field.name: repr(value)
        for field in dataclasses.fields(call)
        if field.name not in passing and (value := getattr(call, field.name)) != field.default
    }
    return {
        **settings,
        "model": pipe.name,
        "weights": fingerprint(pipe.denoiser, corners(pipe.params[pipe.family.denoiser]))[:16],
        "dtype": str(pipe.denoiser.dtype),
        "devices": pipe.mesh.size,
        "guidance": to_dict(call.guidance),
        "drawing": drawing,
        "schedule": schedule.hexdigest()[:16],
        "loras": [f"{each.report.name}:{scale!r}" for each, scale in loras],
        "student": trees.hexdigest()[:16],
        "prompts": hashlib.sha256(json.dumps(course.prompts).encode()).hexdigest()[:16],
    }
