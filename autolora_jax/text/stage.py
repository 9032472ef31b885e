"""What all families' prompts share: tokenizers, text encoders with deltas, and a memory of what was encoded.

Each distinct (text, LoRA scale) is encoded once and kept on the host, so many seeds of a prompt cost one encoding.
Deltas of the text encoders and words that a LoRA brings act where its scale is not 0: on the tuned branches, and on the
base branches if the caller gives these the same scales.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Int
from transformers import CLIPTokenizer, T5TokenizerFast

from autolora_jax import lora
from autolora_jax.config import CLIPTextConfig, JsonConfig, T5Config
from autolora_jax.models.clip import CLIPTextModel
from autolora_jax.models.t5 import T5EncoderModel
from autolora_jax.text.streaming import encode_streamed
from autolora_jax.text.tokens import token_ids
from autolora_jax.text.words import Piece, Word, Words

Tree = Mapping[str, Any]
Keywords = dict[str, Any]  # of the denoiser -> array
# encoder -> (hidden states [b t d], pooled [b p]), numpy or traced
Join = Callable[[Mapping[str, tuple[Any, Any]]], Keywords]
TOKENIZERS: Mapping[type[JsonConfig], Any] = {CLIPTextConfig: CLIPTokenizer, T5Config: T5TokenizerFast}
HIDDEN_LAYER = -2  # of CLIP encoders, SDXL and SD3 read the last layer but one
CACHED_BYTES = 2**31  # of encoded prompts on the host


class Text(NamedTuple):
    """One prompt: what each of the encoders reads. Of a family with two encoders nobody reads the third."""

    first: str
    second: str
    third: str


def same_text(text: str) -> Text:
    """The same for all encoders."""
    return Text(text, text, text)


class Sizes(NamedTuple):
    """SDXL's size conditioning, pixels, each (height, width) or (top, left)."""

    original: tuple[int, int]
    crops_top_left: tuple[int, int]
    target: tuple[int, int]

    def time_ids(self) -> np.ndarray:
        """float32 [6]."""
        return np.array([*self.original, *self.crops_top_left, *self.target], np.float32)


class TextSettings(NamedTuple):
    """How a call's prompts are read.

    sizes: (negative, positive); SDXL's.
    clip_skip: of the positive prompt; None = the last but one layer, k skips k more.
    max_sequence_length: tokens of T5; SD3's.
    """

    sizes: tuple[Sizes, Sizes]
    clip_skip: int | None = None
    max_sequence_length: int = 256


class Encoding(NamedTuple):
    """What an encoding follows from, beside the weights."""

    pieces: tuple[tuple[Piece, ...], ...]  # what each encoder reads
    clip_skip: int | None
    max_sequence_length: int
    scales: tuple[float, ...]  # of the encoders' deltas; () without

    @property
    def has_words(self) -> bool:
        return any(piece.is_word for pieces in self.pieces for piece in pieces)


class TextStage:
    """Tokenizers and text encoders of one pipeline, with deltas and words to replace. Families are subclasses."""

    def __init__(
        self,
        tokenizers: Mapping[str, Path],
        encoders: Mapping[str, nn.Module],
        params: Mapping[str, Tree],
        force_zeros_for_empty_prompt: bool,
        joint_attention_dim: int,
        streamed: Mapping[str, jax.Device],
    ) -> None:
        """tokenizers, encoders, params: by the encoders' names. joint_attention_dim: width of the prompt's tokens.

        streamed: encoders whose parameters lie on the host -> the device that computes them; see text.streaming.
        """
        self.encoders = dict(encoders)
        self.tokenizers = {
            name: TOKENIZERS[type(encoder.config)].from_pretrained(tokenizers[name])
            for name, encoder in encoders.items()
        }
        self.params = params
        self.force_zeros = force_zeros_for_empty_prompt
        self.joint_attention_dim = joint_attention_dim
        self.streamed = dict(streamed)
        self.deltas: Mapping[str, Tree] = {}
        self.words = Words()
        self._cache: dict[Encoding, Keywords] = {}

    def set_deltas(self, deltas: Mapping[str, Tree]) -> None:
        """Replaces the encoders' delta trees (encoder -> tree)."""
        self.deltas = {name: deltas[name] for name in self.encoders if deltas.get(name)}
        self._cache = {key: value for key, value in self._cache.items() if not key.scales}

    def set_words(self, words: Iterable[Word]) -> None:
        """Replaces the words that stand for vectors. Raises WeightsError, and replaces none, where two are the same."""
        self.words = Words(words)
        self._cache = {key: value for key, value in self._cache.items() if not key.has_words}

    def conditioning(
        self,
        positive: Sequence[Text],
        negative: Sequence[Text | None],
        settings: TextSettings,
        scales: Mapping[str, np.ndarray],
    ) -> dict[str, Keywords]:
        """kind of weights -> denoiser's keyword -> array [n, 2, ...], (negative, positive) along axis 1.

        positive, negative: n each; a negative None means zeros where the checkpoint's pipeline does so, else "".
        scales: kind of weights ("base", "weak", "lora") -> LoRA scales [n, loras].
        """
        self.check(settings)
        plain = settings._replace(clip_skip=None)  # clip_skip is for the prompt alone, as in diffusers' pipelines
        result = {}
        for kind, values in scales.items():
            rows = [
                [self._encode(no, s, plain), self._encode(yes, s, settings)]
                for no, yes, s in zip(negative, positive, values, strict=True)
            ]
            told = {name: np.stack([[row[i][name] for i in (0, 1)] for row in rows]) for name in rows[0][0]}
            same = {name: np.repeat(array[None], len(rows), axis=0) for name, array in self.of_sizes(settings).items()}
            result[kind] = {**told, **same}
        return result

    def tokenize(
        self, text: Text, max_sequence_length: int = TextSettings._field_defaults["max_sequence_length"]
    ) -> dict[str, Int[np.ndarray, "1 t"]]:
        """Token ids for each encoder, no words among them. Warns when a prompt is longer than the encoder can read."""
        return self._tokenize([(Piece(part),) for part in text], max_sequence_length)

    def length(self, encoder: str, max_sequence_length: int) -> int:
        """Tokens that an encoder reads."""
        config = self.encoders[encoder].config
        return config.max_position_embeddings if isinstance(config, CLIPTextConfig) else max_sequence_length

    # ---- what families say -----------------------------------------------------------------------------------------

    def check(self, settings: TextSettings) -> None:
        """Raises ValueError for settings that can't be meant."""
        skip = settings.clip_skip or 0
        for name, encoder in self.encoders.items():
            if isinstance(encoder, CLIPTextModel) and not 0 <= skip <= encoder.config.num_hidden_layers - 1:
                most = encoder.config.num_hidden_layers - 1
                raise ValueError(f"clip_skip={settings.clip_skip} is out of range; {name} has layers for 0 to {most}")

    def of_sizes(self, settings: TextSettings) -> Keywords:
        """What the denoiser is told beside the prompt: keyword -> [2, ...] (negative, positive)."""
        return {}

    def join(self, max_sequence_length: int) -> Join:
        """From the encoders' outputs to the denoiser's keywords. Hashable: training compiles it in."""
        raise AssertionError("a family joins its encoders in its own way")

    # ---- encoding --------------------------------------------------------------------------------------------------

    def _tokenize(
        self, texts: Sequence[Sequence[Piece]], max_sequence_length: int
    ) -> dict[str, Int[np.ndarray, "1 t"]]:
        """Token ids for each encoder; those from its vocabulary's size on are rows of its table of words."""
        ids = {}
        for (name, encoder), pieces in zip(self.encoders.items(), texts, strict=False):
            vocabulary, length = encoder.config.vocab_size, self.length(name, max_sequence_length)
            ids[name] = token_ids(self.tokenizers[name], vocabulary, pieces, self.words, name, length)
        return ids

    def _encode(self, text: Text | None, scales: np.ndarray, settings: TextSettings) -> Keywords:
        if text is None:
            if self.force_zeros:
                like = self._encode(same_text(""), np.zeros_like(scales), settings)
                return {name: np.zeros_like(array) for name, array in like.items()}
            text = same_text("")
        adapted = bool(self.deltas) and bool(np.any(scales))
        key = Encoding(
            tuple(self.words.split(part, scales) for part in text),
            settings.clip_skip,
            settings.max_sequence_length,
            tuple(map(float, scales)) if adapted else (),
        )
        if key not in self._cache:
            found = self._run(key)
            size = sum(array.nbytes for array in found.values())
            while self._cache and (len(self._cache) + 1) * size > CACHED_BYTES:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = found
        return self._cache[key]

    def _run(self, key: Encoding) -> Keywords:
        layer = HIDDEN_LAYER - (key.clip_skip or 0)
        scales = lora.padded_scales(np.array(key.scales, np.float32))
        outputs: dict[str, tuple[Array, Array | None]] = {}
        for name, ids in self._tokenize(key.pieces, key.max_sequence_length).items():
            delta = self.deltas.get(name, {}) if key.scales else {}
            encoder, params, at = self.encoders[name], self.params[name], scales if delta else None
            words = self.words.tables.get(name)
            if name in self.streamed:
                assert isinstance(encoder, T5EncoderModel)
                outputs[name] = encode_streamed(encoder, params, delta, at, ids, words, self.streamed[name]), None
            else:
                outputs[name] = encode(encoder, layer, params, delta, at, ids, words)
        joined = self.join(key.max_sequence_length)(jax.device_get(outputs))
        return {name: array[0] for name, array in joined.items()}


@partial(jax.jit, static_argnames=("encoder", "layer"))
def encode(
    encoder: nn.Module,
    layer: int,
    params: Tree,
    delta: Tree,
    scales: Array | None,
    ids: Int[Array, "b t"],
    words: Float[Array, "r d"] | None,
) -> tuple[Array, Array | None]:
    """(hidden states [b t d], pooled [b p] or None) of an encoder.

    layer: of CLIP encoders, index into the tuple of hidden states, taken without the final norm; −2 is SDXL's and
    SD3's. T5 has but its last, normed state. scales: [loras], or None for the base encoder. words: what ids from the
    vocabulary's size on are rows of.
    """
    variables = {"params": params} if scales is None else {"params": params, "lora": lora.at_scale(delta, scales)}
    return output_at(encoder.apply(variables, ids, words), layer)


def output_at(output: Any, layer: int = HIDDEN_LAYER) -> tuple[Array, Array | None]:
    """(hidden states, pooled) of what an encoder returns; see encode."""
    if isinstance(output, tuple):
        hidden, pooled = output
        return hidden[layer], pooled
    return output, None
