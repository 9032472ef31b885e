"""`autolora evaluate` from its command line: what it measures, tells, keeps, and refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from autolora_jax.evaluation import diversity
from autolora_jax.evaluation.diversity import conditional_vendi_score, vendi_score
from autolora_jax.evaluation.encoders import open_clip, open_encoder
from autolora_jax.evaluation.features import Encoder
from autolora_jax.pictures import save_png, write_png
from autolora_jax.sharding import data_mesh
from recipes.builtin.words import sample_scene
from recipes.builtin.world import draw
from tests.programs import autolora
from tests.test_cli import settings
from tests.test_evaluation_pictures import write_shard
from tests.test_features import save_clip, save_dinov2

PROMPTS = ("the cat", "a dog")
COUNT = 4  # pictures a prompt
CLOSE = 1e-4  # other batches; seen: 2e-7


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_dinov2(folder / "tiny-dinov2")
    save_clip(folder / "tiny-clip")
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures as `generate` saves those of the built-in model, with their grid. Read-only."""
    folder = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    for i in range(len(PROMPTS) * COUNT):
        image = draw(sample_scene(rng), rng, 96)
        save_png(folder / f"{i:04}.png", image, settings(prompt=PROMPTS[i // COUNT], seed=i % COUNT))
    write_png(folder / "grid.png", Image.new("RGB", (300, 200)), {"autolora": '{"settings": {}}'})
    return folder


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "out"))


def table(result: Result, path: Path) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(path.read_text())


def test_figures_are_those_of_the_features(folder: Path, models: Path, tmp_path: Path):
    """End to end by a DINOv2, against the metrics of features that are taken here, picture by picture."""
    out = tmp_path / "t.json"
    model = models / "tiny-dinov2"
    found = table(autolora("evaluate", folder, "--features", model, "--batch-size", 1, "--json", out), out)
    encoder = open_encoder(model, data_mesh(), batch_size=1)
    images = [Image.open(folder / f"{i:04}.png") for i in range(8)]
    features = np.concatenate([encoder.encode(encoder.prepare(image)[None]) for image in images])
    assert [group["label"]["prompt"] for group in found["groups"]] == list(PROMPTS)
    assert found["all"]["pictures"] == 8 and found["group by"] == ["prompt"]
    halves = features[:COUNT], features[COUNT:]
    for row, half in zip(found["groups"], halves, strict=True):
        assert row["figures"]["Div"]["value"] == pytest.approx(diversity(half), abs=CLOSE)
        assert row["figures"]["Vendi"]["value"] == pytest.approx(vendi_score(half), abs=CLOSE)
        assert row["figures"]["Div"]["low"] <= row["figures"]["Div"]["value"] <= row["figures"]["Div"]["high"]
    overall = found["all"]["figures"]["Div"]["value"]
    assert overall == pytest.approx(np.mean([diversity(half) for half in halves]), abs=CLOSE)
    assert found["models"]["features"] == {"name": str(model), "identity": encoder.identity}


def test_a_second_run_and_shards_are_free(folder: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(*places: Path, confidence: float = 0.95) -> dict:
        out = tmp_path / "t.json"
        flags = ["--features", models / "tiny-dinov2", "--confidence", confidence, "--cache", tmp_path / "kept"]
        return table(autolora("evaluate", *places, *flags, "--json", out), out)

    first = run(folder)
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}
    shard = write_shard(tmp_path / "s.tar", files)
    monkeypatch.delattr("autolora_jax.weights.streaming.TensorWeights.load")  # nothing is computed
    assert run(folder) == first
    other = run(shard)
    assert (other["groups"], other["all"]) == (first["groups"], first["all"])
    narrow = run(folder, confidence=0.5)["all"]["figures"]["Div"]
    assert first["all"]["figures"]["Div"]["low"] < narrow["low"] < narrow["high"]
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_the_built_in_models_pictures_offline(folder: Path):
    result = autolora("evaluate", folder, "--features", "builtin")
    assert result.exit_code == 0, result.output
    assert re.search(r"the cat\s+│\s+4 │\s+0\.\d+ \(0\.\d+ to 0\.\d+\) │", result.stdout)
    assert "all" in result.stdout and "95% confidence" in result.stdout
    assert [path.suffix for path in (folder / ".autolora").iterdir()] == [".features"]


def test_clipscore_and_a_judges_scores(folder: Path, models: Path, tmp_path: Path):
    """CLIP's features serve diversity and CLIPScore; scores of a judge are multiplied with diversity."""
    report, out = tmp_path / "anna.json", tmp_path / "t.json"
    judged = [{"picture": f"{i:04}.png", "outcome": "scored", "CPS": i % 5, "answer": {}} for i in range(7)]
    report.write_text(json.dumps({"pictures": [*judged, {"picture": "0007.png", "outcome": "refused"}]}))
    clip = models / "tiny-clip"
    flags = ["--metrics", "diversity,clipscore", "--features", clip, "--clip", clip, "--scores", report, "--json", out]
    figures = table(autolora("evaluate", folder, *flags), out)["groups"][1]["figures"]
    assert list(figures) == ["CLIPScore", "CPS", "Div", "Div-CLIPScore", "Div-CPS"]
    assert figures["CPS"]["value"] == pytest.approx((4 + 0 + 1) / 3)
    assert figures["Div-CPS"]["value"] == pytest.approx(figures["Div"]["value"] * 5 / 3)
    model = open_clip(clip, data_mesh(), batch_size=1)
    images = [Image.open(folder / f"{i:04}.png") for i in range(COUNT, 2 * COUNT)]
    pictures = model.pictures.encode(np.stack([model.pictures.prepare(image) for image in images]))
    text = model.texts([PROMPTS[1]])[0]
    cosines = [x @ text / np.linalg.norm(x) / np.linalg.norm(text) for x in pictures]
    assert figures["CLIPScore"]["value"] == pytest.approx(100 * np.mean(np.maximum(cosines, 0)), abs=100 * CLOSE)
    assert len(list((folder / ".autolora").iterdir())) == 2  # of pictures, of texts
    flags = ["--metrics", "clipscore,pickscore", "--clip", clip, "--pickscore", clip, "--json", out]
    figures = table(autolora("evaluate", folder, *flags), out)["groups"][1]["figures"]
    assert list(figures) == ["CLIPScore", "PickScore"]
    assert figures["PickScore"]["value"] == pytest.approx(model.temperature() * np.mean(cosines), abs=100 * CLOSE)


def test_variety_that_prompts_do_not_explain(folder: Path, models: Path, tmp_path: Path):
    clip, out = models / "tiny-clip", tmp_path / "t.json"
    flags = ["--metrics", "vendi,conditional-vendi", "--features", clip, "--clip", clip, "--json", out]
    found = table(autolora("evaluate", folder, *flags), out)
    for row in found["groups"]:  # of one prompt it is the Vendi score
        assert row["figures"]["Conditional Vendi"]["value"] == pytest.approx(row["figures"]["Vendi"]["value"])
    model = open_clip(clip, data_mesh(), batch_size=1)
    images = [Image.open(folder / f"{i:04}.png") for i in range(2 * COUNT)]
    pictures = model.pictures.encode(np.stack([model.pictures.prepare(image) for image in images]))
    prompts = model.texts(PROMPTS).repeat(COUNT, axis=0)
    wanted = conditional_vendi_score(pictures, prompts)
    assert found["all"]["figures"]["Conditional Vendi"]["value"] == pytest.approx(wanted, abs=CLOSE)
    assert found["all"]["figures"]["Conditional Vendi"]["low"] is None


def test_groups(folder: Path, tmp_path: Path):
    (folder / "sub").mkdir()
    for i in (0, 1, 2):
        (folder / f"000{i}.png").rename(folder / "sub" / f"000{i}.png")
    rows = [{"file": f"sub/000{i}.png", "scheduler": "ddim"} for i in range(3)]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(*flags: str) -> tuple[list, str]:
        out = tmp_path / "t.json"
        result = autolora("evaluate", folder, "--features", "builtin", "--json", out, *flags)
        return [(*row["label"].values(), row["pictures"]) for row in table(result, out)["groups"]], result.stderr

    rows, said = run()
    assert rows == [("the cat", 4), ("a dog", 4)]
    assert "Pictures of one group differ in scheduler; --group-by prompt,scheduler keeps them apart" in said
    rows, said = run("--group-by", "prompt,scheduler")
    assert rows == [("the cat", "euler", 1), ("a dog", "euler", 4), ("the cat", "ddim", 3)]
    assert "differ" not in said and "1 of 3 groups have a single picture, and so no diversity" in said
    assert run("--group-by", "folder")[0] == [(".", 5), ("sub", 3)]
    assert run("--group-by", "none")[0] == [(8,)]
    result = autolora("evaluate", folder, "--features", "builtin", "--group-by", "promt")
    assert result.exit_code == 1 and "no picture tells that; did you mean prompt?" in result.stderr


def test_bad_pictures_are_named(folder: Path, tmp_path: Path):
    (folder / "0003.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 96)).save(folder / "0009.png")
    out = tmp_path / "t.json"
    result = autolora("evaluate", folder, "--features", "builtin", "--json", out)
    assert result.exit_code == 3
    assert "0003.png is no picture" in result.stderr and "0009.png is 64 × 96 pixels" in result.stderr
    found = json.loads(out.read_text())
    assert found["all"]["pictures"] == 7 and sorted(found["not measured"]) == ["0003.png", "0009.png"]
    assert "4" in result.stdout


def test_pictures_that_are_gone_are_named(folder: Path, tmp_path: Path):
    rows = [{"file": f"{i:04}.png", "status": "ok"} for i in (0, 3, 11)] + [{"file": None, "status": "failed"}]
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = tmp_path / "t.json"
    result = autolora("evaluate", folder, "--features", "builtin", "--json", out)
    assert result.exit_code == 3 and "0011.png is not there" in result.stderr
    found = json.loads(out.read_text())
    assert found["all"]["pictures"] == 8 and list(found["not measured"]) == ["0011.png"]


def test_one_picture_has_no_diversity(folder: Path, tmp_path: Path):
    out = tmp_path / "t.json"
    found = table(autolora("evaluate", folder / "0000.png", "--features", "builtin", "--json", out), out)
    nothing = {"value": None, "low": None, "high": None}
    assert found["all"]["figures"] == {"Div": nothing, "Vendi": {**nothing, "value": pytest.approx(1)}}


@pytest.mark.parametrize(
    "flags, code, said",
    [
        (
            ["--metrics", "fid"],
            2,
            "--metrics = 'fid' is not known: there are diversity, vendi, conditional-vendi, clipscore",
        ),
        (["--confidence", "95"], 2, "--confidence 95 should be between 0 and 1"),
        (["--dtype", "int8"], 2, "dtype = 'int8' is not known: there are float32, bfloat16"),
        (["--features", "dinov3"], 1, "dinov3 does not exist; give a folder with config.json"),
        ([], 1, "--features builtin measures what the built-in model drew"),
        (
            ["--features", "builtin", "--metrics", "clipscore"],
            1,
            "openai/clip-vit-large-patch14 is not on this machine",
        ),
        (["--features", "builtin", "--scores", "nothing.json"], 1, "nothing.json"),
    ],
)
def test_what_can_not_be_done_is_said(
    flags: list[str], code: int, said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    result = autolora("evaluate", folder, *flags)
    assert result.exit_code == code
    assert said in result.stderr


def test_reports_of_other_pictures_are_refused(folder: Path, tmp_path: Path):
    report = tmp_path / "r.json"
    for content, said in {
        '{"pictures": [{"picture": "x.png", "CPS": 1}]}': "is about other pictures: about x.png",
        "[]": "is no report of autolora judge",
    }.items():
        report.write_text(content)
        result = autolora("evaluate", folder, "--features", "builtin", "--scores", report)
        assert result.exit_code == 1 and said in result.stderr


def test_a_place_that_can_not_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / ".autolora").write_text("a file where the folder should be")
    result = autolora("evaluate", folder, "--features", "builtin")
    assert result.exit_code == 0 and "Features are not kept" in result.stderr
    result = autolora("evaluate", folder, "--features", "builtin", "--cache", folder / ".autolora")
    assert result.exit_code == 1 and "exists" in result.stderr


def test_a_run_that_was_stopped_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Batches that were done are not computed again."""
    rng = np.random.default_rng(1)
    for i in range(10, 22):
        draw(sample_scene(rng), rng, 96).save(folder / f"{i:04}.png")
    compute, computed = Encoder.__call__, []

    def stopping(encoder: Encoder, rows: np.ndarray) -> np.ndarray:
        if len(computed) == 1:
            raise KeyboardInterrupt
        computed.append(len(rows))
        return compute(encoder, rows)

    flags = ["--features", "builtin", "--batch-size", 1, "--group-by", "none"]
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "__call__", stopping)
        stopped = autolora("evaluate", folder, *flags)
    assert stopped.exit_code == 130 and computed == [8]
    monkeypatch.setattr(Encoder, "__call__", lambda e, rows: (computed.append(len(rows)), compute(e, rows))[1])
    assert autolora("evaluate", folder, *flags).exit_code == 0
    assert computed == [8, 8, 4]
