"""What `autolora batch` can be asked for."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from autolora_jax.config import ConfigError
from autolora_jax.settings.changes import TABLES
from autolora_jax.settings.fields import setting
from autolora_jax.settings.jobs import Job
from autolora_jax.settings.pictures import OUTPUT, PICTURES
from autolora_jax.settings.programs.program import RUN, Large, assignments
from autolora_jax.settings.values import Texts

MACHINES = "Many machines"  # panel of --help


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch(Large):
    """Draw tens of thousands of pictures: prompts × settings × seeds, on machines that may vanish at any moment.

    Each picture has a key of all that determines it, and a row in manifest.jsonl (and .parquet, with pyarrow).
    What is finished is never drawn again, whatever happens: run the same command until its exit code is 0 (or 3: see
    below).
    """

    PANEL: ClassVar[str] = MACHINES

    job: Path | None = setting(
        None,
        "Python file with get_config(), see below, which is a program and is executed; or a .yaml or .json file. "
        "Without any, flags say it all.",
        argument=True,
    )
    out: str = setting(
        help="Folder, or gs://…, s3://… (with gcsfs or s3fs installed). What it holds is not drawn again.",
        short="-o",
        panel=OUTPUT,
        metavar="DIR|URL",
    )
    settings: Job = Job()
    prompts: Texts = setting(
        (),
        "What to draw, beside the job's prompts. Repeat it for several.",
        flag="--prompt",
        short="-p",
        panel=PICTURES,
    )
    dry_run: bool = setting(False, "Say what there is to do and what it takes; draw nothing.", panel=RUN)
    verify: bool = setting(
        False,
        "Check every picture, shard and row in --out against manifest.jsonl, and draw nothing. With a job also that "
        "the rows are the job's.",
        panel=RUN,
    )
    repair: bool = setting(False, "(--verify) Draw again what is damaged or gone, and nothing else.", panel=RUN)
    distributed: bool = setting(
        False, "Draw with all processes of a Cloud TPU slice, SLURM step, mpirun or GKE job; each runs this command."
    )
    coordinator_address: str | None = setting(None, "Elsewhere: where all reach process 0.", metavar="HOST:PORT")
    num_processes: int | None = setting(None, "How many there are.")
    process_id: int | None = setting(None, "Which of them this one is, from 0.")
    ray: str | None = setting(
        None,
        "Draw with a fleet: workers that come and go as a Ray cluster has room. Its host:port; auto: that of this "
        "machine; local: this machine alone. The command itself needs no device.",
        metavar="ADDRESS",
    )
    workers: int | None = setting(
        None,
        "(--ray) At once, at most: a cluster that scales starts machines for them.",
        shown="as many as there is room for now",
    )
    resources: Texts = setting(
        (),
        "(--ray) Of each worker: --resources TPU=4, or --resources GPU=1 --resources CPU=8.",
        shown="all TPUs of a machine, or a GPU, or a CPU",
        metavar="NAME=AMOUNT",
    )

    @classmethod
    def configured(cls, kind: Any, options: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
        file = options.get("job")
        if file and file.suffix not in (".py", *TABLES):
            raise ConfigError(
                f"{file} should be a Python file whose get_config() returns a Job, or a .yaml or .json file"
            )
        job = super().configured(kind, {**options, "config": file}, changes)
        said = {name.removeprefix("settings.") for name in {**assignments(options.get("set_", ())), **changes}}
        if twice := sorted(said.intersection(*[{name for grid in job.grid for name in grid}])):
            raise ConfigError(
                f"{twice[0]} is an axis of the job's grid, and a flag or --set gives it, too: leave one out"
            )
        return dataclasses.replace(job, prompts=(*job.prompts, *options.get("prompts", ())))

    @property
    def has_job(self) -> bool:
        """Whether it says what to draw."""
        return bool(self.job or self.settings.prompts or self.settings.prompt_file)

    def check(self) -> None:
        if self.repair and not (self.verify and self.has_job):
            raise ConfigError("--repair draws what --verify finds: give both, and the job")
        if self.verify and (self.dry_run or self.distributed or self.ray or self.coordinator_address):
            raise ConfigError("--verify is done by one process: leave --dry-run, --distributed and --ray out")
        if not (self.has_job or self.verify):
            raise ConfigError(
                "draw what? Give a job's file, or --prompt or --prompt-file and what else there is to say"
            )

    EXAMPLES = """[bold]A job[/] is a Python file whose get_config() returns it:

[cyan]from autolora_jax import CFG, AutoLoRA
from autolora_jax.batch import Job, Settings
from autolora_jax.settings import Lora, ModelConfig

def get_config() -> Job:
    return Job(
        prompt_file="prompts.jsonl",  # prompt; negative_prompt, seeds and id if need be
        seeds=tuple(range(512)),
        settings=Settings(model=ModelConfig("sd_xl_base_1.0.safetensors"), loras=(Lora("anna.safetensors"),)),
        grid={"guidance": \\[CFG(5.0), AutoLoRA(1.5)], "lora_scale": \\[0.4, 0.7, 1.0]},
    )[/]

The same in YAML, or JSON, with values as --set has them:

[cyan]prompt_file: prompts.jsonl
seeds: 0-511
settings: {model: {source: sd_xl_base_1.0.safetensors}, loras: \\[anna.safetensors]}
grid:
  guidance: \\[{rule: cfg, w: 5}, {rule: autolora, gamma: 1.5}]
  lora_scale: \\[0.4, 0.7, 1.0][/]

Or flags alone, as of autolora generate; the job is then kept as job.json beside the pictures:

[cyan]autolora batch --model sdxl.safetensors --lora a.safetensors --prompt-file prompts.txt --seeds 0-511 --out anna[/]

[bold]Examples[/]

What it will take, and then the job:

[cyan]autolora batch job.py --out anna --dry-run --calibrate[/]
[cyan]autolora batch job.py --out anna[/]

Into a bucket, as WebDataset shards of 1,000 WebP pictures:

[cyan]autolora batch job.py --out gs://bucket/anna --format webp --shards 1000[/]

Only what evaluate needs, 8 KB a picture:

[cyan]autolora batch job.py --out anna.features --format features && autolora evaluate anna.features[/]

Years later, or after a disk was lost: is all of it still what was drawn? And what is not, drawn again:

[cyan]autolora batch --out anna --verify[/]
[cyan]autolora batch job.py --out anna --verify --repair[/]

More seeds, later: only what is new is drawn.

[cyan]autolora batch job.py --out anna --seeds 0-1023[/]

By a fleet of eight workers of a Ray cluster, each with four chips; docs/guides/ray.md has recipes:

[cyan]autolora batch job.py --out gs://bucket/anna --ray auto --workers 8 --resources TPU=4[/]

[bold]Exit codes[/] 0: all is drawn. 3: all but pictures that can't be, which --retry tries again; or --verify found
something wrong. 75: Ctrl-C or SIGTERM came; what was begun is saved, the same command goes on. 1: it can't go on, for
the reason given. 2: the job can't be meant. 134: another of its processes vanished, or did not
come; the same command goes on.
"""
