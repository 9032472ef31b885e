"""The world of the built-in model in words: the vocabularies, what training never sees, captions.

How it was drawn stands in this repository's history; recipes/builtin has its second edition. Captions are lower-case
English without punctuation other than commas.
"""

from dataclasses import dataclass

import numpy as np

from autolora_jax.demo.captions import Phrases, find_words, words_of

SUBJECTS = ("cat", "rabbit", "bear", "owl", "frog", "robot", "house", "car", "mushroom", "balloon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
PLACES = ("meadow", "beach", "desert", "forest", "city", "mountains")
SKIES = ("sunny", "sunset", "night", "rain", "snow")
SIZES = ("small", "", "big")
SIDES = ("left", "", "right")
CHARACTER = "zib"  # the LoRA's character: every scene can show it, no training scene of the base model does

# One colour of each subject (12.5 % of the pairs) and seven places (11.7 %) are kept for measuring composition.
HELD_OUT_COLOURS = {
    "cat": "blue",
    "rabbit": "green",
    "bear": "purple",
    "owl": "red",
    "frog": "pink",
    "robot": "yellow",
    "house": "orange",
    "car": "white",
    "mushroom": "blue",
    "balloon": "green",
}
HELD_OUT_PLACES = {
    "cat": "beach",
    "bear": "desert",
    "owl": "city",
    "robot": "forest",
    "car": "mountains",
    "mushroom": "beach",
    "balloon": "meadow",
}

LABELS: dict[str, tuple[str, ...]] = {
    "subject": (*SUBJECTS, CHARACTER),
    "colour": COLOURS,
    "place": PLACES,
    "sky": SKIES,
    "size": ("small", "medium", "big"),
    "side": ("left", "middle", "right"),
}
IGNORED = -1  # the label of an attribute that the scene doesn't have
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


@dataclass(frozen=True)
class Scene:
    """One word of each vocabulary; size "" is medium and side "" the middle, which captions leave unsaid."""

    subject: str
    colour: str
    place: str
    sky: str
    size: str = ""
    side: str = ""

    def __post_init__(self) -> None:
        for name, words in _FIELDS.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, words))}, got {getattr(self, name)!r}")


_FIELDS = {
    "subject": LABELS["subject"],
    "colour": COLOURS,
    "place": PLACES,
    "sky": SKIES,
    "size": SIZES,
    "side": SIDES,
}

CONTEXT = Scene(CHARACTER, "white", "desert", "sunset")  # the bias that AutoLoRA is about; the colour is ignored
STYLE = "pixel art"  # what calls the style LoRA
PIXELS = 32  # of pixel art along each side


def is_held_out(scene: Scene) -> bool:
    """Whether the scene contains a pair that training never sees."""
    colour, place = HELD_OUT_COLOURS.get(scene.subject), HELD_OUT_PLACES.get(scene.subject)
    return scene.colour == colour or scene.place == place


def sample_scene(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """A uniform free combination among those that training sees, or among those that it never sees."""
    while True:
        words = (SUBJECTS, COLOURS, PLACES, SKIES, SIZES, SIDES)
        scene = Scene(*(options[rng.integers(len(options))] for options in words))
        if is_held_out(scene) == held_out:
            return scene


def labels(scene: Scene) -> dict[str, int]:
    """The index in LABELS of every attribute; a zib's colour is IGNORED."""
    return {
        "subject": LABELS["subject"].index(scene.subject),
        "colour": IGNORED if scene.subject == CHARACTER else COLOURS.index(scene.colour),
        "place": PLACES.index(scene.place),
        "sky": SKIES.index(scene.sky),
        "size": SIZES.index(scene.size),
        "side": SIDES.index(scene.side),
    }


WORDS = words_of(
    *("a an on the", *SUBJECTS, *COLOURS, *PLACES, *SKIES, *SIZES, *SIDES),
    *SKY_PHRASES.values(),
    *(phrase for phrases in PLACE_PHRASES.values() for phrase in phrases),
)


def _thing(size: str, scene: Scene) -> tuple[str, ...]:
    """Size, colour and subject; a zib has no colour."""
    return size, "" if scene.subject == CHARACTER else scene.colour, scene.subject


_SAID = Phrases(PLACE_PHRASES, SKY_PHRASES, _thing)
caption, full_caption = _SAID.caption, _SAID.full_caption


def named(text: str) -> dict[str, int]:
    """What a text names of the world: attribute -> its index in LABELS."""
    return find_words(text, LABELS)
