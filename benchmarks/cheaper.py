"""What cheaper guidance costs the built-in model's pictures: how far they are from exact AutoLoRA's of the same noise,
and what the classifier sees in them.

    python -m benchmarks.cheaper

Every picture is of the character, which the LoRA knows at one place under one sky, somewhere else.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline, NoGuidance
from autolora_jax.demo.classifier import Classifier, agreement
from autolora_jax.evaluation.diversity import diversity_statistic
from autolora_jax.experiments.parts import CONTEXTS
from autolora_jax.guidance import evaluations, plan
from autolora_jax.settings.rules import Rule

SCALE, GAMMA, W = 0.7, 1.5, 3.0
REFRESHED = ((2, 1), (3, 1), (4, 1), (2, 2), (3, 3), (4, 2))  # every how many steps: the base model, e(∅)


def autolora(**more: Any) -> AutoLoRA:
    return AutoLoRA(GAMMA, W, W, **more)


RULES: Mapping[str, Rule] = {
    "AutoLoRA": autolora(),
    "LoRA + CFG": CFG(W),
    **{
        f"AutoLoRA, base every {base}" + f", e(∅) every {uncond}" * (uncond > 1): autolora(
            refresh_base=base, refresh_uncond=uncond
        )
        for base, uncond in REFRESHED
    },
    "LoRA": NoGuidance(),
    "LoRA + CFG, e(∅) every 2": CFG(W, refresh_uncond=2),
    "AutoLoRA, η 0": autolora(apg_eta=0.0),
    "LoRA + CFG, η 0": CFG(W, apg_eta=0.0),
    "LoRA + CFG, CFG-Zero*": CFG(W, zero_star=1.0),
    "AutoLoRA, first half": autolora(stop=0.5),
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
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", default="", help="rows that match this expression, beside the first")
    parser.add_argument(
        "--tiny", action="store_true", help="two prompts, three steps, three rows: to see that it works"
    )
    args = parser.parse_args()
    drawn = Drawn(*(2, 3, CONTEXTS[:2]) if args.tiny else (args.seeds, args.steps, CONTEXTS))
    wanted = {name: rule for name, rule in RULES.items() if re.search(args.only, name) or name == "AutoLoRA"}
    exact = drawn.latents(RULES["AutoLoRA"])
    exactly = drawn.pixels(exact)
    size = np.sqrt(np.mean(np.square(exact)))
    print(f"{len(exact)} pictures a row, {drawn.steps} steps, LoRA at {SCALE}, γ {GAMMA}, w {W}\n")
    print("| | evaluations a picture | latents off, rms | pixels off, levels | presence | all right | diversity |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, rule in [*wanted.items()][: 3 if args.tiny else None]:
        latents = exact if rule == RULES["AutoLoRA"] else drawn.latents(rule)
        pixels = drawn.pixels(latents)
        off = np.sqrt(np.mean(np.square(latents - exact))) / size, np.abs(pixels.astype(int) - exactly).mean()
        count = evaluations(plan(rule, 1, drawn.steps).segments)
        presence, right, varied = drawn.seen(pixels)
        told = f"{off[0]:.1%} | {off[1]:.2f} | {presence:.3f} | {right:.3f} | {varied:.4f}"
        print(f"| {name} | {count} | {told} |", flush=True)


if __name__ == "__main__":
    main()
