"""How varied the pictures of each guidance rule are: Eq. 8 of the paper, with a 95 % interval.

Features are the built-in model's classifier's; for other models --features dinov2-giant is the paper's.
"""

import argparse
import tempfile

import numpy as np

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline, NoGuidance
from autolora_jax.evaluation import bootstrap_interval, diversity_statistic
from autolora_jax.evaluation.encoders import open_encoder
from autolora_jax.evaluation.features import collect
from autolora_jax.evaluation.pictures import Pictures
from autolora_jax.sharding import data_mesh

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="builtin")
parser.add_argument("--lora", default="builtin:character")
parser.add_argument("--scale", type=float, default=0.5)
parser.add_argument("--prompt", default="a zib")
parser.add_argument("--pictures", type=int, default=32, help="of each rule")
parser.add_argument("--steps", type=int, default=16)
parser.add_argument("--features", default="builtin")
args = parser.parse_args()

pipe = AutoLoRAPipeline.from_pretrained(args.model, dtype="float32" if args.model == "builtin" else "bfloat16")
pipe.load_lora(args.lora, args.scale)
encoder = open_encoder(args.features, data_mesh())
for rule in (NoGuidance(), CFG(5.0), AutoLoRA(1.5, 1.0, 1.0), AutoLoRA(1.5, 5.0, 5.0)):
    with tempfile.TemporaryDirectory() as folder:
        pipe(args.prompt, seeds=range(args.pictures), guidance=rule, num_inference_steps=args.steps).save(folder)
        features = collect(Pictures(folder), [encoder]).features[args.features]
    one = np.zeros(len(features), int)  # all pictures are of one prompt
    found = bootstrap_interval(diversity_statistic(features, one), one)
    print(f"{rule}: diversity {found.value:.3f} ({found.low:.3f} to {found.high:.3f})")
