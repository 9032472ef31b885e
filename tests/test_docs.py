"""README and pages: short, linked, and true of commands, flags, imports and files that they name."""

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from autolora_jax import __version__
from autolora_jax.cli.flags import flags_of
from autolora_jax.settings.programs import PROGRAMS

ROOT = Path(__file__).resolve().parents[1]
TOP = [
    ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
]
DOCS = ROOT / "docs"
# Pages of the site that hold a file from above are made of nothing else.
PAGES = [*TOP, *sorted(page for page in DOCS.rglob("*.md") if page.parent != DOCS / "project")]
LONGEST = 150  # lines
ALWAYS = {"--help", "--debug", "--version", "--install-completion"}
FLAGS = {
    kind.__name__.lower(): {part for flag in flags_of(kind) for word in flag.words for part in word.split("/")}
    for kind in PROGRAMS
}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def links(page: Path) -> Iterator[Path]:
    """The files of this repository that a page links to."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            yield (page.parent / target).resolve()


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `autolora …` in a block of shell, or between backticks."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", line):
                words = shlex.split(part, comments=True)
                if "autolora" in words:
                    yield words[words.index("autolora") + 1 :]
    for code in re.findall(r"`autolora ([^`]+)`", page.read_text(encoding="utf-8")):
        yield code.split()


@pages
def test_it_is_short_and_its_links_lead_somewhere(page: Path):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert [link for link in links(page) if not link.exists()] == []


def test_the_readme_leads_to_every_page():
    reached, queue = {TOP[0]}, [TOP[0]]
    while queue:
        found = {link for link in links(queue.pop()) if link.suffix == ".md"} - reached
        reached |= found
        queue += found
    assert set(PAGES) <= reached


@pages
def test_its_commands_know_their_flags(page: Path):
    for command, *words in commands(page):
        if command in FLAGS:
            given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert given <= FLAGS[command] | ALWAYS, f"autolora {command} has no {given - FLAGS[command]}"
        else:
            assert command in {"COMMAND", *ALWAYS}, f"there is no command {command}"


@pages
def test_its_programs_import_what_there_is(page: Path):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autolora_jax"):
                module = import_module(node.module or "")
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pages
def test_the_files_that_it_names_are_there(page: Path):
    """CHANGELOG names what was, too."""
    if page.stem == "CHANGELOG":
        return
    text = page.read_text(encoding="utf-8")
    folders = "autolora_jax|benchmarks|configs|convert|docs|examples|notebooks|recipes|tests"
    paths = re.findall(rf"(?<![\w/])((?:{folders})/[\w./]+\w)", text)
    modules = re.findall(r"\b((?:benchmarks|recipes)(?:\.\w+)+)", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [module for module in modules if find_spec(module) is None] == []


def test_the_citation_is_of_this_version():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (told["version"], told["license"]) == (__version__, "Apache-2.0")
    paper = told["references"][0]
    readme = TOP[0].read_text(encoding="utf-8")
    names = ", ".join(f"{author['given-names']} {author['family-names']}" for author in paper["authors"])
    assert names in " ".join(readme.split()) and paper["title"] in " ".join(readme.split())
    assert paper["url"] in readme


def test_the_workflow_does_what_contributors_are_told():
    """And its files and the templates' are YAML."""
    told = {path: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github").rglob("*.yml")}
    jobs = told[ROOT / ".github" / "workflows" / "ci.yml"]["jobs"]
    steps = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert ".ci/run" in steps and (ROOT / ".ci" / "run").exists()
    contributing = TOP[2].read_text(encoding="utf-8")
    assert (
        any(step.startswith("sphinx-build -W -n") for step in steps)
        and "`sphinx-build -W -n docs out/site`" in contributing
    )
