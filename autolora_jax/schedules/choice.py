"""Looking up what users and files name."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """table[name]. Raises ValueError that lists the names there are, and the nearest; what: the argument or key."""
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{what} {name!r} is not known; {hint}Use one of {', '.join(table)}")
    return table[name]
