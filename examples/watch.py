"""Pictures saved as soon as their batch is drawn, while progress is told: what a server or a long run wants."""

import argparse
from pathlib import Path

from autolora_jax import AutoLoRA, AutoLoRAPipeline, Output, Progress

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="builtin")
parser.add_argument("--lora", default="builtin:character")
parser.add_argument("--prompt", default="a zib on the beach")
parser.add_argument("--pictures", type=int, default=8)
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--out", type=Path, default=Path("watched"))
args = parser.parse_args()


def told(progress: Progress) -> None:
    """Steps are told of as the devices finish them. What this raises ends the call, as Ctrl-C does."""
    print(f"{progress.stage} {progress.done} of {progress.total}")


def saved(batch: Output) -> None:
    """What is saved here is safe if a later batch fails; the devices draw on meanwhile."""
    for path in batch.save(args.out):
        print(f"{path}")


pipe = AutoLoRAPipeline.from_pretrained(args.model, dtype="float32" if args.model == "builtin" else "bfloat16")
pipe.load_lora(args.lora)
pipe(
    args.prompt,
    seeds=range(args.pictures),
    guidance=AutoLoRA(gamma=1.5),
    num_inference_steps=args.steps,
    batch_size=2,
    on_progress=told,
    on_images=saved,
)
