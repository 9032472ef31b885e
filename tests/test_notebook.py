"""The notebook runs from top to bottom with the built-in model, in a kernel of its own, and shows what it promises.

Its cell of parameters is followed by one with smaller values, as papermill does it. Its install cell runs, too: what
it looks for is here, so it installs nothing.
"""

import base64
import copy
import io
import os
import re
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from autolora_jax.batch import read_manifest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "autolora_colab.ipynb"
SMALL = {"STEPS": 2, "SEEDS": 2, "BATCH": 2, "TRAIN_STEPS": 1, "CONVERT": True}
TURNED = """print(at.value, len(seen))
gamma.value = 2
print(at.value, len(seen))
gamma.value, scale.value = 1, 0.4
print(at.value, len(seen))"""
LONGEST = 300  # seconds that a cell may take on a busy machine


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook") / "drive"


@pytest.fixture(scope="module")
def run(notebook: nbformat.NotebookNode, out: Path) -> nbformat.NotebookNode:
    """The notebook with what its cells put out."""
    values = {**SMALL, "OUT": str(out)}
    changed = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    given = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    assert all(re.search(rf"^{name} = .* +# @param", notebook.cells[given].source, re.MULTILINE) for name in values)
    executed = copy.deepcopy(notebook)
    executed.cells.insert(given + 1, nbformat.v4.new_code_cell(changed))
    player = next(i for i, cell in enumerate(executed.cells) if cell.id == "player")
    turned = nbformat.v4.new_code_cell(TURNED, id="turned")
    executed.cells.insert(player + 1, turned)
    quick = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    client = NotebookClient(executed, timeout=LONGEST, resources={"metadata": {"path": str(ROOT)}})
    return client.execute(env={**os.environ, **quick})  # most of the time is XLA's


def said(run: nbformat.NotebookNode, name: str) -> str:
    """What a cell printed."""
    outputs = next(cell.outputs for cell in run.cells if cell.id == name)
    return "".join(each.text for each in outputs if each.output_type == "stream" and each.name == "stdout")


def shown(run: nbformat.NotebookNode, name: str) -> list[Image.Image]:
    """The pictures that a cell displayed."""
    outputs = next(cell.outputs for cell in run.cells if cell.id == name)
    data = [each.data for each in outputs if each.output_type == "display_data"]
    encoded = [each.get("image/png") or each.get("image/jpeg") for each in data]
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in encoded if content]


def test_it_is_as_colab_wants_it(notebook: nbformat.NotebookNode):
    nbformat.validate(notebook)
    assert notebook.metadata["accelerator"] == "TPU"
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert text.endswith("}\n") and not re.search(r"/work|/root|/home|/tmp", text)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert "parameters" in code[0].metadata.tags and code[0].source.startswith("# @title")


def test_where_it_is_published_stands_in_one_place():
    text, stamp = NOTEBOOK.read_text(encoding="utf-8"), runpy.run_path(str(ROOT / "notebooks" / "stamp.py"))
    assert text == stamp["stamped"](text, stamp["repository"]()), "python notebooks/stamp.py"
    published = stamp["stamped"](text, "https://github.com/someone/autolora-jax")
    badge, opens = re.findall(r"\[!\[Open in Colab\]\((.+?)\)\]\((.+?)\)", published)[0]
    colab = "https://colab.research.google.com"
    assert badge == f"{colab}/assets/colab-badge.svg"
    assert opens == f"{colab}/github/someone/autolora-jax/blob/main/notebooks/autolora_colab.ipynb"
    assert 'REPOSITORY = \\"https://github.com/someone/autolora-jax\\"' in published
    assert stamp["stamped"](published, "") == stamp["stamped"](text, "")


@pytest.fixture
def install(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    """What the install cell defines; what it looks for in the end."""
    source = next(cell.source for cell in notebook.cells if cell.id == "install")
    head, _, rest = source.partition("if importlib.util.find_spec")
    return head, rest[rest.index("loaded = ") :]


def test_it_installs_a_wheel_or_the_repository(
    install: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    told: dict[str, Any] = {}
    exec(install[0], told)
    told["REPOSITORY"] = ""
    with pytest.raises(FileNotFoundError, match=r"Put autolora_jax-…\.whl into"):
        told["origin"]()
    told["REPOSITORY"] = "https://example.org/autolora-jax"
    assert told["origin"]() == "git+https://example.org/autolora-jax"
    wheel = tmp_path / "autolora_jax-0.1.0-py3-none-any.whl"
    wheel.touch()
    assert told["origin"]() == wheel.as_uri()


def test_it_says_when_to_restart(install: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    told: dict[str, Any] = {}
    exec("\n".join(install), told)  # all is as it is installed
    monkeypatch.setattr("jax.__version__", "0.4.2")
    with pytest.raises(RuntimeError, match=r"after it was loaded: jax\. Runtime → Restart session"):
        exec("\n".join(install), told)


def test_gamma_and_scale_turn(run: nbformat.NotebookNode):
    assert said(run, "turned").splitlines() == ["γ 1, scale 1 12", "γ 1.3, scale 1 12", "γ 1.15, scale 0.4 14"]
    states = run.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    assert {"ImageModel", "PlayModel", "IntSliderModel", "SelectionSliderModel"} <= {
        each["model_name"] for each in states
    }


def test_it_shows_pictures(run: nbformat.NotebookNode):
    assert said(run, "install") == ""
    assert "1 × cpu" in said(run, "machine")
    (compared,), (swept,), (mine,) = (shown(run, name) for name in ("compare", "sweep", "mine"))
    for picture in (compared, swept, mine):
        assert min(picture.size) > 400 and max(picture.size) <= 1400
        low, high = picture.convert("L").getextrema()
        assert high - low > 100
    assert len(shown(run, "gallery")) == 2  # a sheet for each prompt


def test_it_keeps_what_it_makes(run: nbformat.NotebookNode, out: Path):
    assert {"compare.png", "sweep.png", "mine.safetensors", "model", "job", "features", ".xla"} <= {
        path.name for path in out.iterdir()
    }
    rows = read_manifest(out / "job")
    assert len(rows) == 8 and {row["status"] for row in rows} == {"ok"}
    assert (out / "job" / "index.html").exists()
    assert said(run, "job").count("8 drawn") == 1 and "All is drawn" in said(run, "job")
    assert said(run, "again").startswith("0 drawn")


def test_it_measures(run: nbformat.NotebookNode):
    found = re.findall(r"(\w+) +diversity (0\.\d{3}) \((0\.\d{3}) to (0\.\d{3})\), 4 pictures", said(run, "evaluate"))
    assert [name for name, *_ in found] == ["cfg", "autolora"]
    assert all(float(low) <= float(value) <= float(high) for _, value, low, high in found)
