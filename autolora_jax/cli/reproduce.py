"""`autolora reproduce`: the paper's experiments, drawn, scored and reported, one command each."""

import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from autolora_jax.cli.console import Debug, reported, say, terminable
from autolora_jax.cli.flags import assignments, option
from autolora_jax.cli.job_flags import RUN, BatchSize, Calibrate, Retry
from autolora_jax.cli.judge_flags import (
    BASE_URL,
    JUDGE,
    ApiKey,
    BaseUrl,
    Concurrency,
    ImageFormat,
    MaxSide,
    MaxTokens,
    PriceIn,
    PriceOut,
    Timeout,
    Tries,
)
from autolora_jax.cli.model_flags import CompilationCache

EXPERIMENT, MODELS, MEASURE, OUTPUT = "Experiment", "Models", "Measure", "Output"
MORE, INCOMPLETE = 75, 3  # EX_TEMPFAIL: stopped, the same command goes on; some pictures have no verdict yet
PLACE = Path("reproduce")
UNTOLD = ("experiments", "out", "compilation_cache", "api_key", "retry", "report_only", "debug")

EXAMPLES = """[bold]Anywhere[/], with the built-in model, whose world has its own judge; nothing is downloaded:

[cyan]autolora reproduce figure1 --model builtin[/]
[cyan]autolora reproduce table1 --model builtin --seeds 16[/]

[bold]The paper's models.[/] What it takes, before anything is downloaded; then the experiment. Its character's presence
is judged by a vision-language model (autolora judge --help says how to serve one):

[cyan]autolora reproduce table1 --dry-run[/]
[cyan]autolora reproduce table1 --lora princess_xl_v2.safetensors --judge Qwen/Qwen2.5-VL-7B-Instruct[/]

The published model and LoRA may be anywhere. Where an experiment has several, say which:

[cyan]autolora reproduce table1 --model sd_xl_base --lora anna.safetensors --seeds 64 --at 0.4,0.7,1[/]
[cyan]autolora reproduce table2 --only 'SDXL *' --lora pixel-art-xl-v1.1.safetensors=downloads/pixel.safetensors[/]

What is in the folder is never drawn, measured or asked twice. More seeds: only what is new.

[cyan]autolora reproduce table1 --model builtin --seeds 64[/]

An experiment of your own is a file such as configs/paper/table1.py, with get_config() or get_builtin():

[cyan]autolora reproduce mine.py --out mine[/]

[bold]DIR holds[/] pictures/ (a job of autolora batch), results.json, tables (.md, .csv, .tex), plots, sheets/ of
pictures side by side, and report.html, which shows them all.

[bold]Exit codes[/] 0: done. 75: Ctrl-C or SIGTERM came; the same command goes on. 3: some pictures have no verdict; the
same command asks again. 1: it can't go on, for the reason given. 2: it can't be meant.
"""


def reproduce(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(
            help="table1, table2, figure1 … figure8, frontier, frontier_equal, or a .py file of that kind (it is a "
            "program and is executed). None: say what there is.",
            metavar="EXPERIMENT",
            show_default=False,
        ),
    ] = None,
    list_: Annotated[bool, option("--list", panel=EXPERIMENT, help="Say what there is, and leave.")] = False,
    seeds: Annotated[
        str | None,
        option(
            "--seeds",
            panel=EXPERIMENT,
            default="the experiment's",
            metavar="N|SEEDS",
            help="How many of each prompt: 64 are 0 to 63. Or which: 0-31, or 1,5,9-12.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        option("--only", panel=EXPERIMENT, metavar="METHOD", help="These methods alone; a name or a pattern."),
    ] = None,
    at: Annotated[
        str | None,
        option("--at", panel=EXPERIMENT, metavar="VALUES", help="These places of its axis: 0.4,0.7,1."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        option(
            "--set",
            panel=EXPERIMENT,
            metavar="NAME=VALUE",
            help="Change what all its pictures share, as for autolora batch: --set settings.sampler.steps=50.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        option(
            "--model",
            panel=MODELS,
            default="the published one, from the hub",
            metavar="PLACE",
            help="Folder, .safetensors or hub id in its place; builtin: the experiment in small. Where there are "
            "several: NAME=PLACE for each.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        option(
            "--lora",
            panel=MODELS,
            default="the experiment's",
            metavar="FILE[:SCALE]",
            help="In its LoRA's place. Where there are several: NAME=FILE.",
        ),
    ] = None,
    features: Annotated[
        str | None,
        option(
            "--features",
            panel=MEASURE,
            default="dinov2-giant; builtin for the built-in model",
            metavar="MODEL",
            help="By whose eyes pictures differ; see autolora evaluate --help.",
        ),
    ] = None,
    clip: Annotated[
        str,
        typer.Option("--clip", help="CLIPScore's, without a judge.", rich_help_panel=MEASURE, metavar="MODEL"),
    ] = "clip",
    vendi: Annotated[bool, option("--vendi", panel=MEASURE, help="Vendi scores, too.")] = False,
    confidence: Annotated[
        float, typer.Option("--confidence", help="Of the intervals.", rich_help_panel=MEASURE, metavar="LEVEL")
    ] = 0.95,
    judge: Annotated[
        str | None,
        option(
            "--judge",
            panel=JUDGE,
            default="none: CLIPScore; the world's classifier for the built-in model",
            metavar="MODEL",
            help="The vision-language model, as its server has it; auto: the only one that is served.",
        ),
    ] = None,
    base_url: BaseUrl = BASE_URL,
    api_key: ApiKey = None,
    max_tokens: MaxTokens = 512,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    tries: Tries = 8,
    image_format: ImageFormat = "png",
    max_side: MaxSide = 1024,
    price_in: PriceIn = 0.0,
    price_out: PriceOut = 0.0,
    out: Annotated[
        Path | None,
        option(
            "--out",
            "-o",
            panel=OUTPUT,
            default="reproduce/EXPERIMENT",
            metavar="DIR",
            help="Folder. Of several experiments, each has one in it.",
        ),
    ] = None,
    format: Annotated[str | None, option("--format", panel=OUTPUT, default="png", help="png, webp or jpeg.")] = None,
    batch_size: BatchSize = None,
    retry: Retry = False,
    compilation_cache: CompilationCache = None,
    report_only: Annotated[
        bool, option("--report-only", panel=RUN, help="Draw nothing; score and report what is there.")
    ] = False,
    dry_run: Annotated[
        bool,
        option(
            "--dry-run", panel=RUN, help="Say what there is to do and what it takes; download nothing, draw nothing."
        ),
    ] = False,
    calibrate: Calibrate = False,
    debug: Debug = False,
) -> None:
    """Repeat the experiments of arXiv 2410.03941, and those its reviewers asked for: draw, score, report.

    Every table and figure is one command. What the paper does not say is stated as an assumption, in the report, too.
    """
    given = dict(locals())
    with reported(debug, exit_code=2):
        from autolora_jax.cli import reproducing
        from autolora_jax.cli.judging import Service
        from autolora_jax.cli.reproducing import Measures
        from autolora_jax.evaluation.judge import Preparation, Prices

        if list_ or not experiments:
            reproducing.show_list()
            return
        small, models = "builtin" in (model or ()), [place for place in model or () if place != "builtin"]
        flags = {"output.format": format, "batch_size": batch_size, "seeds": reproducing.read_count(seeds)}
        changes = {**assignments(set_ or ()), **{name: value for name, value in flags.items() if value is not None}}
        places = reproducing.read_places(at)
        wanted = [
            reproducing.prepare(name, small, models, lora or (), only or (), places, changes) for name in experiments
        ]
        measures = Measures(
            features=features,
            clip=clip,
            vendi=vendi,
            confidence=confidence,
            service=None
            if judge is None
            else Service(
                base_url=base_url,
                model=None if judge == "auto" else judge,
                api_key=api_key,
                max_tokens=max_tokens,
                concurrency=concurrency,
                timeout=timeout,
                tries=tries,
                preparation=Preparation(image_format, max_side),
                prices=Prices(price_in, price_out),
            ),
        )
    root = out or PLACE
    folders = [out if out and len(wanted) == 1 else root / experiment.name for experiment in wanted]
    incomplete = False
    try:
        with reported(debug), terminable():
            for experiment, folder in zip(wanted, folders, strict=True):
                if dry_run:
                    print(reproducing.describe(experiment, folder, calibrate, retry, compilation_cache))
                    continue
                if not report_only:
                    say(f"{experiment.name}: {experiment.title}", "bold")
                    summary = reproducing.draw(experiment, folder, retry, compilation_cache)
                    if summary.more:
                        say("Stopped. What was begun is saved, and the same command goes on from there.", "yellow")
                        raise typer.Exit(MORE)
                complete = reproducing.report(experiment, folder, measures, _command(experiment.name, given))
                incomplete = incomplete or not complete
    except typer.Exit as e:
        raise typer.Exit(MORE if e.exit_code in (130, 143) else e.exit_code) from None
    if incomplete:
        raise typer.Exit(INCOMPLETE)


def _command(name: str, given: Mapping[str, Any]) -> str:
    """The command of one experiment, without what is secret or of one run alone. given: all parameters."""
    words = ["autolora", "reproduce", name]
    for parameter in inspect.signature(reproduce).parameters.values():
        value = given[parameter.name]
        if parameter.name in UNTOLD or value == parameter.default:
            continue
        flag = "--" + parameter.name.strip("_").replace("_", "-")
        for each in value if isinstance(value, list) else [value]:
            words += [flag] if each is True else [flag, str(each)]
    return shlex.join(words)
