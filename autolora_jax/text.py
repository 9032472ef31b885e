"""Prompts -> what SDXL's denoiser is told: tokens, two CLIP encoders, pooled vector, size ids.

Each distinct (text, LoRA scale) is encoded once and kept on the host, so many seeds of a prompt cost one encoding.
Deltas of the text encoders act on the tuned branches only; the base branches see the base encoders' embeddings.
Source: diffusers pipeline_stable_diffusion_xl.py encode_prompt, _get_add_time_ids.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int
from transformers import CLIPTokenizer

from autolora_jax import lora
from autolora_jax.models.clip import CLIPTextModel

Tree = Mapping[str, Any]
ENCODERS = ("text_encoder", "text_encoder_2")
HIDDEN_LAYER = -2  # SDXL reads the last layer but one of both
CACHED_PROMPTS = 4096  # about 0.6 MB each for SDXL in float32


class Text(NamedTuple):
    """One prompt: what each of the two encoders reads."""

    first: str
    second: str


class Sizes(NamedTuple):
    """SDXL's size conditioning, pixels, each (height, width) or (top, left)."""

    original: tuple[int, int]
    crops_top_left: tuple[int, int]
    target: tuple[int, int]

    def time_ids(self) -> np.ndarray:
        """float32 [6]."""
        return np.array([*self.original, *self.crops_top_left, *self.target], np.float32)


class _Encoded(NamedTuple):
    hidden: np.ndarray  # [77, 768 + 1280]
    pooled: np.ndarray  # [1280]


class SDXLText:
    """Tokenizers and text encoders of one pipeline, with their (replaceable) deltas."""

    def __init__(
        self,
        tokenizers: Sequence[Path],
        encoders: Sequence[CLIPTextModel],
        params: Mapping[str, Tree],
        force_zeros_for_empty_prompt: bool,
    ) -> None:
        self.tokenizers = [CLIPTokenizer.from_pretrained(folder) for folder in tokenizers]
        self.encoders = tuple(encoders)
        self.params = params
        self.force_zeros = force_zeros_for_empty_prompt
        self.deltas: Mapping[str, Tree] = {}
        self._cache: dict[Any, _Encoded] = {}

    def set_deltas(self, deltas: Mapping[str, Tree]) -> None:
        """Replaces the encoders' delta trees ("text_encoder", "text_encoder_2" -> tree)."""
        self.deltas = {name: deltas[name] for name in ENCODERS if deltas.get(name)}
        self._cache = {key: value for key, value in self._cache.items() if not key[-1]}

    def conditioning(
        self,
        positive: Sequence[Text],
        negative: Sequence[Text | None],
        sizes: tuple[Sizes, Sizes],
        scales: Mapping[str, np.ndarray],
        clip_skip: int | None = None,
    ) -> dict[str, dict[str, np.ndarray]]:
        """kind of weights -> network keyword -> array [n, 2, ...], (negative, positive) along axis 1.

        positive, negative: n each; a negative None means zeros where the checkpoint's pipeline does so, else "".
        sizes: (negative, positive).
        scales: kind of weights ("base", "weak", "lora") -> LoRA scales [n, loras].
        clip_skip: None = the last but one layer; k skips k more.
        """
        time_ids = np.stack([s.time_ids() for s in sizes])  # [2 6]
        result = {}
        for kind, values in scales.items():
            rows = [
                [self._encode(text, s, clip_skip) for text in pair]
                for *pair, s in zip(negative, positive, values, strict=True)
            ]
            result[kind] = {
                "encoder_hidden_states": np.stack([[e.hidden for e in row] for row in rows]),
                "text_embeds": np.stack([[e.pooled for e in row] for row in rows]),
                "time_ids": np.repeat(time_ids[None], len(rows), axis=0),
            }
        return result

    def tokenize(self, texts: Text) -> list[Int[np.ndarray, "1 77"]]:
        """Token ids for each encoder. Warns when a prompt is longer than the encoder can read."""
        return [self._ids(tokenizer, text) for tokenizer, text in zip(self.tokenizers, texts, strict=True)]

    @staticmethod
    def _ids(tokenizer: CLIPTokenizer, text: str) -> Int[np.ndarray, "1 77"]:
        length = tokenizer.model_max_length
        ids = tokenizer(text, padding="max_length", max_length=length, truncation=True).input_ids
        full = tokenizer(text).input_ids
        if len(full) > length:
            cut = tokenizer.decode(full[length - 1 : -1]).strip()
            warnings.warn(f"prompt is longer than {length - 2} tokens; not read: {cut!r}", stacklevel=2)
        return np.array([ids], np.int32)

    def _encode(self, text: Text | None, scales: np.ndarray, clip_skip: int | None) -> _Encoded:
        if text is None:
            if self.force_zeros:
                like = self._encode(Text("", ""), np.zeros_like(scales), clip_skip)
                return _Encoded(np.zeros_like(like.hidden), np.zeros_like(like.pooled))
            text = Text("", "")
        adapted = bool(self.deltas) and bool(np.any(scales))
        key = (text, clip_skip, tuple(map(float, scales)) if adapted else ())
        if key not in self._cache:
            if len(self._cache) >= CACHED_PROMPTS:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = self._run(text, scales.astype(np.float32) if adapted else None, clip_skip)
        return self._cache[key]

    def _run(self, text: Text, scales: np.ndarray | None, clip_skip: int | None) -> _Encoded:
        layer = HIDDEN_LAYER - (clip_skip or 0)
        outputs = []
        for name, encoder, ids in zip(ENCODERS, self.encoders, self.tokenize(text), strict=True):
            if not 0 <= (clip_skip or 0) <= encoder.config.num_hidden_layers - 1:
                most = encoder.config.num_hidden_layers - 1
                raise ValueError(f"clip_skip={clip_skip} is out of range; {name} has layers for 0 to {most}")
            delta = self.deltas.get(name, {}) if scales is not None else {}
            outputs.append(encode(encoder, layer, self.params[name], delta, scales if delta else None, ids))
        (first, _), (second, pooled) = jax.device_get(outputs)
        return _Encoded(np.concatenate([first[0], second[0]], axis=-1), pooled[0])


@partial(jax.jit, static_argnames=("encoder", "layer"))
def encode(
    encoder: CLIPTextModel, layer: int, params: Tree, delta: Tree, scales: Array | None, ids: Int[Array, "b 77"]
) -> tuple[Array, Array]:
    """(hidden states [b 77 d] of a layer, without the final norm; pooled [b p]).

    layer: index into the tuple of hidden states; −2 is SDXL's.
    scales: [loras], or None for the base encoder.
    """
    variables = {"params": params} if scales is None else {"params": params, "lora": lora.at_scale(delta, scales)}
    hidden, pooled = encoder.apply(variables, ids)
    return hidden[layer], pooled
