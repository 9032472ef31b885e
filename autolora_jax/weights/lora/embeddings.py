"""Textual-inversion embeddings: words that stand for learned vectors, bundled in a LoRA's file or in one of their own.

| file                                                       | keys                      | the word            |
|------------------------------------------------------------|---------------------------|---------------------|
| a LoRA (A1111's pull request 13568, OneTrainer)            | `bundle_emb.<word>.<part>`| in the key          |
| its own (sd-scripts, OneTrainer, diffusers' advanced ones) | `<part>`                  | the file's name     |

PARTS says whose token vectors a part holds. A word may hold dots. Every encoder that is CLIP's must have vectors, T5
may have none: it then reads nothing in the word's place, as in OneTrainer and ComfyUI.
"""

import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from autolora_jax.config import CLIPTextConfig, JsonConfig, T5Config
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.files import TensorFiles, open_tensors
from autolora_jax.weights.lora.source import find_lora
from autolora_jax.weights.rules import Shape

Keys = Mapping[str, Mapping[str, str]]  # word -> part -> the tensor's name in the file
Embeddings = Mapping[str, Mapping[str, np.ndarray]]  # word -> encoder -> its vectors, float32 [n d]

_PREFIX = "bundle_emb."
_ONLY = "string_to_param.*"  # the one part that holds a dot
# Part -> the encoder whose token vectors it holds.
PARTS: Mapping[str, str] = {
    "clip_l": "text_encoder",
    "text_encoders_0": "text_encoder",  # diffusers' advanced scripts in 2023
    "clip_g": "text_encoder_2",
    "text_encoders_1": "text_encoder_2",
    "t5": "text_encoder_3",  # OneTrainer
    "t5xxl": "text_encoder_3",  # ComfyUI
}
# Parts that can't be used: pattern, what it is, what to do.
REFUSED: tuple[tuple[str, str, str], ...] = (
    (
        r"\w+_out",
        "an output embedding (OneTrainer), which takes the place of what the encoder says",
        "not supported: train it with 'output embedding' switched off",
    ),
    (
        rf"{re.escape(_ONLY)}|emb_params",
        "for a model with one text encoder, such as Stable Diffusion 1 or 2",
        "use it with the model it was trained on",
    ),
)


def split_embeddings(shapes: Mapping[str, Shape]) -> tuple[dict[str, dict[str, str]], dict[str, Shape]]:
    """(keys of the embeddings that a LoRA's file bundles, by word and part; shapes of all other tensors)."""
    words: dict[str, dict[str, str]] = {}
    others: dict[str, Shape] = {}
    for key, shape in shapes.items():
        if not key.startswith(_PREFIX):
            others[key] = shape
            continue
        name = key.removeprefix(_PREFIX)
        word, _, part = (name.removesuffix(_ONLY), "", _ONLY) if name.endswith(_ONLY) else name.rpartition(".")
        words.setdefault(word.removesuffix("."), {})[part] = key
    return words, others


def embedding_problems(
    keys: Keys, shapes: Mapping[str, Shape], networks: Mapping[str, JsonConfig] | None = None
) -> list[str]:
    """Why embeddings can't be used, told from names and shapes alone; empty when nothing is known against them.

    networks: configs of the model's components, its text encoders among them; None: no model is known.
    """
    found = []
    words: dict[str, str] = {}
    for word, parts in keys.items():
        if not word.strip():
            found.append(f"{shorten(list(parts.values()))} has no word that it stands for")
        if (other := words.setdefault(word.casefold(), word)) != word:
            found.append(f"{other!r} and {word!r} are one word to a prompt, which is read without upper case")
        found += [f"{word!r}: {problem}" for problem in _problems(parts, shapes, networks)]
    return found


def read_embeddings(file: TensorFiles, keys: Keys, networks: Mapping[str, JsonConfig]) -> Embeddings:
    """The vectors of a file's embeddings.

    keys: as split_embeddings gives them. networks: configs of the model's components, its text encoders among them.
    Raises WeightsError that names the file, all that is wrong and what to do.
    """
    shapes = {key: info.shape for key, info in file.tensors.items()}
    if problems := embedding_problems(keys, shapes, networks):
        head = f"{file.where}: its embeddings can't be used exactly, so nothing of it was loaded:"
        raise WeightsError("\n  ".join([head, *problems]))
    file.require_floats(key for parts in keys.values() for key in parts.values())
    return {
        word: {PARTS[part]: np.atleast_2d(file.read(key)).astype(np.float32) for part, key in parts.items()}
        for word, parts in keys.items()
    }


def bundled(embeddings: Embeddings) -> dict[str, np.ndarray]:
    """The tensors with which a LoRA's file bundles embeddings, by their keys."""
    parts = {encoder: part for part, encoder in reversed([*PARTS.items()])}  # the first row of an encoder
    return {
        f"{_PREFIX}{word}.{parts[encoder]}": rows
        for word, vectors in embeddings.items()
        for encoder, rows in vectors.items()
    }


def read_embedding(
    source: str | PathLike[str], networks: Mapping[str, JsonConfig]
) -> tuple[Path, Mapping[str, np.ndarray]]:
    """(file, encoder -> vectors [n d]) of a file that holds one embedding and nothing else.

    source: as find_lora takes it. Raises WeightsError as read_embeddings, also for a pickle (.pt, .bin), unopened.
    """
    path = find_lora(source)
    with open_tensors(path) as file:
        return path, read_embeddings(file, {path.stem: {key: key for key in file.tensors}}, networks)[path.stem]


def _problems(
    parts: Mapping[str, str], shapes: Mapping[str, Shape], networks: Mapping[str, JsonConfig] | None
) -> Iterator[str]:
    """What is wrong with one embedding."""
    if not parts:
        yield "it has no tensors"
    for pattern, what, remedy in REFUSED:
        if keys := [key for part, key in parts.items() if re.fullmatch(pattern, part)]:
            yield f"{shorten(keys)} is {what}; {remedy}"
    known = {part: PARTS[part] for part in parts if part in PARTS}
    strange = [k for p, k in parts.items() if p not in PARTS and not any(re.fullmatch(r, p) for r, *_ in REFUSED)]
    if strange:
        yield f"{shorten(strange)} is no part of an embedding ({', '.join(PARTS)}); a LoRA is loaded with load_lora"
    for part, encoder in known.items():
        shape = shapes[parts[part]]
        if twice := [other for other in known if other > part and known[other] == encoder]:
            yield f"{part} and {twice[0]} are both for {encoder}; save it again with one of them"
        if len(shape) not in (1, 2) or not all(shape):
            yield f"{part} is {list(shape)}, expected [vectors, width]"
        elif networks is not None and encoder not in networks:
            yield f"{part} is for {encoder}, which this model does not have; use it with the model it was trained on"
        elif networks is not None and shape[-1] != (width := _width(networks[encoder])):
            yield (
                f"{part} is {shape[-1]} wide, the vectors of {encoder} are {width}; use it with the model it was "
                "trained on"
            )
    clips = [name for name, config in (networks or {}).items() if isinstance(config, CLIPTextConfig)]
    lacking = [name for name in clips if name not in known.values()]
    if known and lacking:
        wanted = [part for part, encoder in PARTS.items() if encoder in lacking]
        yield f"it has nothing for {' and '.join(lacking)} ({' or '.join(wanted)}); it was trained for another model"


def _width(config: JsonConfig) -> int:
    assert isinstance(config, CLIPTextConfig | T5Config), config
    return config.d_model if isinstance(config, T5Config) else config.hidden_size
