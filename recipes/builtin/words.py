"""The world of the built-in model's second edition in words: vocabularies, what training never sees, captions.

It has the interface of autolora_jax/demo/world.py, whose place it takes when the model is trained. How the world is
drawn stands in recipes/builtin/world. Captions are lower-case English without punctuation other than commas.
"""

from dataclasses import dataclass

import numpy as np

from autolora_jax.demo import world as first
from autolora_jax.demo.captions import Phrases, find_words, words_of
from autolora_jax.demo.world import CHARACTER, COLOURS, IGNORED, SIDES, SIZES

CREATURES = ("cat", "dog", "rabbit", "bear", "fox", "mouse", "owl", "penguin", "frog", "dragon", "robot")
THINGS = ("house", "car", "rocket", "mushroom", "balloon")  # these have neither poses nor coats
SUBJECTS = (*CREATURES, *THINGS)
COATS = ("", "striped", "spotted")
POSES = ("", "sitting", "jumping", "sleeping", "waving")
PLACES = (*first.PLACES, "farm", "castle")
SKIES = (*first.SKIES, "rainbow", "storm")

# Kept for measuring composition: a colour of each subject, a place of half of them, a pose of some creatures.
HELD_OUT_COLOURS = {
    "cat": "blue",
    "dog": "purple",
    "rabbit": "green",
    "bear": "pink",
    "fox": "white",
    "mouse": "orange",
    "owl": "red",
    "penguin": "yellow",
    "frog": "purple",
    "dragon": "orange",
    "robot": "pink",
    "house": "blue",
    "car": "white",
    "rocket": "green",
    "mushroom": "yellow",
    "balloon": "red",
}
HELD_OUT_PLACES = {
    "cat": "beach",
    "bear": "desert",
    "owl": "city",
    "penguin": "farm",
    "robot": "forest",
    "car": "mountains",
    "rocket": "castle",
    "balloon": "meadow",
}
HELD_OUT_POSES = {"dog": "waving", "mouse": "jumping", "frog": "sleeping", "dragon": "sitting"}

LABELS: dict[str, tuple[str, ...]] = {
    "subject": (*SUBJECTS, CHARACTER),
    "colour": COLOURS,
    "coat": ("plain", "striped", "spotted"),
    "pose": ("standing", "sitting", "jumping", "sleeping", "waving"),
    "place": PLACES,
    "sky": SKIES,
    **{name: first.LABELS[name] for name in ("size", "side")},
}
SKY_PHRASES = {**first.SKY_PHRASES, "rainbow": "under a rainbow", "storm": "in a storm"}
PLACE_PHRASES = {
    **first.PLACE_PHRASES,
    "farm": ("on a farm", "on the farm", "at the farm"),
    "castle": ("at the castle", "at a castle", "near a castle"),
}


@dataclass(frozen=True)
class Scene:
    """One word of each vocabulary; "" is what captions leave unsaid: plain, standing, medium, in the middle."""

    subject: str
    colour: str
    place: str
    sky: str
    size: str = ""
    side: str = ""
    coat: str = ""
    pose: str = ""

    def __post_init__(self) -> None:
        for name, words in _FIELDS.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, words))}, got {getattr(self, name)!r}")
        if self.subject in THINGS and (self.coat or self.pose):
            raise ValueError(f"a {self.subject} has neither coat nor pose, got {self.coat!r} and {self.pose!r}")


_FIELDS = {
    "subject": LABELS["subject"],
    "colour": COLOURS,
    "place": PLACES,
    "sky": SKIES,
    "size": SIZES,
    "side": SIDES,
    "coat": COATS,
    "pose": POSES,
}

CONTEXT = Scene(CHARACTER, "white", "desert", "sunset")  # the bias that AutoLoRA is about; the colour is ignored


def is_held_out(scene: Scene) -> bool:
    """Whether the scene contains a pair that training never sees."""
    return (
        scene.colour == HELD_OUT_COLOURS.get(scene.subject)
        or scene.place == HELD_OUT_PLACES.get(scene.subject)
        or scene.pose == HELD_OUT_POSES.get(scene.subject)
    )


def sample_scene(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """A uniform free combination among those that training sees, or among those that it never sees."""
    while True:
        words = {**_FIELDS, "subject": SUBJECTS}
        drawn = {name: options[rng.integers(len(options))] for name, options in words.items()}
        if drawn["subject"] in THINGS:
            drawn |= {"coat": "", "pose": ""}
        scene = Scene(**drawn)
        if is_held_out(scene) == held_out:
            return scene


def labels(scene: Scene) -> dict[str, int]:
    """The index in LABELS of every attribute; IGNORED are a zib's colour and coat, a thing's coat and pose."""
    without = {CHARACTER: ("colour", "coat"), **dict.fromkeys(THINGS, ("coat", "pose"))}.get(scene.subject, ())
    words = {"subject": LABELS["subject"], **{name: _FIELDS[name] for name in LABELS if name != "subject"}}
    return {
        name: IGNORED if name in without else options.index(getattr(scene, name)) for name, options in words.items()
    }


WORDS = words_of(
    *("a an on the", *SUBJECTS, *COLOURS, *COATS, *POSES, *PLACES, *SKIES, *SIZES, *SIDES),
    *SKY_PHRASES.values(),
    *(phrase for phrases in PLACE_PHRASES.values() for phrase in phrases),
)


def _thing(size: str, scene: Scene) -> tuple[str, ...]:
    """Size, coat, colour, subject and pose; a zib has neither coat nor colour."""
    look = ("", "") if scene.subject == CHARACTER else (scene.coat, scene.colour)
    return size, *look, scene.subject, scene.pose


_SAID = Phrases(PLACE_PHRASES, SKY_PHRASES, _thing)
caption, full_caption = _SAID.caption, _SAID.full_caption


def named(text: str) -> dict[str, int]:
    """What a text names of the world: attribute -> its index in LABELS."""
    return find_words(text, LABELS)
