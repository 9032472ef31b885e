"""The types of settings, and the one spelling that each has: in flags, `--set`, presets and config.json."""

import dataclasses
import functools
import math
import operator
import re
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax.config import ConfigError
from autolora_jax.settings import rules
from autolora_jax.settings.fields import choose, settings_of
from autolora_jax.settings.rules import ROLES, RULES, Rule, Value

MOST_SEEDS = 1_000_000


Strength = float | tuple[float, ...]  # one, or several over the steps: linear from the first to the last
Blocks = dict[str, float] | list[float]  # names of blocks or parts -> factor; or as A1111 lists SDXL's blocks


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA (file, folder or hub id), its strength, and its role: on which weights it acts, see rules.ROLES.

    scale: a number, or several over the steps, linear between. blocks: factors on its layers as they are spelled,
    "down=1,mid=0.5,up=0" or 12 or 20 numbers; see lora.blocks.
    """

    source: str
    scale: Strength = 1.0
    role: str = "tuned"
    blocks: str = ""

    def __post_init__(self) -> None:
        scales = tuple(self.scale) if isinstance(self.scale, Sequence) else (self.scale,)
        if not self.source or not scales or not all(map(math.isfinite, scales)):
            raise ConfigError(f"LoRA {self.source!r} at scale {self.scale}: need a file and a finite scale")
        object.__setattr__(self, "scale", scales if len(scales) > 1 else scales[0])
        object.__setattr__(self, "blocks", _write_blocks(_read_blocks(self.blocks, self.source)))
        choose(ROLES, self.role, f"role of the LoRA {self.source}")

    @property
    def block_weights(self) -> Blocks | None:
        """`blocks` as load_lora takes them."""
        return _read_blocks(self.blocks, self.source) or None

    @classmethod
    def parse(cls, text: str) -> "Lora":
        """FILE[:SCALE][[BLOCKS]][@ROLE]: what can't be one of these is of the file's name, and what a file bears is.

        SCALE: a number, or several with commas between. BLOCKS: NAME=NUMBER with commas between, or numbers.
        Raises ConfigError for what stands behind a file's name, or beside other parts, and is none.
        """
        rest, role, blocks = text, "tuned", ""
        whole, at, last = text.rpartition("@")
        if at and not Path(text).exists():
            if last in ROLES:
                rest, role = whole, last
            elif last.isidentifier() and _parts(whole) != (whole, None, ""):
                choose(ROLES, last, f"role of the LoRA {_parts(whole)[0]}")
        source, scale, blocks = _parts(rest)
        return cls(source, 1.0 if scale is None else scale, role, blocks)

    def __str__(self) -> str:
        blocks = f"[{self.blocks}]" if self.blocks else ""
        role = "" if self.role == "tuned" else f"@{self.role}"
        return f"{self.source}:{strength_text(self.scale)}{blocks}{role}"


def strength_text(scale: Strength) -> str:
    """A strength as it is spelled: "0.7", "0.0,1.0"."""
    return ",".join(map(repr, scale if isinstance(scale, tuple) else (scale,)))


def _parts(text: str) -> tuple[str, Strength | None, str]:
    """(file, strength or None, block weights or "") of FILE[:SCALE][[BLOCKS]]."""
    if Path(text).exists():
        return text, None, ""
    rest, bracket, inside = text.removesuffix("]").rpartition("[")
    is_bracketed = bool(bracket) and text.endswith("]")
    source, scale = _scaled(rest if is_bracketed else text)
    # A name may end in brackets: block weights are several, or named, or stand behind a strength.
    if is_bracketed and (scale is not None or set(inside) & set("=,") or Path(rest).exists()):
        _read_blocks(inside, source)
        return source, scale, inside
    return (source, scale, "") if not is_bracketed else (text, None, "")


def _scaled(text: str) -> tuple[str, Strength | None]:
    """FILE:SCALE, or (text, None). Raises ConfigError for what is no number behind a file."""
    source, colon, scale = text.rpartition(":")
    try:
        numbers = tuple(map(float, scale.split(",")))
        return (source, numbers if len(numbers) > 1 else numbers[0]) if colon else (text, None)
    except ValueError:
        if colon and Path(source).is_file() and not Path(text).exists():
            raise ConfigError(
                f"strength of the LoRA {source} = {scale!r} should be a number such as 0.8, or several over the steps, "
                "such as 0,1"
            ) from None
        return text, None  # the colon of C:\loras\pixel.safetensors


def _read_blocks(text: str, source: str) -> Blocks:
    """Block weights as they are spelled. Raises ConfigError."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    try:
        if any(equals for _, equals, _ in pairs):
            found: Blocks = {name.strip(): float(number) for name, _, number in pairs}
        else:
            found = [float(number) for number, _, _ in pairs]
    except ValueError:
        found = {"": 0.0}
    names = list(found) if isinstance(found, dict) else []
    if len(found) != len(pairs) or not all(re.fullmatch(r"[\w.]+", name) for name in names):
        raise ConfigError(
            f"block weights of the LoRA {source} = {text!r} should be a factor for each block, such as "
            "down=1,mid=0.5,up=0, or 12 or 20 numbers, as A1111 lists SDXL's blocks"
        )
    return found


def _write_blocks(blocks: Blocks) -> str:
    if isinstance(blocks, dict):
        return ",".join(f"{name}={factor:.12g}" for name, factor in blocks.items())
    return _write_numbers(tuple(blocks))


Loras = tuple[Lora, ...]


def tells_apart(loras: Loras) -> bool:
    """Whether LoRAs make a tuned model that differs from its base, which a guidance can compare."""
    return any(lora.role != "all" for lora in loras)


Texts = tuple[str, ...]
Paths = tuple[Path, ...]
Numbers = tuple[float, ...]
Seeds = tuple[int, ...]
Size = tuple[int, int]  # width, height


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
        # The first dash may be a minus; what follows the second may have one, too.
        first, dash, last = part.strip()[1:].partition("-")
        start = int(part.strip()[:1] + first)
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


def read_layers(value: Any, name: str) -> str | None:
    """The one spelling of some layers, given as text or as numbers; None for none. Raises ConfigError."""
    try:
        layers = (
            () if value is None else _read_seeds(value) if isinstance(value, str) else tuple(map(operator.index, value))
        )
    except (TypeError, ValueError):
        layers = (-1,)
    if layers and min(layers) < 0:
        raise ConfigError(f"{name} = {value!r} should be layers, counted from 0, such as 7-9 or 7,8,9")
    return _write_seeds(tuple(sorted({*layers}))) or None


def _read_size(text: str) -> Size:
    width, height = text.lower().split("x")
    return int(width), int(height)


def _read_numbers(text: Any) -> Numbers:
    return tuple(map(float, text.split(","))) if isinstance(text, str) else tuple(map(float, text))


def _write_numbers(numbers: Numbers) -> str:
    return ",".join(f"{number:.12g}" for number in numbers)


def _several(value: Any) -> list[Any]:
    return [value] if isinstance(value, str | Path) else list(value)


SPELLINGS: dict[Any, Spelling] = {
    int: Spelling(_read_whole, _same, "a whole number"),
    float: Spelling(float, _same, "a number"),
    Value: Spelling(_read_values, _same, "a number"),
    str: Spelling(str, _same, "a text"),
    bool: Spelling(_read_truth, _same, "true or false"),
    Path: Spelling(Path, str, "a path"),
    Seeds: Spelling(_read_seeds, _write_seeds, f"seeds such as 0-15 or 1,5,9-12 (at most {MOST_SEEDS:,})"),
    Numbers: Spelling(_read_numbers, _write_numbers, "numbers such as 0.4,0.7,1"),
    Size: Spelling(_read_size, lambda size: f"{size[0]}x{size[1]}", "WIDTHxHEIGHT in pixels, such as 1024x1024"),
    Loras: Spelling(
        lambda texts: tuple(map(Lora.parse, _several(texts))),
        lambda loras: list(map(str, loras)),
        "FILE[:SCALE][[BLOCKS]][@ROLE]",
    ),
    Texts: Spelling(lambda texts: tuple(_several(texts)), list, "a text"),
    Paths: Spelling(lambda paths: tuple(map(Path, _several(paths))), lambda paths: list(map(str, paths)), "paths"),
    Rule: Spelling(lambda name: RULES[name](), rules.to_dict, f"one of {', '.join(RULES)}"),
}


def spelled(hint: Any) -> tuple[Any, bool]:
    """(the type in SPELLINGS that a field's type is told by, whether it may be None).

    Of several types the first one counts: the others are for programs to give.
    """
    parts = list(hint.__args__) if isinstance(hint, types.UnionType) else [hint]
    optional = types.NoneType in parts
    inner = [part for part in parts if part is not types.NoneType]
    if hint in SPELLINGS or len(inner) == 1:
        return (hint if hint in SPELLINGS else inner[0]), optional
    whole = functools.reduce(operator.or_, inner)
    return (whole if whole in SPELLINGS else inner[0]), optional


def columns_of(kind: type) -> dict[str, str]:
    """The columns of a class's settings, each with its type in Parquet."""
    types = {str: "string", int: "int64", float: "double", Value: "double", bool: "bool"}
    return {field.said.column: types[spelled(field.hint)[0]] for field in settings_of(kind) if field.said.column}
