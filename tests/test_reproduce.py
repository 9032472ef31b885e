"""`autolora reproduce` as users have it: stopped, started again, and its figures computed once more by hand."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from autolora_jax.demo.classifier import Classifier
from autolora_jax.demo.world import LABELS
from autolora_jax.experiments.results import CellResult, Results
from tests.judge_server import MODEL, Asked, JudgeServer, error, good, say
from tests.programs import autolora
from tests.test_features import save_clip

MORE, INCOMPLETE = 75, 3
ROUNDED = 2e-8  # absolute: cosines of float32 features, times 5 of a score; seen 3e-9 in a cosine, where Div is 0.0025
EXACT = 1e-6  # relative; seen 2e-8, what float32 features of batches of different sizes differ in
PROMPTS, SEEDS, SCALES, METHODS = ("a zib", "a red cat in the snow"), (0, 1, 2), (0.4, 1.0), ("LoRA", "AutoLoRA")
MINE = """
from autolora_jax.batch import Job, Settings
from autolora_jax.experiments.experiment import Ask, Cell, Experiment, Sheet
from autolora_jax.settings.rules import AutoLoRA, NoGuidance
from autolora_jax.settings import Lora, ModelConfig

def get_builtin(world=True):
    return Experiment(
        name="mine",
        title="Two methods at two scales",
        job=Job(
            prompts=("a zib", "a red cat in the snow"),
            seeds=range(3),
            settings=Settings(
                model=ModelConfig(dtype="float32"), loras=(Lora("builtin:character"),), num_inference_steps=4
            ),
            batch_size=3,
        ),
        cells=tuple(
            Cell(name, scale, {"guidance": rule, "lora_scale": scale}, {"CPS": 4.5})
            for name, rule in {"LoRA": NoGuidance(), "AutoLoRA": AutoLoRA(1.5, 1.0, 1.0)}.items()
            for scale in (0.4, 1.0)
        ),
        axis="LoRA scale",
        asks=(Ask("cps", {"character": "zib"}), Ask("pc")),
        pairs={"AutoLoRA": "LoRA"},
        plots=(("LoRA scale", "CPS"),),
        frontier=("Div", "CPS"),
        sheets=(Sheet("axis"),),
        assumptions=("Two steps are enough for a test.",),
        world=world,
    )

def get_config():
    return get_builtin(world=False)
"""
FLAGS = ("--model", "builtin", "--set", "settings.sampler.steps=2")


class Run(NamedTuple):
    """An experiment's file, its folder, what its first and its second run said, pictures that the first one left."""

    file: Path
    out: Path
    first: subprocess.CompletedProcess[str]
    second: subprocess.CompletedProcess[str]
    before: Mapping[str, int]


def start(file: Path, out: Path, *more: Any) -> subprocess.Popen[str]:
    program = "from autolora_jax.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "reproduce", *map(str, (file, "--out", out, *FLAGS, *more))],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    told, said = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, told, said)


def pictures(out: Path) -> dict[str, int]:
    """Name -> when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Stopped in the middle of drawing, then run again."""
    folder = tmp_path_factory.mktemp("mine")
    file, out = folder / "mine.py", folder / "out"
    file.write_text(MINE)
    process = start(file, out)
    while not list(out.glob("pictures/.autolora/parts/*.jsonl")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    first = ended(process)
    before = pictures(out)
    return Run(file, out, first, ended(start(file, out)), before)


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Path:
    """Of the folder, to be changed."""
    shutil.copytree(run.out, tmp_path / "out", ignore=shutil.ignore_patterns(".xla"))
    return tmp_path / "out"


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer().serve() as server:
        yield server


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "pictures" / "manifest.jsonl").read_text().splitlines()]


def pixels(out: Path, row: Mapping[str, Any]) -> np.ndarray:
    with Image.open(out / "pictures" / row["file"]) as image:
        return np.asarray(image.convert("RGB"))


class ByHand(NamedTuple):
    """A cell's pictures as arrays [prompt][seed], from the manifest alone."""

    features: np.ndarray
    presence: np.ndarray
    found: np.ndarray

    def figures(self) -> dict[str, float]:
        spread = []
        for prompt in range(len(PROMPTS)):
            cosines = []
            for i, j in itertools.combinations(range(len(SEEDS)), 2):
                x, y = self.features[prompt, i].astype(np.float64), self.features[prompt, j].astype(np.float64)
                cosines.append(sum(x * y) / (sum(x * x) ** 0.5 * sum(y * y) ** 0.5))
            spread.append(1 - sum(cosines) / len(cosines))
        div, cps, pc = float(np.mean(spread)), 5 * float(np.mean(self.presence)), 5 * float(np.mean(self.found))
        return {"Div": div, "CPS": cps, "PC": pc, "Div-CPS": div * cps, "Div-PC": div * pc}


def by_hand(out: Path) -> dict[tuple[str, float], ByHand]:
    classifier, cells = Classifier.load(), {}
    for (guidance, method), scale in itertools.product((("none", "LoRA"), ("autolora", "AutoLoRA")), SCALES):
        mine = [row for row in rows(out) if (row["guidance"], row["lora_scales"]) == (guidance, [scale])]
        ordered = sorted(mine, key=lambda row: (PROMPTS.index(row["prompt"]), row["seed"]))
        assert len(ordered) == len(PROMPTS) * len(SEEDS)
        judged = classifier(np.stack([pixels(out, row) for row in ordered]))
        shape = len(PROMPTS), len(SEEDS)
        subject, colour, sky = (judged.classes[name].reshape(shape) for name in ("subject", "colour", "sky"))
        zib, cat = (LABELS["subject"].index(name) for name in ("zib", "cat"))
        red, snow = LABELS["colour"].index("red"), LABELS["sky"].index("snow")
        cats = ((subject[1] == cat) * 1.0 + (colour[1] == red) + (sky[1] == snow)) / 3
        cells[method, scale] = ByHand(
            judged.features.reshape(*shape, -1),
            judged.presence.astype(np.float64).reshape(shape),
            np.stack([(subject[0] == zib) * 1.0, cats]),
        )
    return cells


def cells(results: Results) -> dict[tuple[str, float | None], CellResult]:
    return {(cell.method, cell.at): cell for cell in results.cells}


def test_it_is_stopped_and_goes_on(run: Run):
    assert (run.first.returncode, run.first.stdout) == (MORE, ""), run.first.stderr
    assert "the same command goes on from there" in run.first.stderr
    assert 0 < len(run.before) < 24
    assert run.second.returncode == 0, run.second.stderr
    assert f"{len(run.before)} of 24 pictures are there" in run.second.stderr
    after = pictures(run.out)
    assert len(after) == 24 and {name: after[name] for name in run.before} == run.before
    assert run.second.stdout == f"mine: {run.out / 'report.html'}\n"
    names = {path.name for path in run.out.iterdir()}
    assert {"pictures", "results.json", "table.md", "table.csv", "table.tex", "sheets", "report.html"} <= names
    assert list((run.out / "sheets").glob("*.jpg")) and list(run.out.glob("plot-*.png")) and "frontier.png" in names


def test_figures_are_those_of_the_pictures(run: Run):
    results = Results.read(run.out / "results.json")
    hands = by_hand(run.out)
    assert [(cell.method, cell.at) for cell in results.cells] == [*hands]
    for place, cell in cells(results).items():
        expected = hands[place].figures()
        assert {*cell.figures} == {*expected} and cell.pictures == 6
        for name, figure in cell.figures.items():
            assert figure.value == pytest.approx(expected[name], rel=EXACT, abs=ROUNDED), (place, name)
            assert (figure.low <= figure.value + 1e-12 and figure.high >= figure.value - 1e-12) or name.startswith(
                "Div"
            )
        assert cell.published == {"CPS": 4.5} and cell.settings["lora_scales"] == [cell.at]
        assert cell.evaluations == {"LoRA": 2, "AutoLoRA": 4}[cell.method]
        if cell.method == "AutoLoRA":
            other = hands["LoRA", place[1]].figures()
            assert cell.against == "LoRA"
            for name, difference in cell.differences.items():
                assert difference.value == pytest.approx(expected[name] - other[name], rel=1e-5, abs=1e-8)
        else:
            assert cell.against == "" and not cell.differences
    assert (results.prompts, results.seeds, results.assumptions[0][:9]) == (PROMPTS, 3, "Two steps")
    told = results.provenance
    assert told["command"] == "autolora reproduce mine --set settings.sampler.steps=2 --model builtin"
    assert told["pictures"] == "24 of 24 different ones" and "classifier" in told["judge"]
    assert {*results.meaning} == {"Div", "CPS", "PC", "Div-CPS", "Div-PC"}


def test_pictures_that_are_missing_are_told_and_pairs_stay_pairs(run: Run, copy: Path):
    """One is not finite, one can't be read, one was never drawn."""
    manifest = copy / "pictures" / "manifest.jsonl"
    mine = {(row["guidance"], row["lora_scales"][0], row["prompt"], row["seed"]): row for row in rows(copy)}
    bad, unread = mine["none", 0.4, PROMPTS[0], 0], mine["autolora", 0.4, PROMPTS[0], 1]
    none = mine["none", 1.0, PROMPTS[1], 2]
    (copy / "pictures" / unread["file"]).write_bytes(b"no picture")
    bad |= {"status": "not_finite", "file": None, "sha256": None, "reason": "NaN"}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in mine.values() if row is not none))
    result = autolora("reproduce", run.file, "--out", copy, *FLAGS, "--report-only")
    assert result.exit_code == 0, result.output
    results = Results.read(copy / "results.json")
    told = results.provenance
    assert told["pictures"] == "22 of 24 different ones"
    assert (
        told["pictures that are missing"].startswith("2: ") and "1 not finite: NaN" in told["pictures that are missing"]
    )
    assert "1 not drawn yet" in told["pictures that are missing"] and told["pictures without a score"].startswith("1: ")
    assert "pictures that are missing" in result.stderr
    found, hands = cells(results), by_hand(run.out)
    assert [
        found[place].pictures for place in (("LoRA", 0.4), ("AutoLoRA", 0.4), ("LoRA", 1.0), ("AutoLoRA", 1.0))
    ] == [5, 5, 5, 6]
    kept = np.array([False, False, True, True, True, True])  # of prompt 0 only seed 2 is in both
    before, after = (5 * hands[name, 0.4].presence.reshape(-1)[kept].mean() for name in ("LoRA", "AutoLoRA"))
    assert found["AutoLoRA", 0.4].differences["CPS"].value == pytest.approx(after - before, rel=1e-5)


def shade(out: Path, row: Mapping[str, Any]) -> int:
    return round(float(pixels(out, row).mean()) / 51)


def answer(asked: Asked) -> Any:
    """The shade of the picture is what it gets for everything."""
    if "correspondence" in asked.texts[0] or "prompt_correspondence" in str(asked.texts):
        return say(json.dumps({"prompt_correspondence": asked.shade}))
    return good(asked)


def test_a_judge_is_asked_once(run: Run, copy: Path, server: JudgeServer):
    server.answer = lambda asked: error(500) if asked is server.asked[0] else answer(asked)
    judge = ["--report-only", "--judge", MODEL, "--base-url", server.url, "--tries", 1, "--price-in", 2]
    command = ["reproduce", run.file, "--out", copy, *FLAGS, *judge, "--api-key", "sk-secret"]
    result = autolora(*command)
    assert result.exit_code == INCOMPLETE and "1 unanswered: HTTP 500" in result.stderr, result.output
    assert len(server.asked) == 48 and autolora(*command).exit_code == 0  # two questions about 24 pictures
    assert len(server.asked) == 49 and autolora(*command).exit_code == 0 and len(server.asked) == 49
    results = Results.read(copy / "results.json")
    for (method, at), cell in cells(results).items():
        guidance = {"LoRA": "none", "AutoLoRA": "autolora"}[method]
        mine = [shade(copy, row) for row in rows(copy) if (row["guidance"], row["lora_scales"]) == (guidance, [at])]
        assert cell.figures["CPS"].value == pytest.approx(np.mean(mine))
        assert cell.figures["PC"].value == pytest.approx(np.mean(mine))
    told = results.provenance
    assert MODEL in told["judge (cps)"] and "cost" in told["asking (pc)"] and f"--judge {MODEL}" in told["command"]
    assert not [path for path in copy.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_without_a_judge_there_is_clipscore(run: Run, copy: Path, tmp_path: Path):
    save_clip(tmp_path / "clip")
    models = ["--clip", tmp_path / "clip", "--features", tmp_path / "clip", "--vendi"]
    result = autolora("reproduce", run.file, "--out", copy, *FLAGS[2:], "--report-only", *models)
    assert result.exit_code == 0, result.output
    results = Results.read(copy / "results.json")
    assert {*results.figures} == {"CLIPScore", "Div", "Div-CLIPScore", "Vendi"} == {*results.meaning}
    assert (results.plots, results.frontier) == ((("LoRA scale", "CLIPScore"),), ("Div", "CLIPScore"))


def test_an_empty_place_is_said(run: Run, tmp_path: Path):
    result = autolora("reproduce", run.file, "--out", tmp_path / "none", *FLAGS, "--report-only")
    assert result.exit_code == 1 and "holds none of the pictures of mine" in result.stderr


def test_a_dry_run_of_what_is_drawn(run: Run):
    result = autolora("reproduce", run.file, "--out", run.out, *FLAGS, "--dry-run")
    words = " ".join(result.stdout.split())
    assert result.exit_code == 0 and "pictures 24 finished 24 to draw 0" in words and "not looked at" not in words
