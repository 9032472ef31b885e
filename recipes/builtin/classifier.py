"""The classifier that measures the built-in model, trained on damaged pictures of the world and then measured itself.

It is shown what the base model never sees: held-out pairs, and the character in every place.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from autolora_jax.demo.classifier import normalised
from autolora_jax.demo.world import IGNORED
from autolora_jax.settings import OptimizerConfig
from recipes.builtin import stages
from recipes.builtin.damage import blurred, damaged, noised, to_bytes
from recipes.builtin.eye import SIZE, Classifier, Network
from recipes.builtin.pictures import Pictures, pictures
from recipes.builtin.stages import Run, Stage
from recipes.builtin.words import LABELS, labels

NAME = "classifier"
ROWS = 64
PIXEL_ART = 0.1  # share of the pictures
TESTED = 2000  # fresh pictures
BLUR, NOISE = 1.0, 12.0  # of the damaged test pictures: sigma in pixels, standard deviation in grey levels


class Round(NamedTuple):
    """Each is shown other pictures."""

    steps: int
    rate: float

    @property
    def optimizer(self) -> OptimizerConfig:
        """The rate falls to zero in the end."""
        return OptimizerConfig(learning_rate=self.rate, warmup_steps=100, weight_decay=1e-2, beta2=0.99)


ROUNDS = (Round(600, 2e-3), Round(4000, 1e-3))


class Shown(NamedTuple):
    """Pictures and what they show."""

    pixels: np.ndarray  # uint8 [n size size 3]
    labels: np.ndarray  # int32 [n attributes], in the order of LABELS


@dataclasses.dataclass(frozen=True)
class ClassifierLoss:
    """A `step.Loss` over batches {"pixels": uint8 [b h w 3], "labels": int32 [b attributes]}."""

    network: Network

    def __call__(self, params: Any, frozen: Any, batch: Any) -> tuple[Float[Array, "b"], dict[str, Float[Array, "b"]]]:
        logits, _ = self.network.apply({"params": params}, normalised(batch["pixels"]))
        losses, right = [], []
        for name, wanted in zip(LABELS, batch["labels"].T, strict=True):
            known = wanted != IGNORED
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits[name], jnp.where(known, wanted, 0))
            losses.append(jnp.where(known, entropy, 0.0))
            right.append(~known | (logits[name].argmax(axis=1) == wanted))
        return jnp.stack(losses).sum(axis=0), {"all_right": jnp.stack(right).all(axis=0).astype(jnp.float32)}


def shown(drawn: Pictures) -> Shown:
    """Pictures with the labels of their scenes."""
    return Shown(drawn.pixels, np.array([[*labels(scene).values()] for scene in drawn.scenes], np.int32))


def begin() -> Any:
    """Weights before the first round."""
    return Network().init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]


def train(work: Path, folder: Path, count: int, rounds: int) -> Stage:
    """The stage after its first `rounds` rounds, each shown `count` pictures of its own."""

    def prepare(number: int, weights: Any) -> Run:
        parts = [
            shown(pictures(work / "pictures", max(1, round(share * count)), SIZE, kind, 10 + number))
            for kind, share in (("any", 1 - PIXEL_ART), ("any-pixel-art", PIXEL_ART))
        ]
        pixels, wanted = (np.concatenate(side) for side in zip(*parts, strict=True))

        def batch_at(step: int) -> dict[str, np.ndarray]:
            rng = np.random.default_rng((11, number, step))
            index = rng.integers(len(pixels), size=ROWS)
            return {"pixels": damaged(pixels[index], rng)[None], "labels": wanted[index][None]}

        settings = {**ROUNDS[number]._asdict(), "pictures": count}
        return Run(weights, ClassifierLoss(Network()), {}, batch_at, settings, decay=0.998)

    return stages.train(NAME, ROUNDS[:rounds], begin, prepare, work, folder)


def measured(classifier: Classifier, work: Path, count: int = TESTED) -> dict[str, Any]:
    """Accuracy by kind of picture and attribute, and how the character is told from others, on fresh pictures."""
    plain = shown(pictures(work / "pictures", count, SIZE, "any", 8))
    blocks = shown(pictures(work / "pictures", count // 4, SIZE, "any-pixel-art", 9))
    exact, rng = plain.pixels.astype(np.float32), np.random.default_rng(14)
    sets = {
        "clean": plain,
        "blurred": Shown(to_bytes(blurred(exact, np.full(count, BLUR))), plain.labels),
        "noised": Shown(to_bytes(noised(exact, np.full(count, NOISE), rng)), plain.labels),
        "as in training": Shown(damaged(plain.pixels, rng), plain.labels),
        "pixel art": blocks,
    }
    return {
        "pictures": {name: len(one.pixels) for name, one in sets.items()},
        "blur": f"sigma {BLUR} pixels",
        "noise": f"standard deviation {NOISE} of 255",
        "accuracy": {name: accuracy(classifier, one) for name, one in sets.items()},
    }


def accuracy(classifier: Classifier, of: Shown) -> dict[str, float]:
    """Shares of pictures judged rightly, by attribute and of all at once, and the mean probability of the character."""
    judgement = classifier(of.pixels)
    wanted = dict(zip(LABELS, of.labels.T, strict=True))
    known = {name: wanted[name] != IGNORED for name in LABELS}
    right = {name: found == wanted[name] for name, found in judgement.classes.items()}
    shows = wanted["subject"] == len(LABELS["subject"]) - 1  # the character is the last
    all_right = np.all([right[name] | ~known[name] for name in LABELS], axis=0)
    shares = {name: right[name][known[name]].mean() for name in LABELS} | {
        "all right": all_right.mean(),
        "presence where the character is": judgement.presence[shows].mean(),
        "presence where it is not": judgement.presence[~shows].mean(),
    }
    return {name: round(float(value), 4) for name, value in shares.items()}
