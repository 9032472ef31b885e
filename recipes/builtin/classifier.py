"""The classifier that measures the built-in model, trained on damaged pictures of the world and then measured itself.

    python -m recipes.builtin.classifier

About ten minutes of one core. It shows the classifier what the base model never sees: held-out pairs, and the
character in every place.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from jaxtyping import Array, Float
from rich.progress import track

from autolora_jax.demo.classifier import SIZE, WEIGHTS, Classifier, Network, normalised
from autolora_jax.demo.world import CHARACTER, IGNORED, LABELS, Scene, labels, sample_scene
from autolora_jax.settings import OptimizerConfig
from autolora_jax.sharding import data_mesh
from autolora_jax.training.checkpoints import Checkpoints
from autolora_jax.training.loop import fit
from autolora_jax.training.optimizer import make_optimizer
from autolora_jax.training.step import initial_state
from autolora_jax.weights.writing import write_safetensors
from recipes.builtin.console import Console
from recipes.builtin.damage import blurred, damaged, noised, to_bytes
from recipes.builtin.world import draw, pixel_art

OPTIMIZER = OptimizerConfig(learning_rate=2e-3, warmup_steps=100, weight_decay=1e-2, beta2=0.99)
HELD_OUT, CHARACTERS, PIXEL_ART = 0.25, 0.15, 0.1  # shares of the pictures
TESTED = 2000  # fresh pictures
BLUR, NOISE = 1.0, 12.0  # of the damaged test pictures: sigma in pixels, standard deviation in grey levels


class Drawn(NamedTuple):
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


def any_scene(rng: np.random.Generator) -> Scene:
    """One of all scenes, held-out pairs among them, with the character in it every seventh time."""
    scene = sample_scene(rng, held_out=bool(rng.random() < HELD_OUT))
    return dataclasses.replace(scene, subject=CHARACTER) if rng.random() < CHARACTERS else scene


def drawn(count: int, seed: int, pixel_art_share: float) -> Drawn:
    """Fresh pictures; picture i depends on (seed, i) alone."""
    pixels, shown = np.empty((count, SIZE, SIZE, 3), np.uint8), np.empty((count, len(LABELS)), np.int32)
    for i in track(range(count), "drawing"):
        rng = np.random.default_rng((seed, i))
        scene = any_scene(rng)
        painter = pixel_art if rng.random() < pixel_art_share else draw
        pixels[i] = np.asarray(painter(scene, rng, SIZE))
        shown[i] = [*labels(scene).values()]
    return Drawn(pixels, shown)


def train(work: Path, count: int, steps: int, rows: int) -> Classifier:
    """The classifier with the averaged weights of a run."""
    data = drawn(count, 10, PIXEL_ART)

    def batch_at(step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((11, step))
        index = rng.integers(count, size=rows)
        return {"pixels": damaged(data.pixels[index], rng)[None], "labels": data.labels[index][None]}

    network = Network()
    optimizer = make_optimizer(OPTIMIZER, steps)
    params = network.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    settings = {"steps": steps, "rows": rows, "pictures": count}
    with Checkpoints(work / "classifier", settings) as checkpoints, Console("classifier") as console:
        state = fit(
            ClassifierLoss(network),
            optimizer,
            initial_state(params, optimizer, average=True),
            {},
            batch_at,
            steps,
            data_mesh(),
            decay=0.998,
            checkpoints=checkpoints,
            save_every=500,
            on_step=console.show,
        )
    return Classifier(jax.device_get(state.average))


def measured(classifier: Classifier, count: int = TESTED) -> dict[str, Any]:
    """Accuracy by kind of picture and attribute, and how the character is told from others."""
    plain, blocks = drawn(count, 12, 0.0), drawn(count // 4, 13, 1.0)
    exact, rng = plain.pixels.astype(np.float32), np.random.default_rng(14)
    sets = {
        "clean": plain,
        "blurred": Drawn(to_bytes(blurred(exact, np.full(count, BLUR))), plain.labels),
        "noised": Drawn(to_bytes(noised(exact, np.full(count, NOISE), rng)), plain.labels),
        "as in training": Drawn(damaged(plain.pixels, rng), plain.labels),
        "pixel art": blocks,
    }
    return {
        "pictures": {name: len(shown.pixels) for name, shown in sets.items()},
        "blur": f"sigma {BLUR} pixels",
        "noise": f"standard deviation {NOISE} of 255",
        "accuracy": {name: accuracy(classifier, shown) for name, shown in sets.items()},
    }


def accuracy(classifier: Classifier, shown: Drawn) -> dict[str, float]:
    """Shares of pictures judged rightly, by attribute and of all at once, and the mean probability of the character."""
    judgement = classifier(shown.pixels)
    wanted = dict(zip(LABELS, shown.labels.T, strict=True))
    known = {name: wanted[name] != IGNORED for name in LABELS}
    right = {name: found == wanted[name] for name, found in judgement.classes.items()}
    shows = wanted["subject"] == LABELS["subject"].index(CHARACTER)
    all_right = np.all([right[name] | ~known[name] for name in LABELS], axis=0)
    shares = {name: right[name][known[name]].mean() for name in LABELS} | {
        "all right": all_right.mean(),
        "presence where the character is": judgement.presence[shows].mean(),
        "presence where it is not": judgement.presence[~shows].mean(),
    }
    return {name: round(float(value), 4) for name, value in shares.items()}


def main(
    work: Annotated[Path, typer.Option(help="Folder of the checkpoints.")] = Path("builtin.work"),
    out: Annotated[Path, typer.Option(help="The weights; what was measured lies beside them.")] = WEIGHTS,
    pictures: int = 15000,
    steps: int = 2600,
    rows: int = 64,
) -> None:
    """Trains and measures the classifier of the built-in world."""
    write_safetensors(out, train(work, pictures, steps, rows).tensors())
    report = json.dumps(measured(Classifier.load(out)), indent=2)
    out.with_suffix(".json").write_text(f"{report}\n", encoding="utf-8")
    print(report)


if __name__ == "__main__":
    typer.run(main)
