"""The one error of this package, and how a stranger's names are told in it."""

LONGEST = 200  # characters of an entry of a file that are shown
_LONGEST_ITEM = 500  # of an item in a list: names and what is wrong with them


class WeightsError(ValueError):
    """A weights file can't be used. Says which file and tensor, what was expected, what came and what to do."""


def shorten(items: list[str], limit: int = 6) -> str:
    """The first few items, comma-separated, and how many more there are."""
    more = f", … and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(printable(item, _LONGEST_ITEM) for item in items[:limit]) + more


def printable(text: str, longest: int = LONGEST) -> str:
    """One line of at most `longest` characters: what a file says is a stranger's text and ends in a terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * longest]).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
