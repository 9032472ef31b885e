"""`autolora batch`: a job from a Python file, drawn into a folder or bucket; the same command goes on where it was."""

from pathlib import Path
from typing import Annotated, Any

import typer

from autolora_jax.cli.console import Debug, reported, say, terminable
from autolora_jax.cli.flags import assignments, option
from autolora_jax.cli.job_flags import RUN, BatchSize, Calibrate, Retry
from autolora_jax.cli.model_flags import CompilationCache

JOB, OUTPUT, MACHINES = "Job", "Output", "Many machines"
MORE = 75  # EX_TEMPFAIL: stopped, the same command goes on

EXAMPLES = """[bold]A job[/] is a Python file whose get_config() returns it:

[cyan]from autolora_jax import CFG, AutoLoRA
from autolora_jax.batch import Job, Settings
from autolora_jax.presets import Lora, ModelConfig

def get_config() -> Job:
    return Job(
        prompt_file="prompts.jsonl",  # prompt; negative_prompt, seeds and id if need be
        seeds=tuple(range(512)),
        settings=Settings(model=ModelConfig("sd_xl_base_1.0.safetensors"), loras=(Lora("anna.safetensors"),)),
        grid={"guidance": \\[CFG(5.0), AutoLoRA(1.5)], "lora_scale": \\[0.4, 0.7, 1.0]},
    )[/]

[bold]Examples[/]

What it will take, and then the job:

[cyan]autolora batch job.py --out anna --dry-run --calibrate[/]
[cyan]autolora batch job.py --out anna[/]

Into a bucket, as WebDataset shards of 1,000 WebP pictures:

[cyan]autolora batch job.py --out gs://bucket/anna --format webp --shards 1000[/]

Only what evaluate needs, 8 KB a picture:

[cyan]autolora batch job.py --out anna.features --format features && autolora evaluate anna.features[/]

More seeds, later: only what is new is drawn.

[cyan]autolora batch job.py --out anna --seeds 0-1023[/]

By a fleet of eight workers of a Ray cluster, each with four chips; docs/ray.md has recipes:

[cyan]autolora batch job.py --out gs://bucket/anna --ray auto --workers 8 --resources TPU=4[/]

[bold]Exit codes[/] 0: all is drawn. 75: Ctrl-C or SIGTERM came; what was begun is saved, the same command goes on.
1: it can't go on, for the reason given. 2: the job can't be meant. 134: another of its processes vanished, or did not
come; the same command goes on.
"""

# Flag -> the setting it changes.
FLAGS = {
    "prompt_file": "prompt_file",
    "seeds": "seeds",
    "batch_size": "batch_size",
    "format": "output.format",
    "features": "output.features",
    "quality": "output.quality",
    "shards": "output.shard_size",
}


def batch(
    job: Annotated[
        Path,
        typer.Argument(
            help="Python file with get_config(), see below. It is a program and is executed.", show_default=False
        ),
    ],
    out: Annotated[
        str,
        option(
            "--out",
            "-o",
            panel=OUTPUT,
            metavar="DIR|URL",
            help="Folder, or gs://…, s3://… (with gcsfs or s3fs installed). What it holds is not drawn again.",
        ),
    ],
    prompt_file: Annotated[
        str | None,
        option("--prompt-file", panel=JOB, help="Text, .jsonl, .csv or .parquet file, added to the job's prompts."),
    ] = None,
    seeds: Annotated[
        str | None, option("--seeds", panel=JOB, default="the job's", metavar="SEEDS", help="0-511, or 1,5,9-12.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        option(
            "--set",
            panel=JOB,
            metavar="NAME=VALUE",
            help="Change a setting of the job: --set settings.sampler.steps=28. Flags win over it.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        option(
            "--format",
            panel=OUTPUT,
            default="png",
            help="png, webp, jpeg, latent (safetensors), or features: what evaluate measures, and no pictures.",
        ),
    ] = None,
    features: Annotated[
        str | None,
        option(
            "--features",
            panel=OUTPUT,
            default="dinov2-giant",
            metavar="MODEL",
            help="(--format features) Whose: dinov2-giant, -large, -base, -small, clip, builtin, a folder or hub id.",
        ),
    ] = None,
    quality: Annotated[int | None, option("--quality", panel=OUTPUT, default="90", help="Of webp and jpeg.")] = None,
    shards: Annotated[
        int | None,
        option(
            "--shards",
            panel=OUTPUT,
            default="none",
            metavar="PICTURES",
            help="Write tar files of about so many pictures, as WebDataset reads them, instead of single files.",
        ),
    ] = None,
    batch_size: BatchSize = None,
    retry: Retry = False,
    compilation_cache: CompilationCache = None,
    dry_run: Annotated[
        bool, option("--dry-run", panel=RUN, help="Say what there is to do and what it takes; draw nothing.")
    ] = False,
    calibrate: Calibrate = False,
    distributed: Annotated[
        bool,
        option(
            "--distributed",
            panel=MACHINES,
            help="Draw with all processes of a Cloud TPU slice, SLURM step, mpirun or GKE job; each runs this command.",
        ),
    ] = False,
    coordinator_address: Annotated[
        str | None,
        option(
            "--coordinator-address", panel=MACHINES, metavar="HOST:PORT", help="Elsewhere: where all reach process 0."
        ),
    ] = None,
    num_processes: Annotated[int | None, option("--num-processes", panel=MACHINES, help="How many there are.")] = None,
    process_id: Annotated[
        int | None, option("--process-id", panel=MACHINES, help="Which of them this one is, from 0.")
    ] = None,
    ray: Annotated[
        str | None,
        option(
            "--ray",
            panel=MACHINES,
            metavar="ADDRESS",
            help="Draw with a fleet: workers that come and go as a Ray cluster has room. Its host:port; auto: that of "
            "this machine; local: this machine alone. The command itself needs no device.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        option(
            "--workers",
            panel=MACHINES,
            default="as many as there is room for now",
            help="(--ray) At once, at most: a cluster that scales starts machines for them.",
        ),
    ] = None,
    resources: Annotated[
        list[str] | None,
        option(
            "--resources",
            panel=MACHINES,
            default="all TPUs of a machine, or a GPU, or a CPU",
            metavar="NAME=AMOUNT",
            help="(--ray) Of each worker: --resources TPU=4, or --resources GPU=1 --resources CPU=8.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw tens of thousands of pictures: prompts × settings × seeds, on machines that may vanish at any moment.

    Each picture has a key of all that determines it, and a row in manifest.jsonl (and .parquet, with pyarrow).
    What is finished is never drawn again, whatever happens: run the same command until its exit code is 0.
    """
    flags = {FLAGS[name]: value for name, value in locals().items() if name in FLAGS and value is not None}
    try:
        with reported(debug, exit_code=2), terminable():
            from autolora_jax import overrides
            from autolora_jax.batch import Job
            from autolora_jax.config import ConfigError

            if job.suffix != ".py":
                raise ConfigError(f"{job} should be a Python file whose get_config() returns a Job")
            changes: dict[str, Any] = {**assignments(set_ or ()), **flags}
            wanted = overrides.override(overrides.load_preset(job, Job), changes)
        with reported(debug), terminable():
            from autolora_jax.cli import batching

            if dry_run:
                print(batching.describe(wanted, out, calibrate, retry, compilation_cache))
                return
            fleet = batching.fleet(ray, workers, resources)
            peers = batching.join(distributed, coordinator_address, num_processes, process_id)
            summary = batching.draw(wanted, out, retry, compilation_cache, peers, fleet)
    except typer.Exit as e:
        raise typer.Exit(MORE if e.exit_code in (130, 143) else e.exit_code) from None
    if summary.more:
        say("Stopped. What was begun is saved, and the same command goes on from there.", "yellow")
        raise typer.Exit(MORE)
    if summary.pictures and not summary.ok:
        say(f"Error: none of {summary.pictures} pictures could be drawn. The first: {summary.problem}", "red")
        raise typer.Exit(1)
    if peers is None or peers.number == 0:
        print(f"{summary.ok} pictures drawn into {out}")
