"""The house rules that a reader relies on: who may import whom, and that nothing reaches for torch or a pickle."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A module may import those on its own line and on lines above.
FLOORS = [
    "foreign config progress files image_files tars compilation demo version shown",
    "display",
    "settings",
    "models",
    "weights",
    "lora",
    "schedules forms guidance noise given",
    "text sharding",
    "sampler canvas request loading",
    "tuned",
    "run pacing engine pictures grid",
    "output with_loras",
    "pipeline",
    "training pages",
    "evaluation",
    "presets",
    "batch",
    "experiments",
    "cli ui",
]
RANK = {name: i for i, floor in enumerate(FLOORS) for name in floor.split()}
FORBIDDEN = {"torch", "diffusers", "peft", "lycoris", "tensorflow", "pickle"}
FILES = sorted((ROOT / "autolora_jax").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, `from a import b` as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path):
    assert not {name.partition(".")[0] for name in imports(path)} & FORBIDDEN
    own = path.relative_to(ROOT / "autolora_jax").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("autolora_jax.")} & RANK.keys()
    assert own in RANK, f"{own} has no place in FLOORS"
    assert all(RANK[room] <= RANK[own] for room in rooms), f"{own} imports {rooms}, some of which stand below it"


def test_a_setting_is_named_where_it_is_said_and_where_it_is_used():
    """γ goes from settings/rules.py by request, guidance and run to the sampler, none of which knows its name."""
    words = {path: set(re.findall(r"\w+", path.read_text(encoding="utf-8"))) for path in FILES}
    assert len([path for path in FILES if "base_text" in words[path]]) <= 4
    way = [
        "request.py",
        "guidance.py",
        "run.py",
        "sampler.py",
        "pipeline.py",
        "engine.py",
        "batch/plan.py",
        "cli/flags.py",
    ]
    assert not [name for name in way if "gamma" in words[ROOT / "autolora_jax" / name]]
    assert "gamma" in words[ROOT / "autolora_jax" / "settings" / "rules.py"]


def test_settings_need_no_jax():
    """`autolora --help` reads them all."""
    slow = {"jax", "numpy", "PIL", "transformers"}
    code = f"import sys, autolora_jax.settings.programs; print(*{slow} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_every_package_is_installed():
    """Those of pyproject.toml are found by their __init__.py, so every folder with modules needs one."""
    folders = {path.parent for path in FILES}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert told["packages"]["find"] == {"include": ["autolora_jax*"]}


def test_the_file_guide_is_true():
    """Every module of the library is in the guide, and what the guide names exists."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    guide = text[text.index("## File guide") : text.index("## What you might not expect")]
    for name in sorted({p.relative_to(ROOT / "autolora_jax").parts[0] for p in FILES} - {"__init__.py"}):
        assert f"`{name}" in guide or f"/{name}" in guide, f"{name} is not in the file guide"
    for line in guide.splitlines():
        for word in line.partition("|")[2].partition("|")[0].replace(",", " ").split():
            path = word.strip("`")
            if path.endswith((".py", "/")):
                assert _places(path), f"{path} does not exist"
    assert [path for path in re.findall(r"`([\w/]+\.py)`", text) if not _places(path)] == []


def test_what_the_file_guide_says_is_there():
    """What it names beside a folder is a file, a folder, a function or a class there."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    guide = text[text.index("## File guide") : text.index("## What you might not expect")]
    for row in re.findall(r"^\| (`.*)\|$", guide, re.MULTILINE):
        folders, _, said = row.partition(" | ")
        homes = [home for path in re.findall(r"`([^`]+/)`", folders) for home in _places(path)]
        defined = "\n".join(file.read_text(encoding="utf-8") for home in homes for file in home.glob("*.py"))
        for word in re.findall(r"`(\w+)`", said) if homes else ():
            there = any((home / f"{word}{ending}").exists() for home in homes for ending in ("", ".py"))
            assert there or re.search(rf"^(def|class) {word}\b", defined, re.MULTILINE), f"{folders} has no {word}"


def _places(path: str) -> list[Path]:
    """Where a path of the file guide leads."""
    found = (ROOT / path, ROOT / "autolora_jax" / path)
    return [each for each in found if each.exists()]


def test_no_modules_import_each_other():
    """Imports inside of functions count, too; a package imports its modules."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}

    def home(name: str) -> str:
        return name if name in names else name.rpartition(".")[0]

    graph = {name: {home(other) for other in imports(path)} & names.keys() - {name} for name, path in names.items()}
    try:
        [*TopologicalSorter(graph).static_order()]
    except CycleError as e:
        raise AssertionError(" → ".join(e.args[1])) from None
