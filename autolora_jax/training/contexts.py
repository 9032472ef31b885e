"""Prompts for a LoRA that comes without: its trigger words where such things are seen."""

from collections.abc import Sequence

CONTEXTS = (
    "",
    "on a beach at noon",
    "on a beach at sunset",
    "in a forest in the morning",
    "in a forest at night",
    "in the snow on a sunny day",
    "in the snow at night",
    "in a desert at sunset",
    "in the mountains under a cloudy sky",
    "in a city street in the rain",
    "in a city at night",
    "in a garden full of flowers",
    "in a meadow in spring",
    "beside a lake at dawn",
    "under water",
    "on the moon",
    "in a castle",
    "in a kitchen",
    "in a library",
    "in front of a plain white wall",
    "on the left, in a wide landscape",
    "on the right, in a wide landscape",
    "seen from above",
    "seen from behind",
    "close up",
    "far away, very small",
    "beside a red car",
    "with a dog",
    "as a watercolour",
    "as a pencil drawing",
)


def prompts_of(words: Sequence[str]) -> list[str]:
    """Prompts of trigger words: each in every context."""
    return [f"{word} {context}".strip() for context in CONTEXTS for word in words]
