"""What the real TPU compiler makes of a step that trains a LoRA at full size: memory and FLOPs. No TPU is needed.

    python -m benchmarks.tpu_train_compile                            # SDXL, v5e, 4 chips, 1024², 1 image a chip
    python -m benchmarks.tpu_train_compile --model sd3-medium
    python -m benchmarks.tpu_train_compile --text-encoders            # both CLIPs learn, too
    python -m benchmarks.tpu_train_compile --distill --rank 48        # a student of autolora distill, 32 + 16
    python -m benchmarks.tpu_train_compile --size 512 --depth 2       # a shallow SDXL: minutes, not an hour

The library's own step with AdamW: a float32 delta of rank 16 on attention and feed-forward layers, bfloat16 weights,
blocks recomputed, splash attention, gradients averaged over the chips. `+ attention` is what the cost analysis does not
see, see tpu_compile. The same for a GPU: python -m benchmarks.gpu_compile --program training.
"""

import argparse
import sys

from benchmarks.programs import MODELS
from benchmarks.tpu_compile import HEADER, measure, topology_mesh
from benchmarks.training_program import lower_distilling, lower_training, training_attention, training_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2", help="v5e:2x2, v6e:2x2 …")
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    parser.add_argument("--batch", type=int, default=1, help="images a chip")
    parser.add_argument("--size", type=int, default=1024, help="picture side in pixels")
    parser.add_argument("--rank", type=int, default=16, help="rank of the delta")
    parser.add_argument("--depth", type=int, help="(SDXL) at most this many transformer blocks per attention layer")
    parser.add_argument("--text-encoders", action="store_true", help="both CLIP encoders learn, too")
    parser.add_argument("--distill", action="store_true", help="the step of autolora distill")
    parser.add_argument("--tiny", action="store_true", help="a tiny model's distillation: only to see that it works")
    args = parser.parse_args()
    if args.tiny:
        args.model, args.size = "tiny", 64
    denoiser = training_network(args.size, args.model, "splash", args.depth)
    mesh = topology_mesh(args.topology)
    lowered = {}
    if not (args.distill or args.tiny):
        training = lower_training(args.model, denoiser, mesh, args.batch, args.rank, args.text_encoders)
        lowered["LoRA training step"] = training
    if args.distill or args.tiny:
        lowered["distillation step"] = lower_distilling(args.model, denoiser, mesh, args.batch, args.rank)
    attention = training_attention(denoiser, args.batch)
    print(HEADER)
    for name, program in lowered.items():
        row = measure(name, args.topology, program, args.batch, attention)
        print(row, flush=True)
        print(f"compiled in {row.compile_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
