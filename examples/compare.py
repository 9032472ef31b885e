"""Base model, LoRA and AutoLoRA side by side: one call, in which each picture has its own rule and LoRA scale."""

import argparse

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline
from autolora_jax.grid import comparison_grid

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="builtin")
parser.add_argument("--lora", default="builtin:character")
parser.add_argument("--prompt", default="a zib in the forest at night")
parser.add_argument("--seeds", type=int, default=3, help="how many rows")
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--out", default="compare.png")
args = parser.parse_args()

pipe = AutoLoRAPipeline.from_pretrained(args.model, dtype="float32" if args.model == "builtin" else "bfloat16")
print(pipe.load_lora(args.lora))
ways = {"Base + CFG": (CFG(5.0), 0.0), "LoRA + CFG": (CFG(5.0), 1.0), "AutoLoRA": (AutoLoRA(1.5, 5.0, 5.0), 1.0)}
drawn = [(rule, scale, seed) for rule, scale in ways.values() for seed in range(args.seeds)]
rules, scales, seeds = zip(*drawn, strict=True)
out = pipe(
    [args.prompt] * len(drawn),
    seeds=seeds,
    paired=True,  # picture i is prompt i with seed i
    guidance=rules,
    lora_scale=scales,
    num_inference_steps=args.steps,
)
columns = [(name, out.images[i * args.seeds : (i + 1) * args.seeds]) for i, name in enumerate(ways)]
comparison_grid(columns, [f"seed {seed}" for seed in range(args.seeds)]).save(args.out)
print(f"{args.out}: {args.prompt}")
