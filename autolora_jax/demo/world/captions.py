"""What a scene is called: lower-case English without punctuation other than commas."""

import numpy as np

from autolora_jax.demo.world.scene import CHARACTER, COLOURS, LABELS, PLACES, SIDES, SIZES, SKIES, SUBJECTS, Scene

SPOKEN = 0.85  # how often a caption mentions sky, size or side
SKY_PHRASES = {
    "sunny": "on a sunny day",
    "sunset": "at sunset",
    "night": "at night",
    "rain": "in the rain",
    "snow": "in the snow",
}
PLACE_PHRASES = {
    "meadow": ("in a meadow", "in the meadow", "on a meadow"),
    "beach": ("on the beach", "at the beach", "on a beach"),
    "desert": ("in the desert", "in a desert"),
    "forest": ("in the forest", "in a forest"),
    "city": ("in the city", "in a city"),
    "mountains": ("in the mountains", "in mountains"),
}
# The first template is the canonical one; {sky} and {side} may be empty, see _tidy.
TEMPLATES = (
    "{thing} {side} {place} {sky}",
    "{thing} {place} {side}, {sky}",
    "{sky}, {thing} {side} {place}",
    "{thing} {side}, {place}, {sky}",
    "{place}, {thing} {side} {sky}",
    "{thing} {place} {sky}, {side}",
)


def _words(*phrases: str) -> tuple[str, ...]:
    """The distinct words of the phrases, sorted."""
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


WORDS = _words(
    *("a an on the", *SUBJECTS, *COLOURS, *PLACES, *SKIES, *SIZES, *SIDES),
    *SKY_PHRASES.values(),
    *(phrase for phrases in PLACE_PHRASES.values() for phrase in phrases),
)


def _thing(size: str, scene: Scene) -> str:
    """Article, size, colour and subject; a zib has no colour."""
    words = " ".join(word for word in (size, "" if scene.subject == CHARACTER else scene.colour, scene.subject) if word)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _tidy(text: str) -> str:
    """The text without the gaps and commas that empty phrases left."""
    parts = (" ".join(part.split()) for part in text.split(","))
    return ", ".join(part for part in parts if part)


def _fill(template: str, scene: Scene, place: str, size: str, side: str, sky: str) -> str:
    where = f"on the {side}" if side else ""
    said = SKY_PHRASES[sky] if sky else ""
    return _tidy(template.format(thing=_thing(size, scene), side=where, place=place, sky=said))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of many ways to say the scene; subject, colour and place are always named."""
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    places = PLACE_PHRASES[scene.place]
    place = places[rng.integers(len(places))]
    sky, size, side = (
        word if said < SPOKEN else ""
        for word, said in zip((scene.sky, scene.size, scene.side), rng.random(3), strict=True)
    )
    return _fill(template, scene, place, size, side, sky)


def full_caption(scene: Scene) -> str:
    """The canonical caption, which names every attribute that isn't ""."""
    return _fill(TEMPLATES[0], scene, PLACE_PHRASES[scene.place][0], scene.size, scene.side, scene.sky)


def named(text: str) -> dict[str, int]:
    """What a text names of the world: attribute -> its index in LABELS. No word stands for two attributes."""
    words = text.lower().replace(",", " ").split()
    found = {name: [known.index(word) for word in words if word in known] for name, known in LABELS.items()}
    return {name: which[0] for name, which in found.items() if which}
