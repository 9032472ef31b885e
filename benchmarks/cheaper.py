"""What cheaper guidance costs the built-in model's pictures: how far they are from exact AutoLoRA's of the same noise,
and what the classifier sees in them.

    python -m benchmarks.cheaper

Every picture is of the character, which the LoRA knows at one place under one sky, somewhere else.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline, NoGuidance
from autolora_jax.demo.classifier import Classifier, agreement
from autolora_jax.demo.world import CHARACTER, CONTEXT, PLACES, SKIES, Scene, full_caption
from autolora_jax.evaluation.diversity import diversity_statistic
from autolora_jax.guidance import evaluations, plan
from autolora_jax.settings.rules import Rule

SCALE, GAMMA, W = 0.7, 1.5, 3.0
EVERY = range(2, 6)  # how many steps
PROMPTS = tuple(
    full_caption(Scene(CHARACTER, "white", place, sky))
    for place in PLACES
    for sky in SKIES
    if (place, sky) != (CONTEXT.place, CONTEXT.sky)
)


def autolora(**more: Any) -> AutoLoRA:
    return AutoLoRA(GAMMA, W, W, **more)


RULES: Mapping[str, Rule] = {
    "AutoLoRA": autolora(),
    **{f"its base every {k} steps": autolora(refresh_base=k) for k in EVERY},
    **{f"its base and e(∅) every {k} steps": autolora(refresh_base=k, refresh_uncond=k) for k in EVERY},
    "its base every 4, e(∅) every 2 steps": autolora(refresh_base=4, refresh_uncond=2),
    "in the first half": autolora(stop=0.5),
    "in the second half": autolora(start=0.5),
    "LoRA + CFG": CFG(W),
    **{f"its e(∅) every {k} steps": CFG(W, refresh_uncond=k) for k in EVERY[:2]},
    "LoRA": NoGuidance(),
}


class Drawn:
    """Pictures of every prompt and seed."""

    def __init__(self, seeds: int, steps: int, prompts: Sequence[str]) -> None:
        self.seeds, self.steps, self.prompts = range(seeds), steps, list(prompts)
        self.pipe = AutoLoRAPipeline.from_pretrained(dtype="float32", tuned_weights="kept", devices=jax.devices()[:1])
        self.pipe.load_lora("builtin:character", scale=SCALE)
        self.classifier = Classifier.load()

    def latents(self, rule: Rule) -> np.ndarray:
        """[n h w c]"""
        call: dict[str, Any] = {"guidance": rule, "num_inference_steps": self.steps, "batch_size": 8}
        drawn: np.ndarray = self.pipe(self.prompts, seeds=self.seeds, output_type="latent", **call).images
        return drawn

    def pixels(self, latents: np.ndarray) -> np.ndarray:
        """uint8 [n H W 3]"""
        parts = np.array_split(latents, -(-len(latents) // 16))
        return np.concatenate([self.pipe.decode(part) for part in parts])

    def seen(self, pixels: np.ndarray) -> tuple[float, float, float]:
        """(presence, share of pictures where all is right that the prompt says, diversity)."""
        judged, said = self.classifier(pixels), np.repeat(self.prompts, len(self.seeds))
        _, groups = np.unique(said, return_inverse=True)
        varied = diversity_statistic(judged.features, groups)(np.ones((1, len(pixels))))
        return float(judged.presence.mean()), float(agreement(judged, said.tolist()).all_right.mean()), float(varied[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", default="", help="rows with this in their name")
    parser.add_argument("--tiny", action="store_true", help="two prompts, three steps, two rows: to see that it works")
    args = parser.parse_args()
    drawn = Drawn(*(2, 3, PROMPTS[:2]) if args.tiny else (args.seeds, args.steps, PROMPTS))
    wanted = {name: rule for name, rule in RULES.items() if args.only in name or name == "AutoLoRA"}
    exact = drawn.latents(RULES["AutoLoRA"])
    exactly = drawn.pixels(exact)
    size = np.sqrt(np.mean(np.square(exact)))
    print(f"{len(exact)} pictures a row, {drawn.steps} steps, LoRA at {SCALE}, γ {GAMMA}, w {W}\n")
    print("| | evaluations a picture | latents off, rms | pixels off, levels | presence | all right | diversity |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, rule in [*wanted.items()][: 2 if args.tiny else None]:
        latents = drawn.latents(rule)
        pixels = drawn.pixels(latents)
        off = np.sqrt(np.mean(np.square(latents - exact))) / size, np.abs(pixels.astype(int) - exactly).mean()
        count = evaluations(plan(rule, 1, drawn.steps).segments)
        presence, right, varied = drawn.seen(pixels)
        told = f"{off[0]:.1%} | {off[1]:.2f} | {presence:.3f} | {right:.3f} | {varied:.4f}"
        print(f"| {name} | {count} | {told} |", flush=True)


if __name__ == "__main__":
    main()
