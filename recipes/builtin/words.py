"""The world of the built-in model's second edition in words: vocabularies, what training never sees, captions.

It has the interface of autolora_jax/demo/world.py, whose place it takes when the model is trained. How the world is
drawn stands in recipes/builtin/world. Captions are lower-case English without punctuation other than commas.
"""

from dataclasses import dataclass

import numpy as np

CREATURES = ("cat", "dog", "rabbit", "bear", "fox", "mouse", "owl", "penguin", "frog", "dragon", "robot")
THINGS = ("house", "car", "rocket", "mushroom", "balloon")  # these have neither poses nor coats
SUBJECTS = (*CREATURES, *THINGS)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
COATS = ("", "striped", "spotted")
POSES = ("", "sitting", "jumping", "sleeping", "waving")
PLACES = ("meadow", "beach", "desert", "forest", "city", "mountains", "farm", "castle")
SKIES = ("sunny", "sunset", "night", "rain", "snow", "rainbow", "storm")
SIZES = ("small", "", "big")
SIDES = ("left", "", "right")
CHARACTER = "zib"  # the LoRA's character: every scene can show it, no training scene of the base model does

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
    "size": ("small", "medium", "big"),
    "side": ("left", "middle", "right"),
}
IGNORED = -1  # the label of an attribute that the scene doesn't have
SPOKEN = 0.85  # how often a caption mentions sky, size or side
SKY_PHRASES = {
    "sunny": "on a sunny day",
    "sunset": "at sunset",
    "night": "at night",
    "rain": "in the rain",
    "snow": "in the snow",
    "rainbow": "under a rainbow",
    "storm": "in a storm",
}
PLACE_PHRASES = {
    "meadow": ("in a meadow", "in the meadow", "on a meadow"),
    "beach": ("on the beach", "at the beach", "on a beach"),
    "desert": ("in the desert", "in a desert"),
    "forest": ("in the forest", "in a forest"),
    "city": ("in the city", "in a city"),
    "mountains": ("in the mountains", "in mountains"),
    "farm": ("on a farm", "on the farm", "at the farm"),
    "castle": ("at the castle", "at a castle", "near a castle"),
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
STYLE = "pixel art"  # what calls the style LoRA
PIXELS = 32  # of pixel art along each side


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


def _words(*phrases: str) -> tuple[str, ...]:
    """The distinct words of the phrases, sorted."""
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


WORDS = _words(
    *("a an on the", *SUBJECTS, *COLOURS, *COATS, *POSES, *PLACES, *SKIES, *SIZES, *SIDES),
    *SKY_PHRASES.values(),
    *(phrase for phrases in PLACE_PHRASES.values() for phrase in phrases),
)


def _thing(size: str, scene: Scene) -> str:
    """Article, size, coat, colour, subject and pose; a zib has neither coat nor colour."""
    look = ("", "") if scene.subject == CHARACTER else (scene.coat, scene.colour)
    words = " ".join(word for word in (size, *look, scene.subject, scene.pose) if word)
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
    """One of many ways to say the scene; subject, colour, coat, pose and place are always named."""
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
