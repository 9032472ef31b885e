"""A setting is a field of a frozen dataclass that says, once, all there is to know of it.

From the fields follow the flags of every program and their help, presets, config.json and `--set` (changes.py), the
arguments of a pipeline's call (arguments.py), the manifest's columns and what a picture says of itself.
"""

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from autolora_jax.config import ConfigError


class Table(NamedTuple):
    """A table of the library whose names are a setting's choices: imported when a value has to be looked up in it."""

    module: str
    name: str

    def names(self) -> list[str]:
        return list(getattr(import_module(f"autolora_jax.{self.module}"), self.name))


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field says beside its type and its default.

    help: what it does, for --help and for the docstring of the call that takes it.
    flag: "--steps", or "--flip/--no-flip"; by default made of the field's name. None: no flag, a program's matter.
    short: "-o". panel: of --help; by default its class's PANEL. metavar: what stands for its value there.
    argument: a word of the command line, without a flag.
    shown: what --help says of the default, where that is not the value.
    choices: names that a text may be. offers: names that a shell completes, where the program itself reads the text.
    least, most: bounds of a number. advice: ends the message about one beyond them.
    column: its name in a manifest and in what a picture says of itself.
    png: its name in the line that A1111 reads; told where it is not the default, or always with `always`.
    by_picture: may differ among the pictures of a batch: data, never a program's matter.
    kept: stands in config.json; else it is of one run or one call alone.
    environment: variable that gives it, too. secret: never told.
    """

    help: str = ""
    flag: str | None = ""
    short: str = ""
    panel: str = ""
    metavar: str | None = None
    argument: bool = False
    shown: str | None = None
    choices: Collection[str] | Table = ()
    offers: Collection[str] | Table = ()
    least: int | float | None = None
    most: int | float | None = None
    advice: str = ""
    column: str = ""
    png: str = ""
    always: bool = False
    by_picture: bool = False
    kept: bool = True
    environment: str | None = None
    secret: bool = False

    def names(self) -> list[str]:
        """The choices."""
        return _names(self.choices)

    def offered(self) -> list[str]:
        """What a shell completes."""
        return _names(self.choices or self.offers)


def _names(of: Collection[str] | Table) -> list[str]:
    return of.names() if isinstance(of, Table) else list(of)


def setting(default: Any = dataclasses.MISSING, help: str = "", **known: Any) -> Any:
    """A field of a dataclass; known: of Setting."""
    return dataclasses.field(default=default, metadata={"setting": Setting(help, **known)})


class Field(NamedTuple):
    """A setting with its name, its type and its default."""

    name: str
    hint: Any
    default: Any
    said: Setting

    @property
    def parameter(self) -> str:
        """Its name among a command's parameters: "text_encoders_from"."""
        return (self.said.flag or self.name).partition("/")[0].strip("-_").replace("-", "_")

    @property
    def option(self) -> str:
        """As it is typed: "--seeds", "--flip/--no-flip"."""
        flag = self.said.flag
        return flag if flag and flag.startswith("-") else f"--{self.parameter.replace('_', '-')}"


def settings_of(kind: type) -> tuple[Field, ...]:
    """The settings of a class, those of its groups left out."""
    known: Any = kind  # mypy takes classes of dataclasses for unhashable
    return _settings_of(known)


@functools.cache
def _settings_of(kind: Any) -> tuple[Field, ...]:
    hints = typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        if said := field.metadata.get("setting"):
            home = next(owner for owner in kind.__mro__ if field.name in vars(owner).get("__annotations__", ()))
            panel = said.panel or vars(home).get("PANEL", "")
            found.append(Field(field.name, hints[field.name], field.default, dataclasses.replace(said, panel=panel)))
    return tuple(found)


def groups_of(kind: type) -> Mapping[str, type]:
    """Name -> class of each group of settings in a class."""
    hints = typing.get_type_hints(kind)
    names = (field.name for field in dataclasses.fields(kind))
    return {name: hints[name] for name in names if dataclasses.is_dataclass(hints[name])}


def told(settings: Any) -> dict[str, Any]:
    """The values that have a column, by its name, in the fields' order."""
    return {
        field.said.column: getattr(settings, field.name) for field in settings_of(type(settings)) if field.said.column
    }


class Checked:
    """A dataclass whose fields' bounds and choices are kept. Raises ConfigError that names the setting."""

    def __post_init__(self) -> None:
        for field in settings_of(type(self)):
            value = getattr(self, field.name)
            if is_several(field.hint):
                object.__setattr__(self, field.name, _tuple(field.name, value))
            elif value is not None and value is not field.default:
                check(field.name, value, field.said)


def is_several(hint: Any) -> bool:
    """Whether a field holds any number of values."""
    return typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (...,)


def _tuple(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str):  # whose letters would each be one
        raise ConfigError(f"{name} = {values!r} should be several: ({values!r},) is one of them")
    return tuple(values)


def check(name: str, value: Any, said: Setting) -> None:
    """Raises ConfigError for a value that is none of the choices, or beyond the bounds."""
    if said.choices:
        choose(said.names(), value, name)
    values: Sequence[Any] = value if isinstance(value, tuple | list) else [value]
    for number in (v for v in values if isinstance(v, int | float)):
        low = -math.inf if said.least is None else said.least
        high = math.inf if said.most is None else said.most
        if (said.least is not None or said.most is not None) and not low <= number <= high:
            bounds = f"between {low} and {high}" if high < math.inf else f"at least {low}"
            advice = f"; {said.advice}" if said.advice else ""
            raise ConfigError(f"{name} = {number} should be {bounds}{advice}")


def choose(names: Any, value: Any, name: str) -> Any:
    """What a table has under a name, or the name where there is no table. Raises ConfigError for what is none of them.

    name: of the setting, for the message.
    """
    if value not in names:
        near = difflib.get_close_matches(str(value), names, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{name} = {value!r} is not known: {hint}there are {', '.join(names)}")
    return names[value] if isinstance(names, Mapping) else value
