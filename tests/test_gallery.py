"""What a page of a job's pictures is made of: its table and data, thumbnails, contact sheets; the command."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from autolora_jax.batch import Job, OutputConfig, Settings, gallery, read_manifest
from autolora_jax.batch.gallery.page import CHUNK, FOLDER, HEAD
from autolora_jax.batch.manifest import COLUMNS
from autolora_jax.batch.storage import Bucket, Folder, StorageError
from autolora_jax.cli.flags import flags_of
from autolora_jax.settings import Lora, ModelConfig
from autolora_jax.settings.programs import Generate
from tests.batch_jobs import SIDE, draw_all
from tests.gallery_jobs import JOB, PICTURES, drawn_at, rows_of
from tests.programs import autolora


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_at(tmp_path_factory.mktemp("gallery"))


# ---- the table and its files -----------------------------------------------------------------------------------------


def test_the_table_holds_what_the_manifest_says(drawn: Path):
    rows = read_manifest(drawn)
    table = gallery.tabulate(rows)
    assert table.compared == ("lora_scales", "gamma")
    assert table.keys == [row["key"] for row in rows]
    for name in ("prompt", "seed", "gamma", "lora_scales", "w1", "status"):
        assert [table.value(name, i) for i in range(len(rows))] == [row[name] for row in rows]
    assert table.label(0) == "LoRA scale 0.5, γ 1.2"


def test_hashes_are_compared_only_where_names_are_not_enough():
    first, second = ({**row, "model": "m", "model_sha256": "aa"} for row in rows_of(2, 2))
    assert gallery.tabulate([first, {**second, "model": "n", "model_sha256": "bb"}]).compared == ("model",)
    assert gallery.tabulate([first, {**second, "model_sha256": "bb"}]).compared == ("model_sha256",)
    assert gallery.tabulate([first, {**second, "image": "a.png", "image_sha256": "cc"}]).compared == ("image",)
    assert gallery.tabulate([first, {**second, "loras": []}]).compared == ("loras",)


def test_data_comes_in_chunks_and_old_ones_go(tmp_path: Path):
    storage = Folder(tmp_path)
    for count, chunks in ((2 * CHUNK + 1, 3), (5, 1)):
        table = gallery.tabulate(rows_of(count, 7))
        assert gallery.write_page(storage, table, "x") == "index.html"
        names = [f"gallery-data-{i:03}.js" for i in range(chunks)]
        assert storage.names(FOLDER) == [*names, HEAD]
    text = (tmp_path / FOLDER / HEAD).read_text()
    assert text.isascii() and json.loads(text[len("gallery.begin(") : -3])["chunks"] == names


def test_a_bucket_has_a_page_too():
    storage = Bucket("memory://gallery-test")
    gallery.write_page(storage, gallery.tabulate(rows_of(3, 1)), "x")
    assert storage.names("") == ["index.html"] and storage.names(FOLDER) == ["gallery-data-000.js", HEAD]


def head_of(out: Path) -> dict[str, Any]:
    """What the page is told first."""
    return json.loads((out / FOLDER / HEAD).read_text()[len("gallery.begin(") : -3])


def test_a_command_s_flags_are_the_programs(drawn: Path):
    told = [[flag, *rest] for flag, *rest in head_of(drawn)["flags"]]
    flags = {flag.words[0]: flag for flag in flags_of(Generate)}
    assert len(told) > 20 and {flag for flag, *_ in told} <= {*flags}
    assert {column for _, column, _ in told} <= {*COLUMNS}
    # What is left out is what the program takes by itself.
    usual = {column: flags[flag].field.default for flag, column, value in told if value is not None}
    assert usual == {column: value for _, column, value in told if value is not None}


def test_files_are_called_by_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "anna.safetensors").write_text("")
    monkeypatch.chdir(tmp_path)
    model = ModelConfig("some/model", variant="fp16", rescale_betas_zero_snr=False)
    settings = Settings(model=model, loras=(Lora("anna.safetensors"), Lora("hub/other")), size=(SIDE, SIDE))
    draw_all(Job(prompts=("a",), seeds=(0,), settings=settings), tmp_path / "out")
    storage, [row] = Folder(tmp_path / "out"), read_manifest(tmp_path / "out")
    gallery.write_page(storage, gallery.tabulate([row]), "x")
    found = head_of(tmp_path / "out")["sources"]
    assert found[row["model_sha256"]] == ["some/model", "--variant=fp16", "--no-rescale-betas-zero-snr"]
    assert [found[sha256] for sha256 in row["lora_sha256"]] == [[str(tmp_path / "anna.safetensors")], ["hub/other"]]
    storage.remove(["log.jsonl"])  # of a place whose run was killed, or of version 0.1
    gallery.write_page(storage, gallery.tabulate([row]), "x")
    assert head_of(tmp_path / "out")["sources"] == {}


# ---- thumbnails, sheets, the command ---------------------------------------------------------------------------------


def test_only_missing_thumbnails_are_made(drawn: Path):
    storage, table = Folder(drawn), gallery.tabulate(read_manifest(drawn))
    seen: list[tuple[int, int]] = []
    assert gallery.make_thumbnails(storage, table, 16, lambda *told: seen.append(told)).problems == ()
    assert seen == []
    gone = drawn / gallery.make_thumbnails(storage, table, 16).name(table.keys[3])
    before = gone.read_bytes()
    gone.unlink()
    gallery.make_thumbnails(storage, table, 16, lambda *told: seen.append(told))
    assert seen == [(1, 1)] and gone.read_bytes() == before
    assert Image.open(gone).size == (16, 16)


def test_thumbnails_of_broken_pictures_are_problems(tmp_path: Path):
    draw_all(JOB, tmp_path)
    rows = read_manifest(tmp_path)
    (tmp_path / rows[0]["file"]).unlink()
    (tmp_path / rows[1]["file"]).write_bytes(b"no picture")
    content = (tmp_path / rows[2]["file"]).read_bytes()
    (tmp_path / rows[2]["file"]).write_bytes(content[: len(content) // 2])
    made = gallery.make_thumbnails(Folder(tmp_path), gallery.tabulate(rows), 16)
    assert len(made.problems) == 3 and "is not there" in made.problems[0]
    result = autolora("gallery", tmp_path, "--thumbnails", "16")
    assert result.exit_code == 0 and "Warning: 3 have no thumbnail. The first: images/" in result.stderr


class Full(Folder):
    """Has room for so many thumbnails."""

    room = 3

    def write(self, name: str, content: bytes) -> None:
        if self.room <= 0:
            raise StorageError("the disk is full")
        self.room -= 1
        super().write(name, content)


def test_a_full_disk_stops_thumbnails_and_they_go_on(tmp_path: Path):
    draw_all(JOB, tmp_path)
    table, full = gallery.tabulate(read_manifest(tmp_path)), Full(tmp_path)
    with pytest.raises(StorageError, match="full"):
        gallery.make_thumbnails(full, table, 16)
    seen: list[tuple[int, int]] = []
    gallery.make_thumbnails(Folder(tmp_path), table, 16, lambda *told: seen.append(told))
    there = len(list((tmp_path / FOLDER).rglob("*.webp")))
    assert there == PICTURES and seen[-1][1] >= PICTURES - 4


def test_a_broken_shard_is_a_problem_of_its_pictures(tmp_path: Path):
    job = Job(prompts=("a cat",), seeds=range(8), settings=JOB.settings, output=OutputConfig(shard_size=4))
    draw_all(job, tmp_path)
    table = gallery.tabulate(read_manifest(tmp_path))
    first, second = sorted((tmp_path / "shards").iterdir())
    first.write_bytes(b"x" * 10_000)
    second.rename(tmp_path / "elsewhere")
    problems = gallery.make_thumbnails(Folder(tmp_path), table, 16).problems
    assert len(problems) == 8
    assert sum("can't be read" in problem for problem in problems) == 4
    assert sum("000001.tar is not whole yet" in problem for problem in problems) == 4


def test_shards_have_thumbnails_unasked(tmp_path: Path):
    job = Job(prompts=("a cat",), seeds=range(10), settings=JOB.settings, output=OutputConfig("webp", shard_size=4))
    draw_all(job, tmp_path)
    assert autolora("gallery", tmp_path).exit_code == 0
    made = list((tmp_path / FOLDER / "thumbnails-384").rglob("*.webp"))
    assert sorted(path.stem for path in made) == sorted(row["key"] for row in read_manifest(tmp_path))
    row = read_manifest(tmp_path)[0]
    with (
        tarfile.open(tmp_path / row["file"]) as tar,
        Image.open(io.BytesIO(tar.extractfile(row["member"]).read())) as p,
    ):
        assert p.size == Image.open(next(path for path in made if path.stem == row["key"])).size


def test_a_sheet_has_settings_by_seeds(drawn: Path):
    sheets = sorted((drawn / "sheets").iterdir())
    assert [path.name for path in sheets] == ["0000-00.jpg", "0001-00.jpg", "0002-00.jpg"]
    width, height = Image.open(sheets[0]).size
    assert width > 3 * SIDE and height > 4 * SIDE and height > width / 2


def test_sheets_of_many_seeds_have_parts_and_old_ones_go(tmp_path: Path):
    storage = Folder(tmp_path)
    for count, names in ((80, ["0000-00.jpg", "0000-01.jpg", "0000-02.jpg"]), (4, ["0000-00.jpg"])):
        table = gallery.tabulate(rows_of(count, 1))  # without thumbnails: all cells are empty
        written = gallery.write_sheets(storage, table, gallery.make_thumbnails(storage, table, 16))
        assert [name.removeprefix("sheets/") for name in written] == storage.names("sheets") == names


def test_pictures_that_are_gone_are_said(tmp_path: Path):
    draw_all(JOB, tmp_path)
    assert "not there" not in autolora("gallery", tmp_path).stderr
    gone = read_manifest(tmp_path)[1]["file"]
    (tmp_path / gone).unlink()
    said = autolora("gallery", tmp_path).stderr
    assert f"Warning: 1 files of manifest.jsonl are not there ({gone}); autolora batch --verify says more" in said


def test_what_is_no_batch_is_an_error(tmp_path: Path):
    result = autolora("gallery", tmp_path)
    assert result.exit_code == 1 and "holds no pictures of a batch" in result.stderr
    draw_all(JOB, tmp_path)
    assert "take 16 to 4096" in autolora("gallery", tmp_path, "--thumbnails", "5").stderr
