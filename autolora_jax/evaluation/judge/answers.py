"""A judge's text -> its answer, strictly: one JSON object that holds exactly what was asked for."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)  # what chat models put around code


class Unusable(ValueError):
    """An answer can't be used. The message tells the judge why."""


def read_answer(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The answer in a text, which may be fenced as code. Raises Unusable."""
    text = text.strip()
    if not text:
        raise Unusable("the answer was empty")
    if fenced := FENCE.fullmatch(text):
        text = fenced[1]
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except Unusable:
        raise
    except (ValueError, RecursionError) as e:
        raise Unusable(f"the answer was not a JSON object alone ({e})") from None
    if wrong := [*problems(found, schema)]:
        raise Unusable("; ".join(wrong))
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unusable("a key occurred twice")
    return found


def _no_constant(name: str) -> Any:
    raise Unusable(f"{name} is no JSON")


# JSON's name of a type -> whether a value is of it. In JSON true is no integer, and 4.0 is one.
TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int or (type(value) is float and value.is_integer()),
}


def problems(value: Any, schema: Mapping[str, Any], where: str = "the answer") -> Iterator[str]:
    """What is wrong with a value, by the part of JSON Schema that questions use."""
    if not TYPES[schema["type"]](value):
        yield f"{where} should be of type {schema['type']}, not {json.dumps(value)[:60]}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} should be one of {schema['enum']}, not {json.dumps(value)}"
    for name, part in schema.get("properties", {}).items():
        if name not in value:
            yield f'the key "{name}" was missing'
        else:
            yield from problems(value[name], part, f'"{name}"')
    if schema.get("additionalProperties") is False and (more := value.keys() - schema["properties"]):
        yield f"there were other keys: {', '.join(sorted(more))}"
    for each in value if "items" in schema else ():
        yield from problems(each, schema["items"], f"an entry of {where}")
