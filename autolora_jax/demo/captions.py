"""How a scene of a drawn world is said: captions of its phrases, in varying order, and what a text names of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SPOKEN = 0.85  # how often a caption mentions sky, size or side
# The first template is the canonical one; {sky} and {side} may be empty, see _tidy.
TEMPLATES = (
    "{thing} {side} {place} {sky}",
    "{thing} {place} {side}, {sky}",
    "{sky}, {thing} {side} {place}",
    "{thing} {side}, {place}, {sky}",
    "{place}, {thing} {side} {sky}",
    "{thing} {place} {sky}, {side}",
)


class Phrases(NamedTuple):
    """The phrases of a world, whose scenes have a place, a sky, a size and a side.

    thing: (size or "", scene) -> the words for what it shows, without article.
    """

    places: Mapping[str, tuple[str, ...]]
    skies: Mapping[str, str]
    thing: Callable[[str, Any], Sequence[str]]

    def caption(self, scene: Any, rng: np.random.Generator) -> str:
        """One of many ways to say a scene; only its sky, size and side may be left out."""
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        places = self.places[scene.place]
        place = places[rng.integers(len(places))]
        sky, size, side = (
            word if said < SPOKEN else ""
            for word, said in zip((scene.sky, scene.size, scene.side), rng.random(3), strict=True)
        )
        return self._fill(template, scene, place, size, side, sky)

    def full_caption(self, scene: Any) -> str:
        """The canonical caption, which names every attribute that isn't ""."""
        return self._fill(TEMPLATES[0], scene, self.places[scene.place][0], scene.size, scene.side, scene.sky)

    def _fill(self, template: str, scene: Any, place: str, size: str, side: str, sky: str) -> str:
        thing = " ".join(word for word in self.thing(size, scene) if word)
        said = {
            "thing": f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}",
            "side": f"on the {side}" if side else "",
            "sky": self.skies[sky] if sky else "",
        }
        return _tidy(template.format(place=place, **said))


def words_of(*phrases: str) -> tuple[str, ...]:
    """The distinct words of the phrases, sorted."""
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


def find_words(text: str, labels: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """What a text names: attribute -> the index of its first word there. No word stands for two attributes."""
    words = text.lower().replace(",", " ").split()
    found = {name: [known.index(word) for word in words if word in known] for name, known in labels.items()}
    return {name: which[0] for name, which in found.items() if which}


def _tidy(text: str) -> str:
    """The text without the gaps and commas that empty phrases left."""
    parts = (" ".join(part.split()) for part in text.split(","))
    return ", ".join(part for part in parts if part)
