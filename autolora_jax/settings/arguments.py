"""Settings as the arguments of a call: their names, types and help are those of a dataclass's fields."""

import dataclasses
import difflib
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from autolora_jax.settings.fields import settings_of

P = ParamSpec("P")
S = TypeVar("S")
Owner = TypeVar("Owner")
R = TypeVar("R")


def taking(settings: Callable[P, S]) -> Callable[[Callable[[Owner, S], R]], Callable[Concatenate[Owner, P], R]]:
    """A method of one dataclass of settings, called with its fields: typed for checkers, explained for people.

    What is no field raises TypeError that names the nearest one.
    """

    def decorate(method: Callable[[Owner, S], R]) -> Callable[Concatenate[Owner, P], R]:
        kind: Any = settings
        known = inspect.signature(kind).parameters

        @functools.wraps(method)
        def call(owner: Owner, *args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs.keys() - known.keys():
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise TypeError(f"{name} is no argument of {method.__name__}; {hint}")
            return method(owner, settings(*args, **kwargs))

        owner = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        returns = inspect.signature(method).return_annotation
        signature = inspect.Signature([owner, *known.values()], return_annotation=returns)
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = f"{inspect.cleandoc(method.__doc__ or '')}\n\n{explained(kind)}"
        return call

    return decorate


def explained(kind: type) -> str:
    """What each of the settings does, as a docstring has it."""
    lines = []
    fields = {field.name: field for field in settings_of(kind)}
    for field in (fields[name] for name in inspect.signature(kind).parameters if name in fields):
        default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
        text = f"{field.name}{default}: {field.said.help}"
        lines += textwrap.wrap(text, 110, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)
