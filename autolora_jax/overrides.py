"""Settings as text: flags, `--set name=value`, preset files and config.json are all changes to a run's config.

Every setting has one spelling for all of these: seeds "0-15", size "1024x1024", a LoRA "pixel.safetensors:0.8".
"""

import dataclasses
import difflib
import runpy
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import jax

from autolora_jax import __version__, guidance
from autolora_jax.config import ConfigError, read_json
from autolora_jax.guidance import RULES, Rule, Value
from autolora_jax.presets import Lora, Loras, Seeds, Size, Texts

MOST_SEEDS = 1_000_000
Config = TypeVar("Config")  # a frozen dataclass of settings, and of others like it


class Spelling(NamedTuple):
    """A type of setting: reader of its text (or of a JSON value), the JSON value itself, what the text looks like."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    looks: str


def _same(value: Any) -> Any:
    return value


def _read_whole(value: Any) -> int:
    return int(value) if isinstance(value, int | str) else int(str(value))


def _read_truth(value: Any) -> bool:
    return {"true": True, "false": False}[str(value).lower()]


def _read_values(value: Any) -> Value:
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def _read_seeds(text: Any) -> Seeds:
    seeds: list[int] = []
    for part in str(text).split(","):
        first, dash, last = part.partition("-")
        start = int(first)
        end = int(last) if dash else start
        if end < start or len(seeds) + end - start >= MOST_SEEDS:
            raise ValueError(f"{part} is no range, or one of over {MOST_SEEDS}")
        seeds += range(start, end + 1)
    return tuple(seeds)


def _write_seeds(seeds: Seeds) -> str:
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _read_size(text: str) -> Size:
    width, height = text.lower().split("x")
    return int(width), int(height)


def _several(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


SPELLINGS: dict[Any, Spelling] = {
    int: Spelling(_read_whole, _same, "a whole number"),
    float: Spelling(float, _same, "a number"),
    Value: Spelling(_read_values, _same, "a number"),
    str: Spelling(str, _same, "a text"),
    bool: Spelling(_read_truth, _same, "true or false"),
    Seeds: Spelling(_read_seeds, _write_seeds, f"seeds such as 0-15 or 1,5,9-12 (at most {MOST_SEEDS:,})"),
    Size: Spelling(_read_size, lambda size: f"{size[0]}x{size[1]}", "WIDTHxHEIGHT in pixels, such as 1024x1024"),
    Loras: Spelling(
        lambda texts: tuple(map(Lora.parse, _several(texts))), lambda loras: list(map(str, loras)), "FILE[:SCALE]"
    ),
    Texts: Spelling(lambda texts: tuple(_several(texts)), list, "a text"),
    Rule: Spelling(lambda name: RULES[name](), guidance.to_dict, f"one of {', '.join(RULES)}"),
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
    values: dict[str, Any] = {}
    deeper: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        first, dot, rest = name.partition(".")
        if first not in hints:
            raise _unknown(config, part, prefix + name, [prefix + known for known in hints])
        if dot:
            deeper.setdefault(first, {})[rest] = value
        else:
            values[first] = read(value, hints[first], prefix + first)
    try:
        for name, inner in deeper.items():
            current = values.get(name, getattr(part, name))
            if current is None and hints[name] == Rule | None:  # `--gamma 2` changes the rule that the run has anyway
                current = dataclasses.replace(part, **values).rule()
            values[name] = _replace(config, current, f"{prefix}{name}.", inner)
        return dataclasses.replace(part, **values)
    except ConfigError:
        raise
    except ValueError as e:  # a guidance rule's own
        raise ConfigError(str(e)) from None


def _unknown(config: Any, part: Any, name: str, nearby: list[str]) -> ConfigError:
    last: dict[str, str] = {}
    for known in (*nearby, *_names(config)):
        last.setdefault(known.rpartition(".")[2], known)
    near = difflib.get_close_matches(name.rpartition(".")[2], last, 1)
    hint = f" (did you mean {last[near[0]]}?)" if near else ""
    owner = f" of {type(part).__name__}" if nearby else ""
    there = nearby or [field.name for field in dataclasses.fields(config)]
    return ConfigError(f"{name} is not a setting{owner}{hint}: there are {', '.join(there)}")


def _names(part: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, the outer ones first."""
    fields = dataclasses.fields(part)
    yield from (prefix + field.name for field in fields)
    for field in fields:
        if dataclasses.is_dataclass(inner := getattr(part, field.name)):
            yield from _names(inner, f"{prefix}{field.name}.")


def read(value: Any, hint: Any, name: str) -> Any:
    """The value of the setting `name`, whose field has the type `hint`. Raises ConfigError if it can't be one."""
    optional = isinstance(hint, types.UnionType) and types.NoneType in hint.__args__
    if optional:
        hint = next(h for h in hint.__args__ if h is not types.NoneType)
        if value is None or (value == "none" and hint is not Rule):
            return None
    if isinstance(hint, types.UnionType) and hint not in SPELLINGS:
        hint = hint.__args__[0]  # the others are for programs to give
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
    return isinstance(value, tuple) and typing.get_origin(hint) is tuple


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The changes that a JSON object of settings means: (dotted name, value)."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix[:-1] if name == "rule" else prefix + name, value


def to_json(config: Any) -> dict[str, Any]:
    """The JSON object of a config; override(type(config)(), dict(flatten(it))) is the config again."""
    return {name: _write(getattr(config, name), hint) for name, hint in typing.get_type_hints(type(config)).items()}


def _write(value: Any, hint: Any) -> Any:
    if value is None:
        return None
    if isinstance(hint, types.UnionType) and types.NoneType in hint.__args__:
        hint = next(h for h in hint.__args__ if h is not types.NoneType)
    return SPELLINGS[hint].write(value) if hint in SPELLINGS else to_json(value)


def record(config: Any) -> dict[str, Any]:
    """What the config.json of a run holds: load_preset reads it back."""
    return {"autolora-jax": __version__, "jax": jax.__version__, "settings": to_json(config)}


def load_preset(path: Path, kind: type[Config], function: str = "get_config") -> Config:
    """The config of a preset (.py, which is executed) or of the config.json of an earlier run (.json, which is not).

    kind: of the config, GenerateConfig or TrainingRun. function: of the preset, which returns it.
    Raises ConfigError that names the file, and the line where its code failed.
    """
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
        what = f"it defines no {function}()" if missing else f"{type(e).__name__}: {e}"
        raise ConfigError(f"{path}{lines[-1] if lines else ''}: {what}") from e
    if not isinstance(config, kind):
        raise ConfigError(f"{path}: {function}() should return a {kind.__name__}, not a {type(config).__name__}")
    return config
