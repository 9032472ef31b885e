"""Settings that change: flags, `--set name=value`, preset files and config.json all say what differs from a start."""

import dataclasses
import difflib
import re
import runpy
import traceback
import typing
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from autolora_jax.config import ConfigError, read_json
from autolora_jax.config.base import read_object
from autolora_jax.settings import rules
from autolora_jax.settings.fields import groups_of, settings_of
from autolora_jax.settings.rules import RULES, Rule
from autolora_jax.settings.values import SPELLINGS, spelled

Config = TypeVar("Config")  # a frozen dataclass of settings, and of others like it
# What settings were called before -> now: both are understood in text, only the newer in Python.
RENAMED = {
    "sampler.steps": "num_inference_steps",
    **{f"sampler.{name}": name for name in ("scheduler", "timestep_spacing", "guidance_rescale", "noise")},
}
# Names in presets and jobs that were written for version 0.1 -> what to write now.
_SAMPLER = (
    "instead of sampler=SamplerConfig(steps=28, …) write num_inference_steps=28, …: scheduler, timestep_spacing, "
    "guidance_rescale and noise, too, stand beside guidance and size"
)
OLDER = {
    "sampler": _SAMPLER,
    "SamplerConfig": _SAMPLER,
    "autolora_jax.overrides": "it is autolora_jax.settings.changes",
    "autolora_jax.batch.job": "it is autolora_jax.settings, or autolora_jax.batch",
    **dict.fromkeys((kind.__name__ for kind in RULES.values()), "guidance rules are in autolora_jax itself"),
    "autolora_jax.training.config": "it is autolora_jax.settings, or autolora_jax.training",
}


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with some settings changed: name ("seeds", "sampler.steps", "guidance.gamma") -> text or JSON value,
    or what the setting holds: a rule, a tuple, a dataclass.

    Raises ConfigError for an unknown name, with the nearest known one, and for a value that can't be read or meant.
    """
    return _replace(config, config, "", changes)


def _replace(config: Any, part: Any, prefix: str, changes: Mapping[str, Any]) -> Any:
    """A part of the config with its changes, all of them at once: values that only fit together may arrive together."""
    hints = typing.get_type_hints(type(part)) if dataclasses.is_dataclass(part) else {}
    known = [field.name for field in dataclasses.fields(part)] if hints else []
    values: dict[str, Any] = {}
    deeper: dict[str, dict[str, Any]] = {}
    for given, value in changes.items():
        name = RENAMED.get(given, given)
        first, dot, rest = name.partition(".")
        if first not in known:
            raise _unknown(config, part, prefix, name, known)
        if dot:
            deeper.setdefault(first, {})[rest] = value
        else:
            values[first] = read(value, hints[first], prefix + first)
    try:
        for name, inner in deeper.items():
            current = values.get(name, getattr(part, name))
            if current is None and spelled(hints[name])[0] is Rule:  # `--gamma 2` changes the rule that is used anyway
                current = dataclasses.replace(part, **values).rule()
            values[name] = _replace(config, current, f"{prefix}{name}.", inner)
        return dataclasses.replace(part, **values)
    except ConfigError:
        raise
    except ValueError as e:  # a guidance rule's own
        raise ConfigError(str(e)) from None


def _unknown(config: Any, part: Any, prefix: str, name: str, known: list[str]) -> ConfigError:
    if isinstance(part, Rule) and (others := rules.owners(name)):
        advice = f"it is one of {', '.join(others)}, so choose that guidance, or"
        return ConfigError(f"{prefix}{name} is not a setting of {type(part).__name__}: {advice} {', '.join(known)}")
    last: dict[str, str] = {}
    for near in (*(prefix + each for each in known), *_names(config)):
        last.setdefault(near.rpartition(".")[2], near)
    for full, flag in _flags(type(config)):
        last.setdefault(flag, full)
    close = difflib.get_close_matches(name.rpartition(".")[2], last, 1)
    hint = f" (did you mean {last[close[0]]}?)" if close else ""
    owner = f" of {type(part).__name__}" if known else ""
    there = [prefix + each for each in known] or [field.name for field in dataclasses.fields(config)]
    return ConfigError(f"{prefix}{name} is not a setting{owner}{hint}: there are {', '.join(there)}")


def _names(part: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, the outer ones first."""
    fields = dataclasses.fields(part)
    yield from (prefix + field.name for field in fields)
    for field in fields:
        if dataclasses.is_dataclass(inner := getattr(part, field.name)):
            yield from _names(inner, f"{prefix}{field.name}.")


def _flags(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, flag without its dashes) of settings whose flag is called otherwise."""
    yield from (
        (prefix + field.name, field.said.flag.strip("-").replace("-", "_"))
        for field in settings_of(kind)
        if field.said.flag
    )
    for name, inner in groups_of(kind).items():
        yield from _flags(inner, f"{prefix}{name}.")


def read(value: Any, hint: Any, name: str) -> Any:
    """The value of the setting `name`, whose field has the type `hint`. Raises ConfigError if it can't be one."""
    hint, optional = spelled(hint)
    if optional and (value is None or (value == "none" and hint is not Rule)):
        return None
    if _holds(hint, value):
        return value
    if hint not in SPELLINGS:
        if not dataclasses.is_dataclass(hint):
            raise ConfigError(f"{name} is not a setting that a text can change; change it in the program")
        names = ", ".join(f"{name}.{f.name}" for f in dataclasses.fields(hint))
        raise ConfigError(f"{name} is several settings: {names}")
    spelling = SPELLINGS[hint]
    try:
        return spelling.read(value)
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise ConfigError(f"{name} = {value!r} should be {spelling.looks}") from None


def _holds(hint: Any, value: Any) -> bool:
    """Whether it is no text or JSON value, but what a field of this type holds."""
    if dataclasses.is_dataclass(hint):
        return isinstance(value, cast(type, hint))
    return isinstance(value, tuple | Path) and not isinstance(value, str)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The changes that a JSON object of settings means: (dotted name, value)."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix[:-1] if name == "rule" else prefix + name, value


def to_json(config: Any) -> dict[str, Any]:
    """The JSON object of what a config keeps; override(type(config)(), dict(flatten(it))) is the config again."""
    hints = typing.get_type_hints(type(config))
    passing = {field.name for field in settings_of(type(config)) if not field.said.kept}
    names = [field.name for field in dataclasses.fields(config) if field.name not in passing]
    return {name: to_text(getattr(config, name), hints[name]) for name in names}


def to_text(value: Any, hint: Any) -> Any:
    """The JSON value of a setting."""
    if value is None:
        return None
    hint, _ = spelled(hint)
    return SPELLINGS[hint].write(value) if hint in SPELLINGS else to_json(value)


def record(config: Any) -> dict[str, Any]:
    """What the config.json of a run holds: load_preset reads it back."""
    return {"autolora-jax": version("autolora-jax"), "jax": version("jax"), "settings": to_json(config)}


def _read_yaml(path: Path) -> dict[str, Any]:
    return read_object(path, "YAML", yaml.safe_load, yaml.YAMLError)


TABLES = {".json": read_json, ".yaml": _read_yaml, ".yml": _read_yaml}  # ending of a file -> what reads it


def load_preset(path: Path, kind: type[Config], function: str = "get_config") -> Config:
    """The config of a preset (.py, which is executed) or of the config.json of an earlier run (.json, which is not).

    A class that is read from a table of its own, as Job is, may also be a .yaml or .json file.

    kind: of the config, GenerateConfig or TrainingRun. function: of the preset, which returns it.
    Raises ConfigError that names the file, and the line where its code failed.
    """
    if (of_table := getattr(kind, "of_table", None)) and path.suffix in TABLES:
        try:
            return cast(Config, of_table(TABLES[path.suffix](path)))
        except ConfigError as e:
            raise ConfigError(f"{path}: {e}".replace(f"{path}: {path}", str(path))) from None
    if path.suffix == ".json":
        saved = read_json(path)
        try:
            return override(kind(), dict(flatten(saved.get("settings", {}))))
        except ConfigError as e:
            raise ConfigError(f"{path}: {e}") from None
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give a preset such as configs/sdxl_autolora.py")
    try:
        config = runpy.run_path(str(path))[function]()
    except Exception as e:  # whatever the user's own code raises
        lines = [f", line {f.lineno}" for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        missing = isinstance(e, KeyError) and e.args == (function,) and not lines
        what = f"it defines no {function}()" if missing else f"{type(e).__name__}: {e}{_newer(str(e))}"
        raise ConfigError(f"{path}{lines[-1] if lines else ''}: {what}") from e
    if not isinstance(config, kind):
        raise ConfigError(f"{path}: {function}() should return a {kind.__name__}, not a {type(config).__name__}")
    return config


def _newer(message: str) -> str:
    """What to write in place of what an older preset says, if its error is about that."""
    named = re.search(r"(?:unexpected keyword argument|No module named|cannot import name) '([\w.]+)'", message)
    advice = OLDER.get(named[1]) if named else None
    return f"; {advice}" if advice else ""
