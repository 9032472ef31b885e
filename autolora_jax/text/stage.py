"""What all families' prompts share: tokenizers, text encoders with deltas, and a memory of what was encoded.

    begin         texts ──tokenizers──▶ readings ──▶ those that are not known yet: one program call per encoder
    conditioning  the same, then waits for what it needs ──▶ the denoiser's keywords

What an encoder makes of a text at a LoRA scale is encoded once and kept on the host, so many seeds of a prompt cost one
encoding. Who begins the next call's texts before the devices are set to work on this one's pictures never waits for
them. Deltas of the text encoders and words that a LoRA brings act where its scale is not 0: on the tuned branches, and
on the base branches if the caller gives these the same scales.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Int

from autolora_jax import lora
from autolora_jax.config import CLIPTextConfig
from autolora_jax.models.clip import CLIPTextModel
from autolora_jax.models.t5 import T5EncoderModel
from autolora_jax.text import encoding
from autolora_jax.text.embeds import GivenEmbeds
from autolora_jax.text.encoding import Outputs, Rows
from autolora_jax.text.streaming import encode_streamed
from autolora_jax.text.syntax import SYNTAXES, Syntax, slices
from autolora_jax.text.tokens import Filled, Read, Vocabulary, chunked, open_tokenizer
from autolora_jax.text.words import Piece, Word, Words

Tree = Mapping[str, Any]
Keywords = dict[str, Any]  # of the denoiser -> array
# encoder -> (hidden states [b t d], pooled [b p]), numpy or traced
Join = Callable[[Mapping[str, tuple[Any, Any]]], Keywords]
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
    syntax: a key of syntax.SYNTAXES. chunks: of 75 tokens that CLIP encoders read; those that a text does not fill are
    empty.
    """

    sizes: tuple[Sizes, Sizes]
    clip_skip: int | None = None
    max_sequence_length: int = 256
    syntax: str = "plain"
    chunks: int = 1


ANY_SIZE = TextSettings((Sizes((0, 0), (0, 0), (0, 0)),) * 2)


class Prompts(NamedTuple):
    """What a call's images are told, n each."""

    positive: Sequence[Text]
    negative: Sequence[Text | None]  # None means zeros where the checkpoint's pipeline does so, else ""
    settings: TextSettings
    scales: Mapping[str, np.ndarray]  # kind of weights ("base", "weak", "lora") -> LoRA scales [n, loras]
    given: tuple[GivenEmbeds | None, GivenEmbeds | None] = (None, None)  # (negative, positive), instead of the texts


class Reading(NamedTuple):
    """What one encoder reads at once, and all that its answer follows from beside the weights."""

    encoder: str
    ids: tuple[int, ...]  # those from the vocabulary's size on are rows of the encoder's table of words
    skip: int  # layers left out at the end of CLIP encoders, see TextSettings.clip_skip
    scales: tuple[float, ...]  # of the encoder's delta; () for the base encoder


class Told(NamedTuple):
    """A chunk of a text to one encoder."""

    reading: Reading
    weights: tuple[float, ...]  # of its tokens; () where all are 1
    empty: Reading  # of no text, in its place


Readings = tuple[tuple[Told, ...], ...]  # of one text, an encoder each, its chunks
Asked = dict[str, list[tuple[Readings | None, Readings | None]]]


class Call(NamedTuple):
    """Readings that are being encoded."""

    places: Mapping[Reading, int]  # -> row of the outputs
    outputs: Callable[[], Outputs]  # on the devices


class TextStage:
    """Tokenizers and text encoders of one pipeline, with deltas and words to replace. Families are subclasses."""

    CLIPS_AS_ONE = False  # whether A1111 weighs the states of both CLIPs as one tensor
    STATES, POOLED = "encoder_hidden_states", ""  # the denoiser's keywords of tokens' states and of the pooled vector

    def __init__(
        self,
        tokenizers: Mapping[str, Path],
        encoders: Mapping[str, nn.Module],
        params: Mapping[str, Tree],
        force_zeros_for_empty_prompt: bool,
        joint_attention_dim: int,
        mesh: jax.sharding.Mesh,
        streamed: Mapping[str, jax.Device],
    ) -> None:
        """tokenizers, encoders, params: by the encoders' names. joint_attention_dim: width of the prompt's tokens.

        mesh: the devices that encode. streamed: encoders whose parameters lie on the host -> the device that computes
        them; see text.streaming.
        """
        self.encoders = dict(encoders)
        self.tokenizers = {
            name: open_tokenizer(type(encoder.config), tokenizers[name]) for name, encoder in encoders.items()
        }
        self.params = params
        self.force_zeros = force_zeros_for_empty_prompt
        self.joint_attention_dim = joint_attention_dim
        self.mesh = mesh
        self.streamed = dict(streamed)
        self.deltas: Mapping[str, Tree] = {}
        self.words = Words()
        self._loras = 0
        self._sizes = dict.fromkeys(self.encoders, 0)  # rows a device of each encoder's last program
        self._streams = ThreadPoolExecutor(1)
        self._cut: dict[Any, list[Filled]] = {}  # what was tokenised
        self._begun: dict[Reading, Call] = {}
        self._known: dict[Reading, Outputs] = {}  # of one row each, without its axis

    def set_deltas(self, deltas: Mapping[str, Tree], loras: int) -> None:
        """Replaces the encoders' delta trees (encoder -> tree), of so many LoRAs."""
        self.deltas = {name: deltas[name] for name in self.encoders if deltas.get(name)}
        self._loras = loras
        self._forget(lambda reading: bool(reading.scales))

    def set_words(self, words: Iterable[Word]) -> None:
        """Replaces the words that stand for vectors. Raises WeightsError, and replaces none, where two are the same."""
        self.words = Words(words)
        self._cut.clear()
        self._forget(lambda reading: max(reading.ids) >= self.encoders[reading.encoder].config.vocab_size)

    def read(self, prompts: Prompts) -> None:
        """Tokenises what `begin` would encode. Raises whatever a tokenizer makes of a text that is none to it."""
        self._asked(prompts)

    def begin(self, prompts: Prompts) -> None:
        """Sets the devices to encode what is not known yet, and does not wait for them. Raises as `read`."""
        self._begin(_distinct(self._asked(prompts)))

    def conditioning(self, prompts: Prompts) -> dict[str, Keywords]:
        """kind of weights -> denoiser's keyword -> array [n, 2, ...], (negative, positive) along axis 1."""
        asked = self._asked(prompts)
        known = self._collect(_distinct(asked))
        sizes = self.of_sizes(prompts.settings)
        result = {}
        for kind, pairs in asked.items():
            negatives, positives = zip(*pairs, strict=True)
            no, yes = (None if given is None else self._keywords(given, kind) for given in prompts.given)
            yes = yes or self._side(positives, known, prompts.settings, {})
            no = no or self._side(negatives, known, prompts.settings, yes)
            if (theirs := no[self.STATES].shape[1]) != (ours := yes[self.STATES].shape[1]):
                raise ValueError(
                    f"the prompt has {ours} tokens, the negative one {theirs}: give embeds of both, of as many; a "
                    "text has 77 times prompt_chunks"
                )
            told = {name: np.stack([no[name], yes[name]], axis=1) for name in yes}
            same = {name: np.repeat(array[None], len(pairs), axis=0) for name, array in sizes.items()}
            result[kind] = {**told, **same}
        return result

    def check_given(self, prompts: Prompts) -> None:
        """Raises ValueError for embeddings that are not of this model, or that can't be told to all who are asked."""
        configs = [encoder.config for encoder in self.encoders.values()]
        width = self.joint_attention_dim
        pooled = sum(c.projection_dim for c in configs if isinstance(c, CLIPTextConfig) and c.with_projection)
        for given in filter(None, prompts.given):
            for states, vectors in given.by_kind.values():
                if (states.shape[2], vectors.shape[1]) != (width, pooled):
                    raise ValueError(
                        f"{given.name} and its pooled vectors have shapes {states.shape} and {vectors.shape}; this "
                        f"model's are [prompts, tokens, {width}] and [prompts, {pooled}]"
                    )

    def reads_as_one(self, scales: Mapping[str, np.ndarray]) -> bool:
        """Whether texts mean the same to all kinds of weights, at these LoRA scales of theirs."""
        tuned = self.deltas or any(word.lora is not None for word in self.words)
        first, *others = scales.values()
        return not tuned or all(np.array_equal(first, other) for other in others)

    def tokenize(self, text: Text, settings: TextSettings = ANY_SIZE) -> dict[str, Int[np.ndarray, "1 t"]]:
        """Token ids for each encoder, no words among them. Warns when a prompt is longer than the encoder can read."""
        return {
            name: np.array([self._chunks(name, (((Piece(part),), 1.0),), settings)[0][0]], np.int32)
            for name, part in zip(self.encoders, text, strict=False)
        }

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

    def _asked(self, prompts: Prompts) -> Asked:
        """kind of weights -> of each image, what is read of its negative text and of its positive; None: nothing is,
        because it is given, or because it stands for zeros."""
        positive, negative, settings, scales, given = prompts
        self.check(settings)
        plain = settings._replace(clip_skip=None)  # clip_skip is for the prompt alone, as in diffusers' pipelines

        def read_negative(text: Text | None, scales: np.ndarray) -> Readings | None:
            zeros = text is None and self.force_zeros
            return None if zeros or given[0] else self._readings(text or same_text(""), scales, plain)

        return {
            kind: [
                (read_negative(no, s), None if given[1] else self._readings(yes, s, settings))
                for no, yes, s in zip(negative, positive, values, strict=True)
            ]
            for kind, values in scales.items()
        }

    def _readings(self, text: Text, scales: np.ndarray, settings: TextSettings) -> Readings:
        amounts = tuple(map(float, scales)) if np.any(scales) else ()
        return tuple(
            self._told(name, part, scales, amounts if name in self.deltas else (), settings)
            for name, part in zip(self.encoders, text, strict=False)
        )

    def _told(
        self, name: str, text: str, scales: np.ndarray, amounts: tuple[float, ...], settings: TextSettings
    ) -> tuple[Told, ...]:
        """A text to one encoder. amounts: of its delta."""
        parts = tuple(
            (None if part.text is None else self.words.split(part.text, scales), part.weight)
            for part in SYNTAXES[settings.syntax].parts(text)
        )
        skip = (settings.clip_skip or 0) if isinstance(self.encoders[name], CLIPTextModel) else 0
        (nothing, _), *_ = self._chunks(name, (), settings)
        empty = Reading(name, nothing, skip, amounts)
        chunks = [
            Told(empty._replace(ids=ids), weights if any(weight != 1 for weight in weights) else (), empty)
            for ids, weights in self._chunks(name, parts, settings)
        ]
        return tuple(chunks)

    def _chunks(self, name: str, parts: tuple[Read, ...], settings: TextSettings) -> list[Filled]:
        """What an encoder reads of a text's parts."""
        length = self.length(name, settings.max_sequence_length)
        key = name, parts, length, settings.syntax, settings.chunks
        if key not in self._cut:
            encoder, syntax = self.encoders[name], SYNTAXES[settings.syntax]
            vocabulary = Vocabulary(name, self.tokenizers[name], encoder.config.vocab_size, self.words)
            is_clip = isinstance(encoder, CLIPTextModel)
            cut, most = (syntax.cut, settings.chunks) if is_clip else (slices, 1)
            self._cut[key] = chunked(vocabulary, parts, syntax.splits_words, cut, length, most)
        return self._cut[key]

    def _begin(self, readings: Iterable[Reading]) -> None:
        unknown = [r for r in readings if r not in self._known and r not in self._begun]
        for name in self.encoders:
            own = [reading for reading in unknown if reading.encoder == name]
            devices = 1 if name in self.streamed else self.mesh.size
            for part in encoding.chunks(own, devices):
                self._sizes[name] = size = encoding.room(len(part), devices, self._sizes[name])
                call = Call(
                    dict(zip(part, encoding.places(len(part), devices, size).tolist(), strict=True)),
                    self._encode(name, self._rows(part), size),
                )
                self._begun |= dict.fromkeys(part, call)

    def _rows(self, readings: Sequence[Reading]) -> Rows:
        """Readings of one encoder."""
        loras = self._loras if readings[0].encoder in self.deltas else 0
        scales = np.zeros((len(readings), loras), np.float32)
        for row, reading in zip(scales, readings, strict=True):
            row[: len(reading.scales)] = reading.scales
        ids = np.array([reading.ids for reading in readings], np.int32)
        return Rows(ids, np.array([reading.skip for reading in readings], np.int32), lora.padded_scales(scales))

    def _encode(self, name: str, rows: Rows, size: int) -> Callable[[], Outputs]:
        """What waits for the outputs of an encoder, `size` rows on each device."""
        encoder, params, delta = self.encoders[name], self.params[name], self.deltas.get(name, {})
        words = self.words.tables.get(name)
        if name in self.streamed:
            assert isinstance(encoder, T5EncoderModel)
            device = self.streamed[name]
            stream = self._streams.submit(encode_streamed, encoder, params, delta, words, rows, size, device)
            return lambda: (stream.result(), None)
        outputs = encoding.begin(encoder, self.mesh, params, delta, words, rows, size)
        return lambda: outputs

    def _collect(self, readings: Sequence[Reading]) -> dict[Reading, Outputs]:
        """What is known of them, all of which is begun if need be and waited for."""
        self._begin(readings)
        known = {reading: self._known[reading] for reading in readings if reading in self._known}
        calls = {id(call): call for reading in readings if (call := self._begun.get(reading))}.values()
        for call in calls:  # what fails is to be encoded anew
            self._begun = {reading: other for reading, other in self._begun.items() if other is not call}
        fetched = jax.device_get([call.outputs() for call in calls])
        for call, outputs in zip(calls, fetched, strict=True):
            for reading, place in call.places.items():  # copies: the rest of the rows is padding
                hidden, pooled = (None if array is None else np.array(array[place]) for array in outputs)
                self._known[reading] = known[reading] = hidden, pooled
        self._bound()
        return known

    def _bound(self) -> None:
        """Forgets the oldest of what is known, if that is too much."""
        sizes = {r: sum(a.nbytes for a in outputs if a is not None) for r, outputs in self._known.items()}
        total = sum(sizes.values())
        for reading, size in sizes.items():
            if total <= CACHED_BYTES:
                break
            del self._known[reading]
            total -= size

    def _forget(self, stale: Callable[[Reading], bool]) -> None:
        """Forgets what was, or is being, encoded with other deltas or words."""
        self._begun = {reading: call for reading, call in self._begun.items() if not stale(reading)}
        self._known = {reading: outputs for reading, outputs in self._known.items() if not stale(reading)}

    def _keywords(self, given: GivenEmbeds, kind: str) -> Keywords:
        """What is given, as the encoders' own would be."""
        dtype = next(iter(self.encoders.values())).dtype
        arrays = (array[given.rows].astype(dtype) for array in given.by_kind[kind])
        return dict(zip((self.STATES, self.POOLED), arrays, strict=True))

    def _side(
        self,
        texts: Sequence[Readings | None],
        known: Mapping[Reading, Outputs],
        settings: TextSettings,
        like: Keywords,
    ) -> Keywords:
        """The denoiser's keywords of texts, [n ...] each; zeros in place of None. like: of as many."""
        there = [text for text in texts if text is not None]
        if not there:
            return {name: np.zeros_like(array) for name, array in like.items()}
        syntax, rows = SYNTAXES[settings.syntax], defaultdict(list)
        for text in texts:
            for name, outputs in self._weighed(text or there[0], known, syntax).items():
                rows[name].append(outputs)
        stacked = {}
        for name, columns in rows.items():
            hidden, pooled = zip(*columns, strict=True)
            stacked[name] = np.stack(hidden), None if pooled[0] is None else np.stack(pooled)
        told = self.join(settings.max_sequence_length)(stacked)
        for array in told.values():
            array[[text is None for text in texts]] = 0
        return told

    def _weighed(self, text: Readings, known: Mapping[Reading, Outputs], syntax: Syntax) -> dict[str, Outputs]:
        """encoder -> (states of all chunks of a text, one after another, weighted; pooled vector of its first)."""
        told = dict(zip(self.encoders, text, strict=True))
        hidden = {name: [known[chunk.reading][0] for chunk in chunks] for name, chunks in told.items()}
        clips = tuple(name for name, encoder in self.encoders.items() if isinstance(encoder, CLIPTextModel))
        groups = [clips] if self.CLIPS_AS_ONE else [(name,) for name in clips]
        groups += [(name,) for name in self.encoders if name not in clips and syntax.weighs_t5]
        for group in groups:
            for i, chunks in enumerate(zip(*(told[name] for name in group), strict=True)):
                if any(chunk.weights for chunk in chunks):
                    states = [known[chunk.reading][0] for chunk in chunks]
                    weights = [np.array(c.weights or [1.0] * len(c.reading.ids), np.float32) for c in chunks]
                    empty = [known[chunk.empty][0].astype(np.float32) for chunk in chunks]
                    new = syntax.weigh([state.astype(np.float32) for state in states], weights, empty)
                    for name, state, old in zip(group, new, states, strict=True):
                        hidden[name][i] = state.astype(old.dtype)
        return {name: (np.concatenate(hidden[name]), known[chunks[0].reading][1]) for name, chunks in told.items()}


def _distinct(asked: Asked) -> list[Reading]:
    texts = (text for pairs in asked.values() for pair in pairs for text in pair if text is not None)
    told = [chunk for text in texts for chunks in text for chunk in chunks]
    weighed = (chunk.empty for chunk in told if chunk.weights)
    return list(dict.fromkeys([*(chunk.reading for chunk in told), *weighed]))
