"""What a student learns from: states of pictures on their way, and what the teacher does there.

    leader     the teacher's own run in the first round, the student's in the others: it goes through the states
    labels     runs of the teacher that are put into each state, and go from there as far as one step of the student's

    one part a step       what is to be predicted is what the guided prediction says of the picture: its D
    several parts         it is what a step of the student's would have to see to land where the teacher does:
                          x' = keep·x + toward·D, solved for D
    in both cases         target = (D − denoised_from_x·x) / denoised_from_prediction

Because guidance is a table of branches, what the teacher is for each target is a table, too:

    full    the rule's coefficients
    cfg     the rule's with w1 = w2 = 1 for the prompt and 0 for the negative one: CFG of these two at w is the rule's
            with w1 = w2 = w
    dial    (1 − a) times those of the LoRA alone, a times the rule's, for a strength a that is drawn for each batch
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import safe_open

from autolora_jax import guidance
from autolora_jax.config import ConfigError
from autolora_jax.engine import texts_of
from autolora_jax.lora import padded_scales
from autolora_jax.pipeline import AutoLoRAPipeline
from autolora_jax.request import Request
from autolora_jax.run import Run
from autolora_jax.sampler import Model
from autolora_jax.schedules import Schedule
from autolora_jax.settings.call import Call
from autolora_jax.settings.distilling import DistillConfig
from autolora_jax.settings.rules import CFG, AutoLoRA, NoGuidance, Rule
from autolora_jax.training.loop import TrainingError
from autolora_jax.weights.writing import write_safetensors

Tree = Mapping[str, Any]
NEGATIVE, POSITIVE = 0, 1


class Label(NamedTuple):
    """A teacher for one of the prompts. rules: with their shares of it."""

    side: int
    rules: tuple[tuple[Rule, float], ...]


class Lesson(NamedTuple):
    """How a target is taught. leads: the rules of the run through the states. student: what it is drawn with itself."""

    leads: tuple[tuple[Rule, float], ...]
    labels: tuple[Label, ...]
    student: Rule


def _full(rule: Rule, strength: float) -> Lesson:
    return Lesson(((rule, 1.0),), (Label(POSITIVE, ((rule, 1.0),)),), NoGuidance())


def _cfg(rule: Rule, strength: float) -> Lesson:
    if not isinstance(rule, AutoLoRA):
        raise ConfigError(f"target 'cfg' is what CFG makes AutoLoRA of, and {rule} is none; use 'full'")
    alone = [dataclasses.replace(rule, w1=w, w2=w) for w in (0.0, 1.0)]
    labels = tuple(Label(side, ((alone[side], 1.0),)) for side in (POSITIVE, NEGATIVE))
    return Lesson(((rule, 1.0),), labels, CFG(rule.w2))


def _dial(rule: Rule, strength: float) -> Lesson:
    mixed = ((NoGuidance(), 1 - strength), (rule, strength))
    return Lesson(mixed, (Label(POSITIVE, mixed),), NoGuidance())


# Target -> how it is taught, by a rule of one picture and the strength of what is learned.
LESSONS: Mapping[str, Callable[[Rule, float], Lesson]] = {"full": _full, "cfg": _cfg, "dial": _dial}


class Course(NamedTuple):
    """All that decides what is learned from, but for the student's state.

    call: of the teacher, its choices made, with no prompt and seed of its own. schedules: of the student, and of the
    teacher, which has `parts` steps for each of the student's.
    """

    pipe: AutoLoRAPipeline
    prompts: Sequence[str]
    call: Call
    config: DistillConfig
    student: Schedule
    teacher: Schedule

    @property
    def steps(self) -> int:
        """Of the student."""
        return len(self.student.timestep)

    @property
    def parts(self) -> int:
        """Steps of the teacher for each of the student's."""
        return len(self.teacher.timestep) // self.steps

    @property
    def rows(self) -> int:
        """Pictures drawn at once, on all devices."""
        return self.config.batch_size * self.pipe.mesh.size

    @property
    def batches(self) -> int:
        """Of pictures in a round."""
        return -(-self.config.trajectories // self.rows)

    def request(self, batch: int) -> Request:
        """What the teacher is asked for in a batch, counted over all rounds: the prompts in turn, ever new noise."""
        first = batch * self.rows
        numbers = range(first, first + self.rows)
        prompts = [self.prompts[i % len(self.prompts)] for i in numbers]
        seeds = [(self.config.seed + 1 << 32) + i for i in numbers]  # beyond those that pictures are drawn with
        return self.pipe.request(dataclasses.replace(self.call, prompt=prompts, seeds=seeds, paired=True))

    def strength(self, batch: int) -> float:
        """Of what is learned, in a batch: drawn for the dial."""
        if self.config.target != "dial":
            return 1.0
        return float(np.float32(np.random.default_rng((self.config.seed, 2, batch)).random()))

    def lesson(self, batch: int) -> Lesson:
        """How a batch is taught."""
        assert isinstance(self.call.guidance, Rule)
        return LESSONS[self.config.target](self.call.guidance, self.strength(batch))


def _plan(rules: Sequence[tuple[Rule, float]], n: int, steps: int) -> guidance.Plan:
    """The table of several rules with their shares."""
    plans = [guidance.plan(rule, n, steps) for rule, _ in rules]
    if len(plans) == 1:
        return plans[0]
    mixed = (share * plan.table for plan, (_, share) in zip(plans, rules, strict=True))
    table = sum(mixed, np.zeros_like(plans[0].table)).astype(np.float32)
    return plans[-1]._replace(table=table, active=(table != 0).any(axis=(0, 2)))


def taught(course: Course, batch: int, model: Model | None, scales: Sequence[float]) -> dict[str, np.ndarray]:
    """A batch's states and targets: "x" [steps b h w c], "target" [labels steps b h w c], "strength" [1], float32.

    model: the student's, which leads; None: the teacher does. scales: of the LoRAs in it, before those it learned.
    """
    pipe, request, lesson = course.pipe, course.request(batch), course.lesson(batch)
    index = np.arange(course.rows)

    def run_of(rules: Sequence[tuple[Rule, float]]) -> Run:
        plan = _plan(rules, len(index), len(course.teacher.timestep))
        kept = {kind: request.scales[kind] for kind in plan.weights}
        told = {kind: request.text_scales[kind] for kind in plan.weights}
        changed = dataclasses.replace(request, plan=plan, scales=kept, text_scales=told)
        return pipe.engine.run(changed, course.teacher, index)

    labels = [run_of(label.rules) for label in lesson.labels]
    own = model is None and lesson.labels[0].rules == lesson.leads
    if model is not None:
        leader = student_run(pipe, request, course.student, model, lesson.student, [*scales, course.strength(batch)])
    else:
        leader = labels[0] if own else run_of(lesson.leads)
    states: list[tuple[Any, list[Any]]] = []
    for step in range(course.steps):
        x = leader.state.x
        for run in labels:
            if run is not leader:
                run.stand(step * course.parts, x)
            _go(run, course.parts)
        states.append((x, [_seen(course, step, x, run) for run in labels]))
        if model is not None:
            leader.advance(1)
        elif not own:
            _go(leader, course.parts)
    x, target = zip(*jax.device_get(states), strict=True)
    return {
        "x": np.stack(x),
        "target": np.stack([np.stack(of_step) for of_step in target], axis=1),
        "strength": np.array([course.strength(batch)], np.float32),
    }


def _go(run: Run, steps: int) -> None:
    while steps:
        steps -= run.advance(steps)


def _seen(course: Course, step: int, x: Any, run: Run) -> Any:
    """What the network should predict at a state, after the teacher went from there as far as the student should."""
    table = {name: float(row[step]) for name, row in course.student._asdict().items() if np.ndim(row)}
    denoised = run.state.denoised if course.parts == 1 else (run.state.x - table["keep"] * x) / table["toward"]
    return (denoised - table["denoised_from_x"] * x) / table["denoised_from_prediction"]


def student_run(
    pipe: AutoLoRAPipeline, request: Request, schedule: Schedule, model: Model, rule: Rule, scales: Sequence[float]
) -> Run:
    """The student on its way through the pictures of a request, told what the tuned model is. scales: of its LoRAs."""
    n = len(request.seeds)
    index = np.arange(n)
    strengths = np.tile(np.array(scales, np.float32), (n, 1, 1))
    return Run(
        pipe.denoiser,
        pipe.mesh,
        model,
        guidance.plan(rule, n, len(schedule.timestep)),
        schedule,
        scales={"lora": padded_scales(strengths)},
        told={"lora": pipe.text.conditioning(texts_of(request, index))["lora"]},
        noise=request.initial_noise(index),
        step_noise=request.step_noise(index, len(schedule.timestep)) if np.any(schedule.fresh) else None,
    )


class Pairs:
    """The states and targets of all batches so far, a file each, and what is told beside them."""

    def __init__(self, course: Course, folder: Path) -> None:
        self.course, self.folder = course, folder
        self._told: dict[str, dict[str, np.ndarray]] = {}  # prompt -> keyword -> [2 …]
        self._open: dict[int, Any] = {}

    def path(self, batch: int) -> Path:
        """The file of a batch."""
        return self.folder / f"{batch:06}.safetensors"

    def fill(self, round_: int, model: Callable[[], Model] | None, scales: Sequence[float]) -> Iterator[int]:
        """Draws what is not there of a round's batches; yields how many are done.

        model: makes the student's; None: it has learned since the round began. Raises TrainingError where it is needed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        first, leading = round_ * self.course.batches, None
        for done, batch in enumerate(range(first, first + self.course.batches)):
            if not self.path(batch).exists():
                if round_ and leading is None:
                    if model is None:
                        raise TrainingError(f"{self.path(batch)}, which round {round_ + 1} learned from, is gone")
                    leading = model()
                write_safetensors(self.path(batch), taught(self.course, batch, leading, scales))
            yield done + 1

    def _file(self, batch: int) -> Any:
        if batch not in self._open:
            self._open[batch] = safe_open(self.path(batch), "np")
        return self._open[batch]

    def tell(self) -> Iterator[int]:
        """Encodes the prompts; yields how many are done."""
        pipe, texts = self.course.pipe, list(dict.fromkeys(self.course.prompts))
        for done, first in enumerate(range(0, len(texts), self.course.rows)):
            some = texts[first : first + self.course.rows]
            request = pipe.request(dataclasses.replace(self.course.call, prompt=some, seeds=(0,)))
            told = pipe.text.conditioning(texts_of(request, np.arange(len(some))))["lora"]
            for i, text in enumerate(some):
                # Tokens as the denoiser computes them; what else it is told is small.
                self._told[text] = {
                    name: np.asarray(rows[i], pipe.denoiser.dtype if rows.ndim == 4 else np.float32)
                    for name, rows in told.items()
                }
            yield min(len(texts), (done + 1) * self.course.rows)

    def batch_at(self, step: int) -> dict[str, Any]:
        """An optimizer step's batch for StudentLoss: rows of all that its round knows, by the step alone."""
        course, config = self.course, self.course.config
        known = (step // config.updates + 1) * course.batches
        shape = config.gradient_accumulation_steps, course.rows
        drawn = np.random.default_rng((config.seed, 1, step))
        labels = len(course.lesson(0).labels)
        spaces = known, course.rows, course.steps, labels
        numbers = drawn.integers(np.prod(spaces), size=shape[0] * shape[1])
        rows = [self._row(*map(int, place)) for place in zip(*np.unravel_index(numbers, spaces), strict=True)]
        return jax.tree.map(lambda *leaves: np.stack(leaves).reshape(*shape, *np.shape(leaves[0])), *rows)

    def _row(self, batch: int, picture: int, step: int, label: int) -> dict[str, Any]:
        course, file = self.course, self._file(batch)
        text = course.prompts[(batch * course.rows + picture) % len(course.prompts)]
        side = course.lesson(batch).labels[label].side
        return {
            "x": course.student.input_scale[step] * file.get_slice("x")[step, picture],
            "timestep": course.student.timestep[step],
            "target": file.get_slice("target")[label, step, picture],
            "strength": np.float32(course.strength(batch)),
            "told": {name: rows[side] for name, rows in self._told[text].items()},
        }
