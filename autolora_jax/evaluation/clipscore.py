"""CLIPScore: how well a picture fits its prompt, by CLIP alone. PickScore: how well people would like it for it.

    CLIPScore = 100 · max(cos(f(picture), f(prompt)), 0)
    PickScore = τ · cos(f(picture), f(prompt)),  f and τ of a CLIP that was tuned on people's choices

That is torchmetrics' scale; arXiv 2104.08718, which introduced it, has 2.5 for the 100, and puts "A photo depicts"
before the caption, which here, as in torchmetrics, is not done. torchmetrics keeps the mean above 0; here, as in the
paper, every picture's score is. Scores by different CLIPs do not compare. PickScore: arXiv 2305.01569; the code of its
model card.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64

from autolora_jax.evaluation.diversity import unit_vectors
from autolora_jax.evaluation.encoders import Clip
from autolora_jax.evaluation.features import FeatureCache

SCALE = 100.0
CLIPSCORE, PICKSCORE = "CLIPScore", "PickScore"


def clip_scores(pictures: Float[np.ndarray, "n d"], prompts: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n"]:
    """The CLIPScore of each picture and its prompt, 0 to 100 (some 20 to 40 where they fit). Vectors of any length."""
    return SCALE * np.maximum(_cosines(pictures, prompts), 0.0)


def clip_scores_of(
    clip: Clip, pictures: Float[np.ndarray, "n d"], prompts: Sequence[str | None], cache: Path | None = None
) -> Float64[np.ndarray, "n"]:
    """The CLIPScore of each picture; NaN for those whose prompt is None.

    pictures: features by clip.pictures. cache: a folder that keeps the prompts' features, as `collect` does pictures'.
    Raises ValueError when no prompt is known.
    """
    return _compared(CLIPSCORE, clip_scores, clip, pictures, prompts, cache)


def pick_scores_of(
    clip: Clip, pictures: Float[np.ndarray, "n d"], prompts: Sequence[str | None], cache: Path | None = None
) -> Float64[np.ndarray, "n"]:
    """The PickScore of each picture, some 17 to 24 for pictures of today's models: one more is chosen e times as often.

    As `clip_scores_of` in all else. Raises WeightsError for a CLIP whose file lacks its temperature.
    """
    temperature = clip.temperature()
    return _compared(PICKSCORE, lambda *pairs: temperature * _cosines(*pairs), clip, pictures, prompts, cache)


def _compared(
    name: str,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    clip: Clip,
    pictures: Float[np.ndarray, "n d"],
    prompts: Sequence[str | None],
    cache: Path | None,
) -> Float64[np.ndarray, "n"]:
    known = [i for i, prompt in enumerate(prompts) if prompt is not None]
    if not known:
        raise ValueError(f"{name} compares pictures with their prompts, and none is known; give a manifest.jsonl")
    texts = [prompt for prompt in prompts if prompt is not None]
    scores = np.full(len(prompts), np.nan)
    scores[known] = score(pictures[known], text_features(clip, texts, cache))
    return scores


def _cosines(pictures: Float[np.ndarray, "n d"], prompts: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n"]:
    return np.einsum("nd,nd->n", unit_vectors(pictures), unit_vectors(prompts))


def text_features(clip: Clip, texts: Sequence[str], cache: Path | None = None) -> Float32[np.ndarray, "n d"]:
    """CLIP's vectors of texts. cache: as for `clip_scores_of`."""
    digests = {text: hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() for text in texts}
    kept = FeatureCache(cache, clip.identity, clip.size)
    if missing := [text for text, digest in digests.items() if digest not in kept]:
        kept.add([digests[text] for text in missing], clip.texts(missing))
    return kept.rows([digests[text] for text in texts])
