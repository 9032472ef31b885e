"""Command lines out of settings: a program's class becomes the function that typer makes a command of."""

import dataclasses
import inspect
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.markup import escape

from autolora_jax.cli import console
from autolora_jax.cli.console import EXIT_CODES, reported, terminable
from autolora_jax.settings.changes import read, to_text
from autolora_jax.settings.fields import Field, Setting, groups_of, settings_of
from autolora_jax.settings.model import MODEL
from autolora_jax.settings.pictures import OUTPUT, PICTURES
from autolora_jax.settings.programs.program import PRESETS, RUN, Program
from autolora_jax.settings.rules import PANEL as GUIDANCE
from autolora_jax.settings.rules import Rule, numbers, owners
from autolora_jax.settings.values import Loras, Paths, Texts, Value, spelled

LISTS = (Texts, Loras, Paths)  # types whose flag is repeated, or whose words are several
STOPPED = tuple(EXIT_CODES.values())
PANELS = {MODEL: 0, PICTURES: 1, OUTPUT: 3, RUN: 4, PRESETS: 5}  # their order in --help; others stand between, at 2
PLAIN = (int, float, bool, Path)  # types that typer reads; all others are texts to it


class Flag(NamedTuple):
    """What the command line has for a setting. name: dotted, of the setting."""

    name: str
    field: Field

    @property
    def parameter(self) -> str:
        """Its name in Python: "text_encoders_from"."""
        return self.field.parameter

    @property
    def words(self) -> list[str]:
        """As it is typed: ["--seeds"], ["--out", "-o"], ["--flip/--no-flip"]; not of an argument."""
        return [self.field.option, *filter(None, [self.field.said.short])]

    def typed(self) -> inspect.Parameter:
        """The parameter of a command's function."""
        said, (hint, optional) = self.field.said, spelled(self.field.hint)
        required = self.field.default is dataclasses.MISSING
        kind: Any = list[str] if hint in LISTS else hint if hint in PLAIN else float if hint == Value else str
        if optional and self.field.default is not None and kind is float:
            kind = str  # it may be "none"
        help = said.help + ("" if required else _note(self.field))
        info: Any
        if said.argument:
            info = typer.Argument(help=help, metavar=said.metavar, show_default=False, autocompletion=_completion(said))
        else:
            info = typer.Option(
                *self.words,
                help=help,
                metavar=said.metavar,
                rich_help_panel=said.panel or None,
                show_default=False,
                envvar=said.environment,
                autocompletion=_completion(said),
            )
        default = inspect.Parameter.empty if required else None
        annotation: Any = Annotated[kind, info] if required else Annotated[kind | None, info]
        return inspect.Parameter(self.parameter, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _note(field: Field) -> str:
    """What --help says of a default."""
    said, default = field.said, field.default
    switch = (said.flag or "").split("/")
    if said.shown is not None:
        told = said.shown
    elif default is None or default in ((), "") or (default is False and len(switch) == 1):
        return ""
    elif isinstance(default, bool):
        told = switch[0 if default else 1].strip("-")
    else:
        value = to_text(default, field.hint)
        told = ",".join(value) if isinstance(value, list) else str(value)
    return f" [dim]{escape(f'[default {told}]')}[/dim]" if told else ""


def _completion(said: Setting) -> Callable[[str], list[str]] | None:
    """What typer asks for names that begin so; None leaves it to the shell, which completes files."""
    if not (said.choices or said.offers):
        return None
    return lambda incomplete: [name for name in said.offered() if name.startswith(incomplete)]


def flags_of(kind: type, prefix: str = "", words: bool = True) -> Iterator[Flag]:
    """The flags of a class of settings and of its groups; those of guidance are followed by its rules' numbers.

    words: whether what is a word of the command line stays one; else it is a flag, too.
    """
    groups = groups_of(kind)
    fields = {field.name: field for field in settings_of(kind)}
    for each in dataclasses.fields(kind):
        if each.name in groups:
            yield from flags_of(groups[each.name], f"{prefix}{each.name}.", words and each.metadata.get("words", True))
        elif (field := fields.get(each.name)) and field.said.flag is not None:
            own = field.said if words else dataclasses.replace(field.said, argument=False)
            yield Flag(prefix + field.name, field._replace(said=own))
            if spelled(field.hint)[0] is Rule:
                for name, number in numbers().items():
                    yield Flag(f"{prefix}{field.name}.{name}", _of_rules(number))


def _of_rules(number: Field) -> Field:
    """A number of rules, whose help says of which."""
    of = owners(number.name)
    help = f"({', '.join(of)}) {number.said.help}" if of else number.said.help
    return number._replace(said=dataclasses.replace(number.said, help=help, panel=GUIDANCE))


def command(kind: type[Program]) -> Callable[..., None]:
    """The function of a program: it reads what is given, and hands it to `run` of the file that is called like it."""
    ordered = sorted(flags_of(kind), key=lambda flag: PANELS.get(flag.field.said.panel, 2))
    flags = {flag.parameter: flag for flag in ordered}

    def function(debug: bool, **given: Any) -> None:
        console.debugging = debug
        present = {flags[name].name: value for name, value in given.items() if value is not None}
        try:
            with reported(exit_code=2), terminable():
                asked = build(kind, present)
            with reported(), terminable():
                os.environ.update({name: value for name, value in kind.ENVIRONMENT.items() if name not in os.environ})
                code = import_module(f"autolora_jax.cli.{kind.__name__.lower()}").run(asked)
        except typer.Exit as e:
            raise typer.Exit(kind.STOPPED or e.exit_code if e.exit_code in STOPPED else e.exit_code) from None
        if code:
            raise typer.Exit(code)

    debug = Annotated[
        bool, typer.Option("--debug", help="Show where in the program an error arose.", rich_help_panel="Output")
    ]
    last = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=debug)
    parameters = [*(flag.typed() for flag in flags.values()), last]
    function.__name__ = kind.__name__.lower()
    function.__doc__ = kind.__doc__
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def build(kind: type[Program], given: Mapping[str, Any]) -> Any:
    """What was asked for. given: dotted name of a setting -> its value or text. Raises ConfigError."""
    fields = {field.name: field for field in settings_of(kind)}
    values = {name: read(given[name], field.hint, name) for name, field in fields.items() if name in given}
    if (settings := groups_of(kind).get("settings")) is not None:
        changes = {name.partition(".")[2]: value for name, value in given.items() if name.startswith("settings.")}
        values["settings"] = kind.configured(settings, values, changes)
    asked = kind(**values)
    asked.check()
    return asked


def told(asked: Program, without: Iterable[str] = ()) -> str:
    """The words that ask for the same, as a shell takes them; nothing that is secret."""
    words: list[str] = []
    for flag in flags_of(type(asked)):
        value, field = getattr(asked, flag.name), flag.field
        if flag.name in without or field.said.secret or field.said.argument or value == field.default:
            continue
        text = to_text(value, field.hint)
        texts = text if isinstance(text, list) and spelled(field.hint)[0] in LISTS else [text]
        for each in texts:
            words += flag.words[:1] if each is True else [flag.words[0], str(each)]
    return shlex.join(words)
