"""`autolora reproduce`, once its flags are read: plan, draw, score, write what came out."""

import datetime
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from autolora_jax import __version__
from autolora_jax.batch import Summary
from autolora_jax.batch.plan import Plan, make_plan
from autolora_jax.batch.sources import Sources
from autolora_jax.batch.standins import Standins
from autolora_jax.cli import batching
from autolora_jax.cli.console import say, show
from autolora_jax.cli.judging import CACHE, Service, consult
from autolora_jax.cli.progress import Display
from autolora_jax.config import ConfigError
from autolora_jax.evaluation.encoders import open_clip, open_encoder
from autolora_jax.evaluation.features import FOLDER
from autolora_jax.evaluation.judge import Judged, Prices, Progress, Question, Report
from autolora_jax.experiments import catalogue, changes
from autolora_jax.experiments.drawn import Drawn, DrawnPictures, find_drawn
from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.frontier import write_frontier
from autolora_jax.experiments.parts import ORIGINS
from autolora_jax.experiments.report import write_report
from autolora_jax.experiments.results import Results
from autolora_jax.experiments.scorers import ClipScorer, JudgeScorer, OnScored, Scorer, WorldScorer, question_of
from autolora_jax.experiments.scoring import Method, measure, results_of
from autolora_jax.experiments.sheets import write_sheets
from autolora_jax.experiments.tables import write_tables
from autolora_jax.sharding import data_mesh
from autolora_jax.weights.errors import WeightsError

PICTURES, RESULTS, SHEETS = "pictures", "results.json", "sheets"
FORMATS = ("png", "webp", "jpeg")  # that can be measured


class Measures(NamedTuple):
    """How pictures are measured: the flags of the same names. service: the judge; None: there is none."""

    features: str | None
    clip: str
    vendi: bool
    confidence: float
    service: Service | None


def show_list() -> None:
    """Prints what experiments there are."""
    rows = [(name, catalogue.load(name).title) for name in catalogue.names()]
    show("Experiments: autolora reproduce NAME", rows)


def read_count(text: str | None) -> Any:
    """--seeds: a number of them, or which."""
    return tuple(range(int(text))) if text is not None and text.isdecimal() else text


def read_places(text: str | None) -> list[float]:
    """--at. Raises ValueError."""
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"--at {text} should be numbers such as 0.4,0.7,1") from None


def prepare(
    name: str,
    builtin: bool,
    models: Sequence[str],
    loras: Sequence[str],
    methods: Sequence[str],
    places: Sequence[float],
    settings: Mapping[str, Any],
) -> Experiment:
    """The experiment as flags want it. Raises ConfigError."""
    experiment = changes.only(catalogue.load(name, builtin), methods, places)
    experiment = changes.with_loras(changes.with_models(experiment, models), loras)
    experiment = changes.with_settings(experiment, settings)
    output = experiment.job.output
    if output.format not in FORMATS or output.shard_size is not None:
        raise ConfigError(f"{name}: its pictures are files of {', '.join(FORMATS)}; other forms can't be measured")
    return experiment


def require_judge_can(experiments: Sequence[Experiment]) -> None:
    """Raises ValueError where an experiment asks what no vision-language model can be asked."""
    for ask in (ask for experiment in experiments for ask in experiment.asks):
        question_of(ask)


def describe(experiment: Experiment, folder: Path, calibrate: bool, retry: bool, compilation_cache: str | None) -> str:
    """What an experiment takes, as batching.describe says it. Nothing is downloaded, unless a batch is drawn."""
    sources = Sources() if calibrate else Standins()
    job, place = experiment.whole_job, str(folder / PICTURES)
    told = batching.describe(job, place, calibrate, retry, compilation_cache, sources)
    lines = [f"{experiment.name}: {experiment.title}", told, f"  cells           {len(experiment.cells)}"]
    if isinstance(sources, Standins):
        lines += [f"  not looked at   {source}: {why}{_origin(source)}" for source, why in sources.unseen.items()]
    return "\n".join(lines)


def draw(experiment: Experiment, folder: Path, retry: bool, compilation_cache: str | None) -> Summary:
    """Draws what is missing. Raises as draw_job."""
    try:
        return batching.draw(experiment.whole_job, str(folder / PICTURES), retry, compilation_cache)
    except WeightsError as e:
        for source in changes.loras(experiment):
            if source in str(e):
                e.add_note(f"--lora says where you have {source}{_origin(source)}")
        raise


def _origin(source: str) -> str:
    return f" ({ORIGINS[source]})" if source in ORIGINS else ""


def report(experiment: Experiment, folder: Path, measures: Measures, command: str) -> bool:
    """Measures what is drawn, and writes results, tables, plots, sheets and the report. Whether all have scores.

    Raises ValueError when nothing is drawn; what models, judge and disk raise.
    """
    pictures, began = folder / PICTURES, time.monotonic()
    plan = make_plan(experiment.whole_job, Sources())
    drawn = find_drawn(plan, pictures)
    if not len(drawn.pictures):
        raise ValueError(f"{pictures} holds none of the pictures of {experiment.name}")
    with Display() as display:

        def tell(stage: str, done: int, count: int) -> None:
            display.update(stage, done, count, "pictures" if stage != "Cells" else "")

        by = _method(experiment, measures, pictures / FOLDER) if experiment.asks else None
        measured = measure(experiment, drawn, by, tell) if by else None
        results = results_of(experiment, plan, drawn, measured, _provenance(command, plan), tell)
    results.write(folder / RESULTS)
    _write(experiment, results, drawn, folder)
    _tell(results, folder, time.monotonic() - began)
    return not (measured and measured.scored.again)


def _method(experiment: Experiment, measures: Measures, cache: Path) -> Method:
    """Opens the models that measure; nothing is loaded yet."""
    mesh = data_mesh(jax.local_devices())
    encoder = open_encoder(measures.features or ("builtin" if experiment.world else "dinov2-giant"), mesh)
    scorer: Scorer
    if measures.service:
        scorer = JudgeScorer(_Consultation(measures.service, cache / CACHE))
    elif experiment.world:
        scorer = WorldScorer()
    else:
        scorer = ClipScorer(open_clip(measures.clip, mesh), cache)
    return Method(encoder, scorer, cache, measures.confidence, measures.vendi)


class _Consultation:
    """Asks a judge; see scorers.Consult."""

    def __init__(self, service: Service, cache: Path) -> None:
        self._service, self._cache = service, cache

    def __call__(
        self, pictures: DrawnPictures, question: Question, on_scored: OnScored
    ) -> tuple[Sequence[Judged], Mapping[str, str]]:
        def show(progress: Progress) -> None:
            on_scored(progress.done)

        found = consult(pictures, question, self._cache, self._service, show)
        return found.judged, _asked(found)


def _asked(found: Report) -> dict[str, str]:
    """What asking took, for the provenance."""
    usage, name = found.usage, found.question.name
    cost = f", cost {found.prices.of(usage):.4g}" if found.prices != Prices() else ""
    who = "; ".join(f"{who}: {count} pictures" for who, count in found.versions.items())
    return {
        f"judge ({name})": f"{who or 'none answered'}; sent as {found.preparation}",
        f"asking ({name})": f"{usage.prompt_tokens:,} tokens sent, {usage.completion_tokens:,} answered{cost}, "
        f"{usage.seconds:.0f} seconds of answering",
    }


def _provenance(command: str, plan: Plan) -> dict[str, str]:
    devices = jax.devices()
    now = datetime.datetime.now(datetime.UTC)
    return {
        "command": command,
        "date": now.isoformat(timespec="seconds"),
        "versions": f"autolora-jax {__version__}, jax {jax.__version__}",
        "measured on": f"{len(devices)} {devices[0].device_kind}",
        "plan": plan.fingerprint,
    }


def _write(experiment: Experiment, results: Results, drawn: Drawn, folder: Path) -> None:
    """Everything that people look at."""
    write_sheets(experiment, folder / PICTURES, drawn.cells, folder / SHEETS)
    if results.figures:
        write_tables(results, folder)
        try:
            from autolora_jax.experiments.plotting import write_figures

            write_figures(results, folder)
        except ModuleNotFoundError as e:
            if e.name != "matplotlib":
                raise
            say("No plots: they need matplotlib, pip install 'autolora-jax[plots]'", "yellow")
        write_frontier(results, folder)
    write_report(results, folder)


def _tell(results: Results, folder: Path, seconds: float) -> None:
    for name, what in results.provenance.items():
        if name.startswith("pictures "):
            say(f"Warning: {name}: {what}", "yellow")
    say(f"measured and written in {seconds:.0f} s", "dim")
    print(f"{results.name}: {folder / 'report.html'}")
