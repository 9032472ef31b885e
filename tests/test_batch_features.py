"""Jobs that keep features in place of pictures: the very ones that are measured from the pictures' files."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from autolora_jax import ConfigError
from autolora_jax.batch import Drawing, Job, OutputConfig, Pictures, read_manifest
from autolora_jax.batch.estimate import estimate
from autolora_jax.batch.plan import Batch, Row
from autolora_jax.batch.run import run
from autolora_jax.batch.storage import Folder
from autolora_jax.evaluation import pictures
from autolora_jax.evaluation.encoders import open_encoder
from autolora_jax.evaluation.features import collect
from autolora_jax.sharding import data_mesh
from recipes.builtin.words import sample_scene
from recipes.builtin.world import draw as draw_scene
from tests.batch_jobs import SETTINGS, draw_all, open_fake, plan_of, tree
from tests.programs import autolora
from tests.test_features import save_clip, save_dinov2

SIDE, COUNT = 96, 12
FEATURES = OutputConfig("features", features="builtin")
JOB = Job(
    prompts=("a zib", "a red cat"),
    seeds=range(3),
    settings=dataclasses.replace(SETTINGS, size=(SIDE, SIDE)),
    grid={"lora_scale": [0.5, 1.0]},
)
KEPT = dataclasses.replace(JOB, output=FEATURES)
ROUGHLY = 0.25  # how far an estimate of bytes may be off; seen: 0.18


def scene(row: Row) -> np.ndarray:
    """The picture of a key."""
    rng = np.random.default_rng(int(row.key, 16))
    return np.asarray(draw_scene(sample_scene(rng), rng, SIDE))


def draw(rows: Sequence[Row], batch: Batch) -> Drawing:
    """A `Draw`; the second prompt's last seed is not finite, its first can't be read."""
    bad = {(1, 0): "failed", (1, 2): "not finite"}
    fates = [
        bad.get((int(row.prompt == "a red cat"), row.seed)) if row.recipe.scales == (0.5,) else None for row in rows
    ]
    failed = {i: "TypeError: no text" for i, fate in enumerate(fates) if fate == "failed"}
    left = [(row, fate is None) for row, fate in zip(rows, fates, strict=True) if fate != "failed"]
    arrays = np.stack([scene(row) for row, _ in left])
    return Drawing(failed, lambda: Pictures(arrays, np.array([good for _, good in left])))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job's PNG files."""
    out = tmp_path_factory.mktemp("drawn") / "out"
    draw_all(JOB, out, 8, draw)
    return out


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their features."""
    out = tmp_path_factory.mktemp("kept") / "out"
    _, summary = draw_all(KEPT, out, 8, draw)
    assert (summary.ok, summary.failed, summary.not_finite) == (COUNT - 2, 1, 1)
    return out


def evaluated(path: Path, *arguments: object) -> dict:
    result = autolora("evaluate", *arguments, "--json", path)
    assert result.exit_code == 0, result.output
    return json.loads(path.read_text())


def test_features_are_those_of_the_pictures_files(drawn: Path, kept: Path):
    """Bit for bit: 8 bits a pixel are what PNG keeps, too."""
    found = collect(pictures.Pictures(drawn), [open_encoder("builtin", data_mesh(), batch_size=1)])
    keys = [known.fields["key"] for known in found.pictures]
    expected = dict(zip(keys, found.features["builtin"], strict=True))
    rows, before = read_manifest(kept), {row["key"]: row for row in read_manifest(drawn)}
    assert len(rows) == COUNT and len(keys) == COUNT - 2
    for row in rows:
        assert row == {**before[row["key"]], "file": row["file"], "sha256": row["sha256"]}
        if row["status"] == "ok":
            assert row["file"] == f"images/{row['key'][:2]}/{row['key']}.safetensors"
            assert np.array_equal(load_file(kept / row["file"])["features"], expected[row["key"]])


def test_they_are_measured_as_the_pictures_without_a_model(
    drawn: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = "--group-by", "prompt,lora_scales"
    expected = evaluated(tmp_path / "a", drawn, *flags, "--features", "builtin", "--batch-size", 1)
    monkeypatch.delattr("autolora_jax.cli.evaluate.open_encoder")
    for given in ((), ("--features", "builtin")):
        found = evaluated(tmp_path / "b", kept, *flags, *given)
        assert {**found, "places": None} == {**expected, "places": None}
    assert sorted(group["pictures"] for group in found["groups"]) == [1, 3, 3, 3]
    assert not (kept / ".autolora").exists()


def test_shards_of_them(kept: Path, tmp_path: Path):
    out = tmp_path / "out"
    draw_all(dataclasses.replace(KEPT, output=dataclasses.replace(FEATURES, shard_size=8)), out, 8, draw)
    shards = sorted((out / "shards").iterdir())
    assert [path.name for path in shards] == ["000000.tar", "000001.tar"]
    expected = {row["label"]["prompt"]: row["figures"] for row in evaluated(tmp_path / "a", kept)["groups"]}
    for places in (shards, [out]):
        for row in evaluated(tmp_path / "b", *places)["groups"]:
            figures = expected[row["label"]["prompt"]]
            assert row["figures"]["Div"]["value"] == pytest.approx(figures["Div"]["value"], abs=1e-9)


def test_a_job_that_was_stopped_ends_with_the_same_bytes(kept: Path, tmp_path: Path):
    work = open_fake(KEPT, tmp_path, 8)
    run(work, draw, work.todo[:1])
    draw_all(KEPT, tmp_path, 8, draw)
    assert tree(tmp_path) == tree(kept)


def test_other_models_are_refused(drawn: Path, kept: Path, tmp_path: Path):
    result = autolora("evaluate", kept, "--features", "clip")
    assert result.exit_code == 1
    assert "--features clip: there are no pictures, but features by builtin; leave the flag out" in result.stderr
    result = autolora("evaluate", kept, drawn)
    assert result.exit_code == 1 and "holds a picture, others features by builtin-" in result.stderr
    save_clip(tmp_path / "clip")
    flags = "--metrics", "diversity,clipscore", "--clip", tmp_path / "clip"
    result = autolora("evaluate", kept, *flags)
    assert result.exit_code == 1 and "the features are by builtin-" in result.stderr
    by_clip = dataclasses.replace(KEPT, output=OutputConfig("features", features=str(tmp_path / "clip")))
    draw_all(by_clip, tmp_path / "out", 8, draw)
    assert 0 <= evaluated(tmp_path / "t", tmp_path / "out", *flags)["all"]["figures"]["CLIPScore"]["value"] <= 100


def test_other_files_and_broken_ones(kept: Path, tmp_path: Path):
    latents = dataclasses.replace(JOB, output=OutputConfig("latent"))
    draw_all(latents, tmp_path / "latents", 8, draw)
    result = autolora("evaluate", tmp_path / "latents")
    assert result.exit_code == 1 and "holds neither a picture nor features of one" in result.stderr
    for source in sorted(kept.rglob("*.safetensors"))[:3]:
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / source.name).write_bytes(source.read_bytes()[:-1])
    result = autolora("evaluate", *sorted(tmp_path.glob("*.safetensors")))
    assert result.exit_code == 3 and f"{source.name} can't be read" in result.stderr


def test_a_place_has_features_by_one_model(drawn: Path, kept: Path, tmp_path: Path):
    save_dinov2(tmp_path / "dino")
    other = dataclasses.replace(FEATURES, features=str(tmp_path / "dino"))
    with pytest.raises(
        ConfigError, match=r"holds features files by builtin-\w+, and this job makes features files by dino-\w+; "
    ):
        open_fake(dataclasses.replace(JOB, output=other), kept, 8)
    with pytest.raises(ConfigError, match="holds png files, and this job makes features files by builtin-"):
        open_fake(KEPT, drawn, 8)
    assert open_fake(KEPT, kept, 8).todo == []


def test_a_model_that_can_not_see_the_pictures_is_refused_at_once(tmp_path: Path):
    small = dataclasses.replace(KEPT, settings=dataclasses.replace(KEPT.settings, size=(64, 32)))
    with pytest.raises(ConfigError, match=r"a picture of this job is 64 × 32 pixels; the features 'builtin' are of"):
        open_fake(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plan_knows_how_much_they_take(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("autolora_jax.batch.estimate.picture_flop", lambda recipe: 0.0)  # it takes seconds
    told, _ = estimate(KEPT, plan_of(KEPT), Folder(tmp_path), 8)
    written = [path.stat().st_size for path in (kept / "images").rglob("*.safetensors")]
    assert told.bytes / COUNT == pytest.approx(np.mean(written), rel=ROUGHLY)


def test_the_command_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("autolora_jax.batch.estimate.picture_flop", lambda recipe: 0.0)
    (tmp_path / "job.py").write_text(
        "from autolora_jax.batch import Job\ndef get_config():\n    return Job(prompts=('a cat',), seeds=range(500))\n"
    )
    flags = "--out", tmp_path / "out", "--dry-run", "--format", "features", "--features", "builtin"
    result = autolora("batch", tmp_path / "job.py", *flags, "--set", "settings.model.source=builtin")
    assert result.exit_code == 0, result.output
    assert "about 0.00069 GB as features" in result.stdout
