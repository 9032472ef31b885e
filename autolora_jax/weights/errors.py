"""The one error of this package."""


class WeightsError(ValueError):
    """A weights file can't be used. Says which file and tensor, what was expected, what came and what to do."""


def shorten(items: list[str], limit: int = 6) -> str:
    """The first few items, comma-separated, and how many more there are."""
    more = f", … and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
