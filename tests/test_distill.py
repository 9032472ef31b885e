"""Guidance distilled into a LoRA: what is learned from, whole runs stopped and resumed, and the file in diffusers."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline, NoGuidance, lora
from autolora_jax.config import ConfigError, SchedulerConfig
from autolora_jax.engine import texts_of
from autolora_jax.schedules import FINER, make_schedule
from autolora_jax.training import DistillConfig, OptimizerConfig, TrainProgress, distill_lora
from autolora_jax.training import distill as distilling
from autolora_jax.training.contexts import CONTEXTS, prompts_of
from autolora_jax.training.loop import TrainingError
from autolora_jax.training.student import begin, trees_of
from autolora_jax.training.teacher import Course, taught
from autolora_jax.weights.lora.distilled import HEADER_KEY, Usual, distilled_in, distilled_of, usual_of
from tests.parity import channels_first, error, normal
from tests.programs import autolora

PREDICTION = 2e-5  # of the largest; seen: 1.2e-6
PROMPTS = ["the cat", "a dog", "the dog, a cat"]
RULE = AutoLoRA(gamma=1.5, w1=3.0, w2=4.0)
DRAWING: dict[str, Any] = {"guidance": RULE, "num_inference_steps": 4}
CONFIG = DistillConfig(
    optimizer=OptimizerConfig(learning_rate=5e-3, weight_decay=0.0),
    rank=2,
    layers=("cross_attention",),
    rounds=2,
    trajectories=4,
    updates=4,
    batch_size=4,
    save_every=2,
    sample_every=0,
)
NAME = "cat.safetensors"


@pytest.fixture(scope="module")
def small_lora(small_folder: Path) -> Path:
    return small_folder / "small:0.5.safetensors"


@pytest.fixture(scope="module")
def pipe(small_folder: Path, small_lora: Path) -> AutoLoRAPipeline:
    """On one device, because compiling is what these tests wait for, with its LoRA at 0.5; test_distill_sd3 has two."""
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    pipe.load_lora(small_lora, 0.5)
    return pipe


def course_of(pipe: AutoLoRAPipeline, config: DistillConfig = CONFIG, **drawing: Any) -> Course:
    return distilling._course(pipe, PROMPTS, config, DRAWING | drawing)


# ---- what is learned from --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand(pipe: AutoLoRAPipeline) -> Callable[[Course, np.ndarray, int], dict[tuple[str, int], np.ndarray]]:
    """(course, states, step) -> (weights, prompt) -> the network's prediction, asked for one by one."""
    predict = jax.jit(pipe.denoiser.apply)

    def predictions(course: Course, x: np.ndarray, step: int) -> dict[tuple[str, int], np.ndarray]:
        told = pipe.text.conditioning(texts_of(course.request(0), np.arange(len(x))))
        scale, t = (np.float32(row[step]) for row in (course.student.input_scale, course.student.timestep))
        found = {}
        for kind, strength in (("base", 0.0), ("lora", 0.5)):
            delta = lora.at_scale(pipe._delta["unet"], np.float32([strength]))
            for side in (0, 1):
                words = {name: jnp.asarray(rows[:, side]) for name, rows in told[kind].items()}
                variables = {"params": pipe.params["unet"], "lora": delta}
                found[kind, side] = np.asarray(predict(variables, scale * x, jnp.full(len(x), t), **words))
        return found

    return predictions


def autolora_of(e: dict[tuple[str, int], np.ndarray], gamma: float, w1: float, w2: float) -> np.ndarray:
    """Eq. 7 of the paper."""
    base = e["base", 0] + w1 * (e["base", 1] - e["base", 0])
    tuned = e["lora", 0] + w2 * (e["lora", 1] - e["lora", 0])
    return base + gamma * (tuned - base)


def test_targets_are_the_guided_predictions_along_the_teachers_way(pipe, by_hand):
    course = course_of(pipe)
    found = taught(course, 0, None, ())
    x, target = found["x"], found["target"][0]
    assert x.shape == (4, 4, 8, 8, 4) and found["target"].shape == (1, *x.shape)
    sigma = np.append(course.student.initial_scale * 0 + 1 / course.student.input_scale**2 - 1, 0) ** 0.5
    for step in range(4):
        guided = autolora_of(by_hand(course, x[step], step), 1.5, 3.0, 4.0)
        assert error(target[step], guided) < 2e-5  # seen: 2e-6
        if step < 3:  # Euler's step
            assert error(x[step + 1], x[step] + (sigma[step + 1] - sigma[step]) * guided) < 1e-5


def test_cfg_of_its_targets_is_autolora_at_any_scale(pipe, by_hand):
    course = course_of(pipe, dataclasses.replace(CONFIG, target="cfg"))
    found = taught(course, 0, None, ())
    yes, no = found["target"]
    e = by_hand(course, found["x"][2], 2)
    for w in (1.0, 4.0, 7.0):
        assert error(no[2] + w * (yes[2] - no[2]), autolora_of(e, 1.5, w, w)) < 2e-5


def test_the_dials_targets_lie_between_the_lora_and_autolora(pipe, by_hand):
    course = course_of(pipe, dataclasses.replace(CONFIG, target="dial"))
    strengths = [course.strength(batch) for batch in range(200)]
    assert 0 <= min(strengths) < 0.05 and 0.95 < max(strengths) <= 1 and abs(np.mean(strengths) - 0.5) < 0.07
    found = taught(course, 0, None, ())
    a, e = found["strength"][0], by_hand(course, found["x"][1], 1)
    assert a == np.float32(strengths[0])
    wanted = (1 - a) * e["lora", 1] + a * autolora_of(e, 1.5, 3.0, 4.0)
    assert error(found["target"][0, 1], wanted) < 2e-5


def test_a_step_of_the_few_lands_where_the_teachers_several_do(pipe):
    course = course_of(pipe, dataclasses.replace(CONFIG, student_steps=2), num_inference_steps=6)
    assert (course.steps, course.parts, course.call.scheduler) == (2, 3, "euler")
    assert course.call.timestep_spacing == "trailing"
    found = taught(course, 0, None, ())
    x, target, table = found["x"], found["target"][0], course.student
    denoised = table.denoised_from_x[0] * x[0] + table.denoised_from_prediction[0] * target[0]
    assert error(table.keep[0] * x[0] + table.toward[0] * denoised, x[1]) < 1e-5
    assert error(table.denoised_from_x[1] * x[1] + table.denoised_from_prediction[1] * target[1], _end(course)) < 1e-5


def _end(course: Course) -> np.ndarray:
    """Where the teacher's whole run ends."""
    run = course.pipe.engine.run(course.request(0), course.teacher, np.arange(course.rows))
    while run.done < run.total:
        run.advance()
    return np.asarray(run.state.x)


@pytest.mark.parametrize("name", FINER)
def test_divided_steps_come_by_the_whole_ones(name: str):
    flow = name.startswith("flow")
    kind = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0} if flow else {}
    config = SchedulerConfig.from_dict(kind) if flow else SchedulerConfig()
    for spacing in (None,) if flow else ("trailing", "leading"):
        whole, fine = (make_schedule(config, 5, name, spacing, parts=parts) for parts in (1, 4))
        for row in ("timestep", "input_scale", "denoised_from_x", "denoised_from_prediction"):
            np.testing.assert_array_equal(getattr(fine, row)[::4], getattr(whole, row))
        assert (np.diff(fine.timestep) < 0).all() and len(fine.timestep) == 20
        np.testing.assert_allclose(fine.keep.reshape(5, 4).prod(axis=1), whole.keep, atol=1e-6)
        assert fine.initial_scale == whole.initial_scale


def test_batches_are_a_function_of_the_step(pipe, tmp_path):
    course = course_of(pipe)
    pairs = distilling.Pairs(course, tmp_path)
    assert [*pairs.tell()][-1] == len(PROMPTS) and [*pairs.fill(0, lambda: None, ())] == [1]
    one, other = pairs.batch_at(2), distilling.Pairs(course, tmp_path)
    assert [*other.tell()]
    jax.tree.map(np.testing.assert_array_equal, other.batch_at(2), one)
    assert one["x"].shape == (1, 4, 8, 8, 4) and one["timestep"].shape == one["strength"].shape == (1, 4)
    assert not np.array_equal(pairs.batch_at(3)["timestep"], one["timestep"])


# ---- the student -----------------------------------------------------------------------------------------------------


def test_a_student_that_learned_nothing_is_the_lora(pipe, small_folder, tmp_path):
    start = begin([(pipe.loras[0], 0.5)], pipe.lora_targets(), "unet", CONFIG, {})
    lora.save_lora(tmp_path / NAME, trees_of(start, start.learned, "unet"), denoiser_config=pipe.denoiser.config)
    call = dict(guidance=NoGuidance(), num_inference_steps=2, output_type="latent", seeds=[0, 1])
    expected = pipe(PROMPTS[0], **call).images
    other = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    other.load_lora(tmp_path / NAME)
    assert error(other(PROMPTS[0], **call).images, expected) < 1e-5
    assert {rank for rank in other.loras[0].report.ranks} <= {2, 3, 4, 5, 6}


def test_what_is_no_low_rank_is_refused_for_the_file(pipe, tmp_path):
    tree = {"mid_block": {"resnets_0": {"conv1": {"terms": {"0": {"owner": np.int32(0)}}}}}}
    odd = dataclasses.replace(pipe.loras[0], trees={"unet": tree})
    with pytest.raises(ConfigError, match=r"conv1 is changed by more than a low rank .* autolora resize FILE"):
        begin([(odd, 1.0)], pipe.lora_targets(), "unet", CONFIG, {})
    assert begin([(odd, 1.0)], pipe.lora_targets(), "unet", dataclasses.replace(CONFIG, target="dial"), {}).fixed


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def losses() -> list[float]:
    return []


@pytest.fixture(scope="module")
def whole(pipe: AutoLoRAPipeline, tmp_path_factory: pytest.TempPathFactory, losses: list[float]) -> Path:
    """The LoRA of a run that was never stopped."""

    def told(progress: TrainProgress) -> None:
        losses.extend([progress.metrics["loss"]] if progress.stage == "train" else [])

    out = tmp_path_factory.mktemp("whole") / NAME
    distill_lora(pipe, PROMPTS, out, CONFIG, on_progress=told, **DRAWING)
    return out


def at(stage: str, done: int, act: Callable[[], Any]) -> Callable[[TrainProgress], None]:
    """An `on_progress` that acts when it is told of this."""

    def on_progress(progress: TrainProgress) -> None:
        if (progress.stage, progress.done) == (stage, done):
            act()

    return on_progress


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_loss_falls(whole, losses):
    assert len(losses) == 8 and np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert not (whole.with_suffix(".train") / distilling.PAIRS).exists()


def test_stopped_runs_go_on_to_the_same_file(pipe, whole, tmp_path):
    """In the middle of learning, and while the second round's pictures are drawn."""
    out = tmp_path / NAME
    for stage, done in (("train", 3), ("draw", 2)):
        with pytest.raises(KeyboardInterrupt):
            distill_lora(pipe, PROMPTS, out, CONFIG, on_progress=at(stage, done, interrupt), **DRAWING)
    assert not out.exists()
    told: list[TrainProgress] = []
    distill_lora(pipe, PROMPTS, out, CONFIG, on_progress=told.append, **DRAWING)
    assert [p.done for p in told if p.stage == "train"] == [5, 6, 7, 8]
    assert out.read_bytes() == whole.read_bytes()


def test_a_killed_run_goes_on_and_compiles_nothing(pipe, whole, tmp_path, count_compilations):
    out, checkpoints = tmp_path / NAME, tmp_path / "cat.train" / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        distill_lora(pipe, PROMPTS, out, CONFIG, on_progress=at("train", 6, interrupt), **DRAWING)
    for step in checkpoints.iterdir():
        if step.name in ("6", "7"):
            shutil.rmtree(step)
    with count_compilations() as compiled:
        report = distill_lora(pipe, PROMPTS, out, CONFIG, **DRAWING)
    assert out.read_bytes() == whole.read_bytes() and compiled == []
    assert report.modules.keys() == {"unet", "text_encoder", "text_encoder_2"}


def test_states_that_are_gone_can_not_be_drawn_again(pipe, whole, tmp_path):
    """By a student that has learned since."""
    shutil.copytree(whole.with_suffix(".train"), tmp_path / "cat.train")
    shutil.rmtree(tmp_path / "cat.train" / "checkpoints" / "8")
    with pytest.raises(TrainingError, match=r"000001\.safetensors, which round 2 learned from, is gone"):
        distill_lora(pipe, PROMPTS, tmp_path / NAME, CONFIG, **DRAWING)


@pytest.mark.parametrize(
    ("change", "drawing", "words"),
    [
        ({"seed": 1}, {}, "seed was 0, is 1"),
        ({}, {"guidance": AutoLoRA(2.0, 3.0, 4.0)}, "guidance.gamma was 1.5, is 2.0"),
        ({}, {"num_inference_steps": 8}, "schedule was"),
        ({}, {"negative_prompt": "a dog"}, "drawing.negative_prompt was"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(pipe, whole, change: Any, drawing: Any, words: str):
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(ConfigError, match=f"other settings: .*{words}"):
        distill_lora(pipe, PROMPTS, whole, config, **DRAWING | drawing)


@pytest.mark.parametrize(
    ("change", "drawing", "words"),
    [
        ({"student_steps": 3}, {}, "the teacher takes 4 steps, the student 3: need a multiple, such as 3"),
        ({"student_steps": 2}, {"scheduler": "dpmpp_2m"}, "'dpmpp_2m' can't be taken in fewer steps; use euler"),
        ({"student_steps": 2, "target": "cfg"}, {}, "don't go together"),
        ({"target": "cfg"}, {"guidance": CFG(3.0)}, "is what CFG makes AutoLoRA of"),
        ({}, {"guidance_rescale": 0.5}, "guidance_rescale is no weighted sum"),
        ({}, {"guidance": AutoLoRA(refresh_base=2, apg_eta=0.5)}, "leave out refresh_base, apg_eta"),
        ({}, {"lora_scale": np.linspace(0, 1, 4, dtype=np.float32).reshape(1, 4, 1)}, "changes over the steps"),
    ],
)
def test_what_can_not_be_taught_is_refused(pipe, tmp_path, change: Any, drawing: Any, words: str):
    with pytest.raises(ConfigError, match=words):
        distill_lora(pipe, PROMPTS, tmp_path / NAME, dataclasses.replace(CONFIG, **change), **DRAWING | drawing)


# ---- the file --------------------------------------------------------------------------------------------------------


def test_its_header_says_what_it_is_and_how_to_draw_with_it(whole):
    said = distilled_in(whole)
    assert said is not None and (said.target, said.teacher, said.guidance) == ("full", RULE, NoGuidance())
    assert said.steps is None and said.scheduler is None
    assert said.details["loras"] == ["small:0.5"] and said.details["scales"] == [0.5] and said.details["steps"] == 4
    with safe_open(whole, "np") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert str(said) == "AutoLoRA (gamma 1.5, w1 3, w2 4); drawn with NoGuidance"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"target": "full", "teacher": {"rule": "magic"}, "guidance": {}}'])
def test_headers_that_say_something_else_are_not_believed(text: str):
    assert distilled_of({HEADER_KEY: text}) is None and distilled_of({}) is None


def test_it_is_drawn_without_guidance_unless_told_otherwise(small_folder, whole):
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    report = pipe.load_lora(whole, name="cat")
    assert "stands for" in str(report)

    def drawn(**asked: Any) -> dict[str, Any]:
        return pipe("the cat", num_inference_steps=1, output_type="latent", **asked).settings[0]

    assert drawn()["guidance"] == NoGuidance() and drawn(guidance=CFG(2.0))["guidance"] == CFG(2.0)
    pipe.set_lora("cat", role="all")
    assert drawn()["guidance"] == CFG(5.0)


def test_a_students_steps_are_usual_where_none_are_asked_for(whole):
    said = distilled_in(whole)
    assert said is not None
    few = dataclasses.replace(said, steps=8, scheduler="euler", timestep_spacing="trailing")
    assert distilled_of(few.header()) == few
    assert usual_of([(few, "tuned")]) == Usual(NoGuidance(), 8, "euler", "trailing")
    assert usual_of([(None, "tuned"), (few, "all"), (said, "tuned")]) == Usual(NoGuidance(), 8, "euler", "trailing")
    assert usual_of([(few, "base"), (None, "tuned")]) == Usual()


def test_diffusers_predicts_the_same_with_it(small_folder, whole):
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    pipe.load_lora(whole)
    told = pipe.conditioning("a cat, the dog", "")["lora"]
    positive = {name: jnp.asarray(value[:, 1]) for name, value in told.items()}
    sample, t = jnp.asarray(normal(1, 1, 8, 8, 4)), jnp.float32([321])
    predict = jax.jit(pipe.denoiser.apply)
    ours, base = (
        predict(
            {"params": pipe.params["unet"], "lora": lora.at_scale(pipe._delta["unet"], scale)}, sample, t, **positive
        )
        for scale in np.float32([[1], [0]])
    )
    assert error(ours, base) > 1e-2
    theirs = StableDiffusionXLPipeline.from_pretrained(small_folder)
    theirs.load_lora_weights(whole.parent, weight_name=whole.name)
    with torch.no_grad():
        hidden, _, pooled, _ = theirs.encode_prompt("a cat, the dog", do_classifier_free_guidance=False)
        added = {"text_embeds": pooled, "time_ids": torch.from_numpy(np.array(positive["time_ids"]))}
        prediction = theirs.unet(
            channels_first(np.asarray(sample)), torch.tensor([321]), hidden, added_cond_kwargs=added
        )
    assert error(positive["encoder_hidden_states"], hidden) < PREDICTION
    assert error(ours, prediction.sample) < PREDICTION


def test_prompts_are_made_of_trigger_words():
    made = prompts_of(["a zib", "pixel art"])
    assert len(made) == 2 * len(CONTEXTS) == len(set(made)) and made[:2] == ["a zib", "pixel art"]


# ---- the program -----------------------------------------------------------------------------------------------------


def test_the_command_leaves_a_lora_and_its_story(small_folder, small_lora, tmp_path, monkeypatch: pytest.MonkeyPatch):
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    out = tmp_path / "few.safetensors"
    numbers = ["--rank", 2, "--rounds", 2, "--trajectories", 4, "--updates", 2, "--batch-size", 4, "--warmup", 0]
    student = ["--steps", 4, "--student-steps", 2, "--sample-every", 4, "--sample-prompt", "the cat"]
    command = ["distill", small_folder, "--dtype", "float32", "--prompts", tmp_path / "prompts.txt", "--out", out]
    done = autolora(*command, *numbers, *student, "--lora", f"{small_lora}:0.5", "--gamma", 1.5)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"LoRA in {out}\n"
    work = out.with_suffix(".train")
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and (work / "samples" / "step-000004-0.png").exists()
    for said in ("teacher  ", "AutoLoRA (gamma 1.5, w1 5, w2 5)", "2, the teacher's 4 steps a picture", "Draw 2/2"):
        assert said in done.stderr

    info = autolora("info", out)
    assert "stands for" in info.stdout and "2 steps of euler with trailing timesteps" in info.stdout
    drawn = autolora(
        "generate", small_folder, "--lora", out, "--prompt", "a cat", "--dtype", "float32", "--out", tmp_path
    )
    assert drawn.exit_code == 0, drawn.output
    assert "few stands for AutoLoRA" in drawn.stderr
    saved = json.loads(autolora("info", next(tmp_path.glob("*.png"))).stdout)
    assert (saved["guidance"]["rule"], saved["steps"], saved["scheduler"]) == ("none", 2, "euler")

    again = autolora(*command, *numbers, *student, "--lora", f"{small_lora}:0.5", "--gamma", 2)
    assert again.exit_code == 1 and "--fresh starts anew" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "distil on which prompts? Give --prompts FILE"),
        (["--target", "ful"], "target = 'ful' is not known: did you mean 'full'?"),
        (["--out", "x.pt"], "should be a file whose name ends in .safetensors"),
        (["--strength", 0.5], "strength is of a picture that is changed"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[Any], message: str, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = autolora("distill", *arguments)
    assert result.exit_code in (1, 2) and message in result.stderr and "Traceback" not in result.stderr
