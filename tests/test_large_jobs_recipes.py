"""The recipes of clusters.md and tpu_vm.md, as far as they can be run here: with stand-ins for what a cloud does."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml

from autolora_jax.cli import app

DOCS = Path(__file__).resolve().parents[1] / "docs"
RECIPES = DOCS / "recipes"
PAGE = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("guides/clusters.md", "tutorials/tpu_vm.md"))
SCRIPTS = sorted(path for path in RECIPES.iterdir() if path.suffix in (".sh", ".sbatch"))


def blocks(kind: str) -> list[str]:
    """The page's blocks of code of a kind."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


class Stage:
    """A folder with programs that do nothing but note how they were called, and answer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        self.calls.touch()

    def stand_in(self, name: str, answers: str = "") -> None:
        """answers: what it does in bash, after it has noted the call. $n: how often it was called before."""
        path = self.folder / name
        path.write_text(
            f'#!/bin/bash\nn=$(grep -c "^{name} " {self.calls})\necho "{name} $*" >> {self.calls}\n{answers}\n'
        )
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, list[str]]:
        """(exit code, calls)."""
        path = f"{self.folder}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PAUSE": "0", "HOME": str(self.folder), **variables}
        code = subprocess.run(["bash", RECIPES / script, *arguments], env=environment, timeout=20).returncode
        return code, self.calls.read_text().splitlines()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.mark.parametrize("script", [*SCRIPTS, *blocks("sh")], ids=lambda s: s.name if isinstance(s, Path) else "page")
def test_scripts_are_bash(script: Path | str):
    text = script if isinstance(script, str) else script.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_what_is_named_exists():
    command = typer.main.get_command(app).commands["batch"]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in parameter.opts}
    text = "\n".join([PAGE, *(path.read_text(encoding="utf-8") for path in RECIPES.iterdir())]).replace("\\\n", " ")
    calls = re.findall(r"\bautolora batch (.*)|until_done\.sh (.*)", text)
    used = {flag for call in calls for flag in re.findall(r"(?<!\S)--[a-z-]+", " ".join(call))}
    assert {"--out", "--distributed", "--process-id"} <= used <= known
    names = {path.name for path in RECIPES.iterdir()}
    assert set(re.findall(r"docs/recipes/(\w+\.\w+)", PAGE)) <= names and all(name in PAGE for name in names)


@pytest.mark.parametrize(("codes", "code"), [("75 134 0", 0), ("143 1", 1), ("2", 2)])
def test_the_loop_goes_on_while_there_is_more_to_do(stage: Stage, codes: str, code: int):
    stage.stand_in("autolora", f"codes=({codes}); exit ${{codes[n]}}")
    ended, calls = stage.run("until_done.sh", "job.py", "--out", "o u t")
    assert (ended, calls) == (code, ["autolora batch job.py --out o u t"] * len(codes.split()))


GCLOUD = """case "$*" in
    *describe*) echo {states} | cut -d " " -f $((1 + $(grep -c describe {calls} ) - 1)) ;;
    *until_done*) [ $(grep -c until_done {calls}) = {succeeds} ] ;;
esac"""


@pytest.mark.parametrize(
    ("states", "succeeds", "code", "slices"),
    [
        ("WAITING_FOR_RESOURCES ACTIVE ACTIVE", 1, 0, 1),
        ("ACTIVE SUSPENDED WAITING_FOR_RESOURCES ACTIVE ACTIVE", 2, 0, 2),  # preempted
        ("ACTIVE ACTIVE", 0, 1, 1),  # the job can't go on
    ],
)
def test_a_preempted_slice_is_followed_by_another(stage: Stage, states: str, succeeds: int, code: int, slices: int):
    stage.stand_in("gcloud", GCLOUD.format(states=states, succeeds=succeeds, calls=stage.calls))
    ended, calls = stage.run("v5e16.sh", "jobs/job.py", "gs://b/anna", NAME="anna", ZONE="z")
    assert ended == code
    assert all(
        call.startswith("gcloud compute tpus ") and call.endswith(" --zone=z") for call in calls if "ssh" not in call
    )
    made, gone = ([call for call in calls if f"queued-resources {what} anna" in call] for what in ("create", "delete"))
    assert len(made) == len(gone) == slices and calls[-1] == gone[-1]
    assert next(call for call in calls if "until_done.sh" in call).count("--worker=all --command=") == 1


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_array.sbatch"])
@pytest.mark.parametrize(("code", "again"), [(0, False), (75, True), (1, False)])
def test_slurm_jobs_put_themselves_back_into_the_queue(stage: Stage, script: str, code: int, again: bool):
    stage.stand_in("srun", f"exit {code}")
    stage.stand_in("scontrol")
    ended, calls = stage.run(script, SLURM_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")
    assert ended == code
    assert calls[1:] == (["scontrol requeue 7"] if again else [])
    if "array" in script:
        assert calls[0] == f"srun autolora batch job.py --out {stage.folder}/anna/3 --seeds 96-127"


def test_the_indexed_job_is_one():
    service, job = yaml.safe_load_all((RECIPES / "gke.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["template"]["spec"]
    assert (service["kind"], job["kind"], job["spec"]["completionMode"]) == ("Service", "Job", "Indexed")
    assert service["spec"]["clusterIP"] == "None" and pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert [yaml.safe_load(block) for block in blocks("yaml")]
