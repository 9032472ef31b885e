"""γ to the right and the LoRA's scale down, from one noise: what either does, and what they have in common."""

import argparse

from autolora_jax import AutoLoRA, AutoLoRAPipeline
from autolora_jax.grid import comparison_grid

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="builtin")
parser.add_argument("--lora", default="builtin:character")
parser.add_argument("--prompt", default="a zib on the beach")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--gammas", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0])
parser.add_argument("--scales", type=float, nargs="+", default=[0.4, 0.7, 1.0])
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--out", default="gamma_by_scale.png")
args = parser.parse_args()

pipe = AutoLoRAPipeline.from_pretrained(args.model, dtype="float32" if args.model == "builtin" else "bfloat16")
pipe.load_lora(args.lora)
gammas, scales = zip(*[(gamma, scale) for gamma in args.gammas for scale in args.scales], strict=True)
out = pipe(
    [args.prompt] * len(gammas),
    seeds=[args.seed] * len(gammas),
    paired=True,
    guidance=AutoLoRA(gamma=gammas),  # one value for each picture
    lora_scale=scales,
    num_inference_steps=args.steps,
)
rows = len(args.scales)
columns = [(f"γ {gamma:g}", out.images[i * rows : (i + 1) * rows]) for i, gamma in enumerate(args.gammas)]
comparison_grid(columns, [f"scale {scale:g}" for scale in args.scales]).save(args.out)
print(f"{args.out}: {args.prompt}, seed {args.seed}")
