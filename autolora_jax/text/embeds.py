"""What a denoiser is told, given by the caller in place of texts, under the names that diffusers has for it."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from autolora_jax.guidance import KINDS

SAID = 12  # hex digits of a digest in pictures and manifests


class Embeds(NamedTuple):
    """What a model is told of n prompts, in the order of diffusers' encode_prompt. A call takes each under its name."""

    prompt_embeds: np.ndarray  # [n t d]: tokens' states
    negative_prompt_embeds: np.ndarray
    pooled_prompt_embeds: np.ndarray  # [n p]
    negative_pooled_prompt_embeds: np.ndarray


class GivenEmbeds(NamedTuple):
    """The states and pooled vectors that stand for prompts, or for negative prompts.

    name: of the argument. by_kind: kind of weights -> (states [p t d], pooled [p w]), float32, of p prompts.
    rows: [n], which of these each image is told. shared: whether one array was given for all kinds of weights.
    """

    name: str
    by_kind: Mapping[str, tuple[np.ndarray, np.ndarray]]
    rows: np.ndarray
    shared: bool

    @property
    def prompts(self) -> int:
        """How many there are."""
        return len(next(iter(self.by_kind.values()))[0])

    def of(self, index: np.ndarray) -> "GivenEmbeds":
        """It for some images."""
        return self._replace(rows=self.rows[index])

    def for_images(self, prompts: int, repeat: int, kinds: Collection[str]) -> "GivenEmbeds":
        """It for so many images of each prompt: one for all prompts, or one each.

        kinds: of weights that will be asked. Raises ValueError when there are others, or other prompts.
        """
        if missing := [kind for kind in kinds if kind not in self.by_kind]:
            raise ValueError(
                f"{self.name} has {list(self.by_kind)}, but the guidance asks for {list(kinds)}: give {missing[0]!r}, "
                "too, or one array for all"
            )
        if self.prompts not in (1, prompts):
            raise ValueError(f"{self.name} is of {self.prompts} prompts for {prompts}; give one, or one per prompt")
        rows = np.repeat(np.arange(prompts) % self.prompts, repeat)
        return self._replace(rows=rows, by_kind={kind: self.by_kind[kind] for kind in kinds})

    def digest(self, image: int) -> str:
        """SHA-256, 64 hex digits, that tells what an image is told from what others are; pictures say SAID of them."""
        arrays = [array[self.rows[image]] for pair in self.by_kind.values() for array in pair]
        first = arrays[:2] if self.shared else arrays
        return hashlib.sha256(b"".join(array.tobytes() for array in first)).hexdigest()


def pairs_of(given: Mapping[str, Any]) -> tuple[GivenEmbeds | None, GivenEmbeds | None]:
    """(positive, negative) of a call's arguments. Raises ValueError for those that can't be told."""
    names = ("prompt_embeds", "negative_prompt_embeds")
    yes, no = (read_given(given.get(name), given.get(_pooled(name)), name) for name in names)
    return yes, no


def read_given(states: Any, pooled: Any, name: str) -> GivenEmbeds | None:
    """What is given under a name and its pooled companion; None of nothing.

    states [n t d], pooled [n p]: arrays for all kinds of weights, or a mapping kind of weights -> array.
    Raises ValueError for one without the other and for what is no such array.
    """
    pooled_name = _pooled(name)
    values = {name: states, pooled_name: pooled}
    there = [given for given, value in values.items() if value is not None]
    if not there:
        return None
    if len(there) == 1:
        [missing] = values.keys() - set(there)
        raise ValueError(f"{there[0]} is given, {missing} is not: a model is told both, of the same text encoders")
    tokens, vectors = (
        {kind: _array(array, given, sides) for kind, array in _by_kind(value, given).items()}
        for (given, value), sides in zip(values.items(), (3, 2), strict=True)
    )
    kinds = [kind for kind in KINDS if kind in tokens and kind in vectors]
    prompts = {len(array) for kind in kinds for array in (tokens[kind], vectors[kind])}
    if len(prompts) != 1:
        raise ValueError(
            f"{name} is of {_told(tokens)} prompts, {pooled_name} of {_told(vectors)}; give as many of both, for the "
            "same kinds of weights"
        )
    shared = not isinstance(states, Mapping) and not isinstance(pooled, Mapping)
    return GivenEmbeds(name, {kind: (tokens[kind], vectors[kind]) for kind in kinds}, np.arange(prompts.pop()), shared)


def _pooled(name: str) -> str:
    return name.replace("prompt_embeds", "pooled_prompt_embeds")


def _told(arrays: Mapping[str, np.ndarray]) -> str:
    return " and ".join(map(str, dict.fromkeys(map(len, arrays.values()))))


def _by_kind(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(KINDS, value)
    if unknown := value.keys() - set(KINDS):
        raise ValueError(f"{name} has {sorted(unknown)}, which are no weights; there are {', '.join(KINDS)}")
    return value


def _array(value: Any, name: str, sides: int) -> np.ndarray:
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError, RuntimeError) as e:  # torch refuses by RuntimeError what still has a gradient
        raise ValueError(f"{name} can't be read as an array: {e}") from None
    if array.ndim != sides or not array.size:
        wanted = "[prompts, tokens, width]" if sides == 3 else "[prompts, width]"
        raise ValueError(f"{name} has shape {array.shape}; expected {wanted}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array
