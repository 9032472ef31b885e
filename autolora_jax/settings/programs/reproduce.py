"""What `autolora reproduce` can be asked for."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from autolora_jax.settings.fields import Table, setting
from autolora_jax.settings.pictures import OUTPUT
from autolora_jax.settings.programs.asking import JUDGE, Asking
from autolora_jax.settings.programs.program import RUN, Large
from autolora_jax.settings.values import Numbers, Texts

EXPERIMENT, MODELS, MEASURE = "Experiment", "Models", "Measure"  # panels of --help
INCOMPLETE = 3  # exit code: some pictures have no verdict yet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduce(Large, Asking):
    """Repeat the experiments of arXiv 2410.03941, and those its reviewers asked for: draw, score, report.

    Every table and figure is one command. What the paper does not say is stated as an assumption, in the report, too.
    """

    PANEL: ClassVar[str] = EXPERIMENT

    experiments: Texts = setting(
        (),
        "table1, table2, figure1 … figure8, frontier, frontier_equal, sweep, sweep_gamma, sweep_contexts, "
        "sweep_contexts_gamma, or a .py file of that kind (it is a program and is executed). None: list them.",
        argument=True,
        metavar="EXPERIMENT",
        offers=Table("experiments.catalogue", "EXPERIMENTS"),
    )
    list: bool = setting(False, "Say what there is, and leave.")
    seeds: str | None = setting(
        None,
        "How many of each prompt: 64 are 0 to 63. Or which: 0-31, or 1,5,9-12.",
        shown="the experiment's",
        metavar="N|SEEDS",
    )
    only: Texts = setting((), "These methods alone; a name or a pattern.", metavar="METHOD")
    at: Numbers = setting((), "These places of its axis: 0.4,0.7,1.", metavar="VALUES")
    model: Texts = setting(
        (),
        "Folder, .safetensors or hub id in its place; builtin: the experiment in small. Where there are several: "
        "NAME=PLACE for each.",
        panel=MODELS,
        shown="the published one, from the hub",
        metavar="PLACE",
    )
    lora: Texts = setting(
        (),
        "In its LoRA's place. Where there are several: NAME=FILE.",
        panel=MODELS,
        shown="the experiment's",
        metavar="FILE[:SCALE]",
    )
    features: str | None = setting(
        None,
        "By whose eyes pictures differ; see autolora evaluate --help.",
        panel=MEASURE,
        shown="dinov2-giant; builtin for the built-in model",
        metavar="MODEL",
    )
    clip: str = setting("clip", "CLIPScore's, without a judge.", panel=MEASURE, metavar="MODEL")
    vendi: bool = setting(False, "Vendi scores, too.", panel=MEASURE)
    confidence: float = setting(0.95, "Of the intervals.", panel=MEASURE, metavar="LEVEL")
    judge: str | None = setting(
        None,
        "The vision-language model, as its server has it; auto: the only one that is served.",
        panel=JUDGE,
        shown="none: CLIPScore; the world's classifier for the built-in model",
        metavar="MODEL",
    )
    out: Path | None = setting(
        None,
        "Folder. Of several experiments, each has one in it.",
        short="-o",
        panel=OUTPUT,
        shown="reproduce/EXPERIMENT",
        metavar="DIR",
        kept=False,
    )
    format: str | None = setting(None, "png, webp or jpeg.", panel=OUTPUT, shown="png", offers=("png", "webp", "jpeg"))
    batch_size: int | None = setting(None, "Pictures per device at once.", panel=RUN, shown="4")
    report_only: bool = setting(False, "Draw nothing; score and report what is there.", panel=RUN, kept=False)
    dry_run: bool = setting(
        False, "Say what there is to do and what it takes; download nothing, draw nothing.", panel=RUN
    )

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
