"""What the site's pages are generated from: docstrings, the programs of `autolora`, the list of pages in index.md.

A page asks for it by a comment, which GitHub does not show: `<!-- programs -->`, `<!-- public: autolora_jax.batch -->`.
"""

import dataclasses
import inspect
import os
import re
import typing
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from autolora_jax.cli.flags import command
from autolora_jax.settings.arguments import explained
from autolora_jax.settings.fields import settings_of
from autolora_jax.settings.programs import PROGRAMS
from autolora_jax.settings.programs.program import Program

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
ARGUMENT = re.compile(r"(\w+(?:, \w+)*)(?: = (.+?))?:(?: (.*))?")
COMMENTED = re.compile(r"^    (\w+): [^=#\n]+(?: = [^#\n]+)?  # (.+)$", re.MULTILINE)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls it once."""
    app.connect("source-read", _read_page)
    app.connect("autodoc-process-docstring", _read_docstring)
    app.connect("autodoc-skip-member", _skip)
    app.connect("html-page-context", _accessible, priority=900)  # after the theme's own
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# ---- pages ---------------------------------------------------------------------------------------------------------


def _read_page(app: Any, name: str, text: list[str]) -> None:
    page, place = text[0], (DOCS / name).parent
    page = LINK.sub(_link(place, place), page)
    if name == "index":
        page = re.sub(r"^## (.+)\n((?:.+\n|\n)*?)(?=^## |\Z)", _chapter, page, flags=re.MULTILINE)
    makers = {"file": _file(place), "programs": _programs, "public": _public}

    def made(match: re.Match[str]) -> str:
        return makers[match[1]](*filter(None, [match[2]]))

    page = re.sub(rf"^<!-- ({'|'.join(makers)})(?:: (\S+))? -->$", made, page, flags=re.MULTILINE)
    text[0] = page


def _file(place: Path) -> Any:
    def file(name: str) -> str:
        return LINK.sub(_link(ROOT, place), (ROOT / name).read_text(encoding="utf-8"))

    return file


def _chapter(match: re.Match[str]) -> str:
    """A heading of index.md and its links, which are a chapter of the site's navigation, too."""
    links = re.findall(r"^- \[([^\]]+)\]\(([^)]+)\.md\)", match[2], re.MULTILINE)
    pages = "\n".join(f"{label} <{page}>" for label, page in links)
    return f"{match[0].rstrip()}\n\n```{{toctree}}\n:hidden:\n:caption: {match[1]}\n\n{pages}\n```\n\n"


def _link(home: Path, place: Path) -> Any:
    """Links of a text that stands in one folder, as a page of another has them.

    Those to the repository's other files become their names: the site does not hold them.
    """

    def link(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        path = (home / target).resolve()
        path = DOCS / INCLUDED.get(path.name, "") if path.parent == ROOT and path.name in INCLUDED else path
        if path.is_relative_to(DOCS):
            return f"[{label}]({os.path.relpath(path, place)}{anchor})"
        return label if "`" in label else f"{label} (`{path.relative_to(ROOT)}`)"

    return link


LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
# Files at the repository's top that pages of the site hold.
INCLUDED = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}


def _accessible(app: Any, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """What scrolls can be reached by keys, and the navigation's headings have a level."""
    for part, changes in ACCESSIBLE.items():
        for before, after in changes.items():
            context[part] = context.get(part, "").replace(before, after)


ACCESSIBLE = {
    "body": {"<pre>": '<pre tabindex="0">', '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper'},
    "furo_navigation_tree": {'role="heading"': 'role="heading" aria-level="2"'},
}


# ---- the programs --------------------------------------------------------------------------------------------------


def _programs() -> str:
    """A section for each program, of what its --help is made of."""
    return "\n".join(map(_program, PROGRAMS))


def _program(kind: type[Program]) -> str:
    name, words = kind.__name__.lower(), []
    panels: dict[str, list[str]] = {}
    for parameter in inspect.signature(command(kind)).parameters.values():
        hint, told = typing.get_args(parameter.annotation)
        looks = _looks(hint, told.metavar or parameter.name.upper())
        if named := isinstance(told, typer.models.OptionInfo):
            spelled = ", ".join(filter(None, [told.default, *told.param_decls])) + _looks(hint, told.metavar)
        else:
            spelled = looks.strip()
            words.append(spelled if parameter.default is inspect.Parameter.empty else f"[{spelled}]")
        entry = f".. option:: {spelled}\n\n   {_escaped(Text.from_markup(told.help or '').plain)}\n"
        panels.setdefault(told.rich_help_panel or ("Options" if named else "Arguments"), []).append(entry)
    options = "\n".join(f".. rubric:: {panel}\n\n" + "\n".join(entries) for panel, entries in panels.items())
    return (
        f"## autolora {name}\n\n{_marked(inspect.cleandoc(kind.__doc__ or ''))}\n\n"
        f"```text\n{' '.join(['autolora', name, *words, '[OPTIONS]'])}\n```\n\n"
        f"````{{eval-rst}}\n.. program:: autolora {name}\n\n{options}\n````\n\n{_examples(kind.EXAMPLES)}\n"
    )


def _looks(hint: Any, metavar: str | None) -> str:
    """What follows a flag."""
    kinds = {hint, *typing.get_args(hint)}
    if bool in kinds:
        return ""
    usual = next((shown for kind, shown in LOOKS.items() if kind in kinds), "TEXT")
    return f" {metavar or usual}"


LOOKS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


def _examples(text: str) -> str:
    """Markup of the terminal as Markdown: what is cyan is code, a block of it where nothing else is on its lines."""
    parts = re.split(r"^\[cyan\](.*?)\[/\]$", text.replace("[/]\n[cyan]", "\n"), flags=re.MULTILINE | re.DOTALL)
    for i, part in enumerate(parts):
        part = part.replace("\\[", "[")
        if i % 2:
            language = (
                "sh" if part.startswith(("autolora", "pip", "vllm")) else "python" if "import" in part else "text"
            )
            parts[i] = f"```{language}\n{part}\n```"
        else:
            part = re.sub(r"\[cyan\](.*?)\[/\]", r"`\1`", part)
            parts[i] = _marked(re.sub(r"\[bold\](.*?)\[/\]", r"**\1**", part))
    return "".join(parts)


def _marked(text: str) -> str:
    """Plain text as Markdown: what would be markup there is not."""
    return re.sub(r"(?<![`\w*])([*<_\[])(?!\*)(?=\S)(?![^`\n]*`)", r"\\\1", text)


# ---- docstrings ----------------------------------------------------------------------------------------------------


# Where public names are described: the first of these that has one.
HOMES = ("", ".batch", ".training", ".evaluation", ".lora", ".weights", ".settings")


def _public(name: str) -> str:
    """What a module says of itself, and its public names that are not described elsewhere."""
    module = import_module(name)
    found = {each: getattr(module, each) for each in module.__all__}
    things = {each: thing for each, thing in found.items() if inspect.isclass(thing) or inspect.isfunction(thing)}
    others = [import_module(f"autolora_jax{home}") for home in HOMES[: HOMES.index(name.removeprefix("autolora_jax"))]]
    known = {each for each, thing in things.items() for other in others if each in other.__all__}
    entries = [
        f".. auto{'class' if inspect.isclass(thing) else 'function'}:: {name}.{each}\n"
        + ("   :members:\n   :special-members: __call__\n" if inspect.isclass(thing) else "")
        for each, thing in sorted(things.items(), key=_rank)
        if each not in known
    ]
    if known:
        entries.append(f"Also here, described elsewhere: {', '.join(f'``{each}``' for each in sorted(known))}.")
    about = _restructured(inspect.cleandoc(module.__doc__ or "").splitlines(), ())
    return "````{eval-rst}\n" + "\n".join([f"``{name}``", "", *about, *entries]) + "\n````"


def _skip(app: Any, what: str, name: str, found: Any, skip: bool, options: Any) -> bool:
    """Other names of what is described under its own, and the fields of named tuples, which have lines already."""
    alias = inspect.isroutine(found) and found.__name__ not in (name, "call")
    return skip or alias or str(found.__doc__).startswith("Alias for field number")


def _rank(named: tuple[str, Any]) -> tuple[bool, bool, str]:
    """What draws stands first, errors last."""
    name, thing = named
    return inspect.isclass(thing) and issubclass(thing, Exception), "__call__" not in vars(thing), name.lower()


def _read_docstring(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    text = [*lines]
    if inspect.isclass(found):
        text += ["", *_fields(found, "\n".join(lines))]
    lines[:] = _restructured(text, _arguments(found))


def _fields(kind: Any, said: str) -> list[str]:
    """Lines that tell of a class's fields, by what its settings or the comments in its source say."""
    if dataclasses.is_dataclass(kind) and settings_of(kind):
        return [*_but(said, explained(kind).splitlines())]
    if not (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")):
        return []
    return [f"{name}: {comment}" for name, comment in COMMENTED.findall(inspect.getsource(kind))]


def _but(said: str, lines: Iterable[str]) -> Iterable[str]:
    """Those lines about arguments that are not explained yet."""
    known = {name for names in re.findall(r"^(\w+(?:, \w+)*): ", said, re.MULTILINE) for name in names.split(", ")}
    keep = True
    for line in lines:
        if not line.startswith(" "):
            keep = re.split(r"\W", line)[0] not in known
        if keep:
            yield line


def _arguments(found: Any) -> set[str]:
    try:
        return {*inspect.signature(found).parameters}
    except (TypeError, ValueError):
        return set()


def _restructured(lines: Iterable[str], arguments: Iterable[str]) -> list[str]:
    """A docstring of this library as reStructuredText: arguments are definitions, what is indented or a table is shown
    as it is, single backticks are code."""
    known, out, literal, before = set(arguments), [], False, ""
    for line in lines:
        match = ARGUMENT.fullmatch(line)
        names = match[1].split(", ") if match else []
        if match and (known.issuperset(names) if known else False):
            default = f" = {match[2]}" if match[2] else ""
            term = ", ".join(f"``{name}{default}``" for name in names)
            out += ["", term, f"   {_escaped(match[3] or '—')}"]
            literal, before = False, "argument"
        elif not line.strip():
            out.append("")
            before = ""
        elif line.startswith(" ") and before == "argument":
            out.append(f"   {_escaped(line.strip())}")
        elif line.startswith((" ", "|")) or re.search(r"\S {2,}\S", line) or (literal and not before):
            if not literal or before != "literal":
                out += ["", "::", ""]
            out.append("   " + line)
            literal, before = True, "literal"
        else:
            if before in ("argument", "literal"):
                out.append("")
            out.append(_escaped(line))
            literal, before = False, "text"
    return [*out, ""]


def _escaped(text: str) -> str:
    """Text with code between single backticks as reStructuredText, in which nothing else is markup."""
    parts = re.split(r"`([^`]+)`", text)
    for i, part in enumerate(parts):
        parts[i] = f"``{part}``" if i % 2 else re.sub(r"([\\*|_`])", r"\\\1", part)
    return "".join(parts)
