"""What training has come to: a file of weights a stage, half precision, and how far it is, beside each other.

They are kept in the repository, so that a round of training can begin from a clean checkout where the last one ended.
While a round goes on, its averaged weights are written there now and then: what is there is always of use.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

from autolora_jax import files
from autolora_jax.settings import OptimizerConfig
from autolora_jax.sharding import data_mesh
from autolora_jax.training.checkpoints import Checkpoints, saved_steps
from autolora_jax.training.loop import Report, fit
from autolora_jax.training.step import Loss, initial_state
from recipes.builtin.console import Console
from recipes.builtin.muon import make_muon
from recipes.builtin.package import write_half

STAGES = Path(__file__).with_name("stages")
SAVE_EVERY = 100  # steps


class Stage(NamedTuple):
    """Weights, and how far they are. round: rounds that are finished; step: steps of the next one."""

    weights: Any
    round: int = 0
    step: int = 0
    means: dict[str, float] = {}  # of what was measured, over the last steps  # noqa: RUF012


class Round(Protocol):
    """What a round of any stage has."""

    @property
    def steps(self) -> int:
        """How many there are."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """What takes them."""


class Run(NamedTuple):
    """What a round does: see training.loop.fit.

    trainable: of the weights; whole: all of them again, of what has become of these. settings: what decides the round,
    beside its steps.
    """

    trainable: Any
    loss: Loss
    frozen: Any
    batch_at: Callable[[int], Any]
    settings: dict[str, Any]
    decay: float
    whole: Callable[[Any], Any] = lambda trainable: trainable


def load(name: str, folder: Path = STAGES) -> Stage | None:
    """A stage's newest weights, float32; None where it has not begun."""
    weights, listing = (folder / f"{name}.{ending}" for ending in ("safetensors", "json"))
    if not listing.exists():
        return None
    tree = traverse_util.unflatten_dict(load_file(weights), sep="/")
    told = json.loads(listing.read_text(encoding="utf-8"))
    whole = jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
    return Stage(whole, told["round"], told["step"], told["means"])


def save(name: str, stage: Stage, folder: Path = STAGES) -> None:
    """Writes a stage's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_half(folder / f"{name}.safetensors", stage.weights)
    told = {"round": stage.round, "step": stage.step, "means": stage.means}
    files.write(folder / f"{name}.json", (json.dumps(told, indent=2) + "\n").encode())


def train(
    name: str,
    rounds: Sequence[Round],
    begin: Callable[[], Any],
    prepare: Callable[[int, Any], Run],
    work: Path,
    folder: Path = STAGES,
) -> Stage:
    """A stage after the given rounds; goes on where it was stopped.

    begin: the weights before the first round. prepare: (number, the weights that a round begins with) -> what it does.
    work: of the checkpoints, by which a round that was stopped goes on exactly. Without them it goes on from the
    averaged weights, for the steps that are left.
    """
    stage = load(name, folder) or Stage(begin())
    for number in range(stage.round, len(rounds)):
        stage = _round(name, number, rounds[number], stage, prepare, work, folder)
    return stage


def _round(
    name: str,
    number: int,
    plan: Round,
    stage: Stage,
    prepare: Callable[[int, Any], Run],
    work: Path,
    folder: Path,
) -> Stage:
    begun, checkpoints_at = _began(work, name, number, stage.step)
    steps = plan.steps - begun
    run = prepare(number, stage.weights)
    optimizer = make_muon(plan.optimizer, steps)
    state = initial_state(run.trainable, optimizer, average=True)
    settings = {"steps": steps, **run.settings}
    means: dict[str, float] = {}

    def keep(state: Any) -> None:
        step = begun + int(state.step)
        done = step == plan.steps
        save(name, Stage(run.whole(state.average), number + done, 0 if done else step, means), folder)

    with Checkpoints(checkpoints_at, settings) as checkpoints, Console(f"{name} {number}") as console:

        def show(report: Report) -> None:
            console.show(report)
            for metric, value in report.metrics.items():
                means[metric] = round(0.99 * means.get(metric, value) + 0.01 * value, 5)

        state = fit(
            run.loss,
            optimizer,
            state,
            run.frozen,
            run.batch_at,
            steps,
            data_mesh(),
            decay=run.decay,
            checkpoints=checkpoints,
            save_every=SAVE_EVERY,
            on_step=show,
            every=SAVE_EVERY,
            on_state=keep,
        )
    keep(state)  # once more, should the last checkpoint have been all that was written
    finished = load(name, folder)
    assert finished and finished.round > number
    return finished


def _began(work: Path, name: str, number: int, done: int) -> tuple[int, Path]:
    """(the step at which a round began, its folder): one whose checkpoints are as far as `done`, or else a new one."""
    for folder in sorted(work.glob(f"{name}-{number}-*")):
        begun = int(folder.name.rsplit("-", 1)[1])
        if saved_steps(folder) and begun + saved_steps(folder)[-1] >= done:
            return begun, folder
    return done, work / f"{name}-{number}-{done}"
