"""`autolora reproduce`: plan, draw, score, write what came out."""

import datetime
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax

from autolora_jax import __version__
from autolora_jax.batch import Summary
from autolora_jax.batch.plan import Plan, make_plan
from autolora_jax.batch.sources import Sources, Standins
from autolora_jax.cli import batch
from autolora_jax.cli.console import reported, show
from autolora_jax.cli.flags import told
from autolora_jax.cli.judge import CACHE, consult
from autolora_jax.config import ConfigError
from autolora_jax.display import Display, say
from autolora_jax.evaluation.encoders import open_clip, open_encoder
from autolora_jax.evaluation.features import FOLDER
from autolora_jax.evaluation.judge import Judged, Prices, Question, Report
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
from autolora_jax.settings.programs.program import MORE, assignments
from autolora_jax.settings.programs.reproduce import INCOMPLETE, Reproduce
from autolora_jax.sharding import data_mesh
from autolora_jax.weights.errors import WeightsError

PICTURES, RESULTS, SHEETS = "pictures", "results.json", "sheets"
FORMATS = ("png", "webp", "jpeg")  # that can be measured
PLACE = Path("reproduce")
UNTOLD = ("experiments", "out", "compilation_cache", "retry", "report_only")  # of one run alone


def run(asked: Reproduce) -> int:
    """Draws, scores and reports experiments. MORE: it was stopped; INCOMPLETE: some pictures have no verdict."""
    if asked.list or not asked.experiments:
        show("Experiments: autolora reproduce NAME", [(name, catalogue.load(name).title) for name in catalogue.names()])
        return 0
    with reported(exit_code=2):
        wanted = [prepare(name, asked) for name in asked.experiments]
        if asked.judge is not None:
            require_judge_can(wanted)
    root = asked.out or PLACE
    complete = True
    for experiment in wanted:
        folder = asked.out if asked.out and len(wanted) == 1 else root / experiment.name
        if asked.dry_run:
            print(describe(experiment, folder, asked))
            continue
        if not asked.report_only:
            say(f"{experiment.name}: {experiment.title}", "bold")
            if draw(experiment, folder, asked).more:
                say("Stopped. What was begun is saved, and the same command goes on from there.", "yellow")
                return MORE
        command = f"autolora reproduce {experiment.name} {told(asked, UNTOLD)}".strip()
        complete = report(experiment, folder, asked, command) and complete
    return 0 if complete else INCOMPLETE


def prepare(name: str, asked: Reproduce) -> Experiment:
    """The experiment as flags want it. Raises ConfigError."""
    models = [place for place in asked.model if place != "builtin"]
    experiment = catalogue.load(name, len(models) < len(asked.model))
    experiment = changes.only(experiment, asked.only, asked.at)
    experiment = changes.with_loras(changes.with_models(experiment, models), asked.lora)
    seeds = tuple(range(int(asked.seeds))) if asked.seeds and asked.seeds.isdecimal() else asked.seeds
    flags = {"output.format": asked.format, "batch_size": asked.batch_size, "seeds": seeds}
    settings = {**assignments(asked.set_), **{name: value for name, value in flags.items() if value is not None}}
    experiment = changes.with_settings(experiment, settings)
    output = experiment.job.output
    if output.format not in FORMATS or output.shard_size is not None:
        raise ConfigError(f"{name}: its pictures are files of {', '.join(FORMATS)}; other forms can't be measured")
    return experiment


def require_judge_can(experiments: Sequence[Experiment]) -> None:
    """Raises ValueError where an experiment asks what no vision-language model can be asked."""
    for ask in (ask for experiment in experiments for ask in experiment.asks):
        question_of(ask)


def describe(experiment: Experiment, folder: Path, asked: Reproduce) -> str:
    """What an experiment takes, as batch.describe says it. Nothing is downloaded, unless a batch is drawn."""
    sources = Sources() if asked.calibrate else Standins()
    job, place = experiment.whole_job, str(folder / PICTURES)
    told = batch.describe(job, place, asked, sources)
    lines = [f"{experiment.name}: {experiment.title}", told, f"  cells           {len(experiment.cells)}"]
    if isinstance(sources, Standins):
        lines += [f"  not looked at   {source}: {why}{_origin(source)}" for source, why in sources.unseen.items()]
    return "\n".join(lines)


def draw(experiment: Experiment, folder: Path, asked: Reproduce) -> Summary:
    """Draws what is missing. Raises as draw_job."""
    try:
        return batch.draw(experiment.whole_job, str(folder / PICTURES), asked)
    except WeightsError as e:
        for source in changes.loras(experiment):
            if source in str(e):
                e.add_note(f"--lora says where you have {source}{_origin(source)}")
        raise


def _origin(source: str) -> str:
    return f" ({ORIGINS[source]})" if source in ORIGINS else ""


def report(experiment: Experiment, folder: Path, asked: Reproduce, command: str) -> bool:
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

        by = _method(experiment, asked, pictures / FOLDER) if experiment.asks else None
        measured = measure(experiment, drawn, by, tell) if by else None
        results = results_of(experiment, plan, drawn, measured, _provenance(command, plan), tell)
    results.write(folder / RESULTS)
    _write(experiment, results, drawn, folder)
    _tell(results, folder, time.monotonic() - began)
    return not (measured and measured.scored.again)


def _method(experiment: Experiment, asked: Reproduce, cache: Path) -> Method:
    """Opens the models that measure; nothing is loaded yet."""
    mesh = data_mesh(jax.local_devices())
    encoder = open_encoder(asked.features or ("builtin" if experiment.world else "dinov2-giant"), mesh)
    scorer: Scorer
    if asked.judge is not None:
        scorer = JudgeScorer(partial(_consult, asked, cache / CACHE))
    elif experiment.world:
        scorer = WorldScorer()
    else:
        scorer = ClipScorer(open_clip(asked.clip, mesh), cache)
    return Method(encoder, scorer, cache, asked.confidence, asked.vendi)


def _consult(
    asked: Reproduce, cache: Path, pictures: DrawnPictures, question: Question, on_scored: OnScored
) -> tuple[Sequence[Judged], Mapping[str, str]]:
    """Asks a judge; see scorers.Consult."""
    model = None if asked.judge == "auto" else asked.judge
    found = consult(pictures, question, cache, asked, model, lambda progress: on_scored(progress.done))
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
