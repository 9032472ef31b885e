"""Base of the configs: reads a JSON object strictly into a frozen, hashable dataclass."""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from autolora_jax import foreign

C = TypeVar("C", bound="JsonConfig")  # not Self: runtime type checkers decorate methods one by one
Values = Mapping[str, tuple[Any, ...]]  # key -> the values that it may have


LARGEST = 2**31  # of whole numbers: no size of a network is near it, and products of such do not overflow
LONGEST_ERROR = 4000  # characters: a file may hold names as long as itself


class ConfigError(ValueError):
    """A config file asks for something unknown, unsupported or impossible."""

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= LONGEST_ERROR else f"{message[:LONGEST_ERROR]} …")


def keys(text: str) -> frozenset[str]:
    """The names that a text lists."""
    return frozenset(text.split())


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value (lists as tuples) has the annotated type."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, h) for h in hint.__args__)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(v, hint.__args__[0]) for v in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if isinstance(value, int) and abs(value) >= LARGEST:
        return False
    return isinstance(value, int | float if hint is float else hint)


def _spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


@dataclasses.dataclass(frozen=True)
class JsonConfig:
    """Base of all configs: reads a JSON object strictly."""

    # What a written file begins with.
    HEADER: ClassVar[Mapping[str, Any]] = {}
    # Keys that only this value (or its absence) may have: the networks are built for it.
    FIXED: ClassVar[Values] = {}
    # Keys that do not change a prediction (training, bookkeeping, hints to other programs).
    IRRELEVANT: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        """Config from a parsed JSON object. Raises ConfigError naming every key that can't be honoured."""
        hints = typing.get_type_hints(cls)
        fields = {f.name for f in dataclasses.fields(cls)}
        problems, known = [], {}
        for key, value in raw.items():
            if key in fields:
                known[key] = _hashable(value)
                if not _fits(known[key], hints[key]):
                    problems.append(f"{key} = {value!r} should be {_spelled(hints[key])}")
            elif key in cls.FIXED:
                if _hashable(value) not in cls.FIXED[key]:
                    options = " or ".join(map(repr, cls.FIXED[key]))
                    problems.append(f"{key} = {value!r} is not supported (only {options})")
            elif not (key.startswith("_") or key in cls.IRRELEVANT or value is None or value is False):
                problems.append(f"{key} = {value!r} is not known here and might change the result")
        if problems:
            raise ConfigError(f"{where}: " + "; ".join(problems))
        try:
            return cls(**known)
        except ConfigError as e:
            raise ConfigError(f"{where}: {e}") from None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that from_dict reads as this config."""
        return {**self.HEADER, **dataclasses.asdict(self)}

    @classmethod
    def from_file(cls: type[C], path: Path) -> C:
        """Config from a JSON file. Raises ConfigError naming the file when it can't be read or honoured."""
        return cls.from_dict(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError naming the file when it is missing, broken or no object.

    Infinity is a text: diffusers writes -Infinity into files of DPM-Solver++.
    """
    return read_object(path, "JSON", partial(foreign.parse_json, of_constant=str))


def read_object(
    path: Path, language: str, parse: Callable[[str], Any], broken: type[Exception] = ValueError
) -> dict[str, Any]:
    """What a file in JSON or a language like it holds. broken: what `parse` raises. Raises as read_json."""
    try:
        raw = parse(foreign.read_file(path, foreign.MOST_JSON).decode("utf-8-sig"))
        foreign.check_tree(raw)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except OSError as e:
        raise ConfigError(f"{path} can't be read: {e.strerror}") from None
    except (broken, ValueError, RecursionError) as e:
        raise ConfigError(f"{path} is not valid {language} ({' '.join(str(e).split())}); download it again") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} should hold a {language} object, not a {type(raw).__name__}")
    return raw
