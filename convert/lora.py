"""Re-save a LoRA file in the dialect of another program, bit for bit.

    python convert/lora.py pixel-art-xl.safetensors pixel-art-xl.peft.safetensors --dialect peft

kohya:  names like lora_unet_input_blocks_4_1_proj_in.lora_down.weight, alpha as a tensor. Read by ComfyUI, A1111,
        Forge, sd-scripts and diffusers. Note: diffusers 0.42 applies one alpha to a whole attention layer, and loads
        nothing of such a file for SD3.
peft:   names like unet.down_blocks.1.attentions.0.proj_in.lora_A.weight, alpha in the header. Read by diffusers.

The tensors stay as they are (no rounding, no scaling), every layer keeps its rank and alpha, header entries are kept.
In kohya's files for SD3, q, k and v are one module; where they differ in alpha / rank, its scale is part of a tensor.
A file that could not be applied exactly is refused, with the reason. autolora-jax itself reads both dialects.
"""

import argparse
import sys
from pathlib import Path

from autolora_jax import lora
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.families import family_of
from autolora_jax.weights.lora.base_model import read_alone
from autolora_jax.weights.lora.export import DIALECTS, convert_lora


def main() -> int:
    """Runs the program; returns its exit status: 0 done, 1 refused, 2 wrong arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="a .safetensors file, a folder that holds one, or a hub id")
    parser.add_argument("out", metavar="OUT", type=Path, help="the .safetensors file to write; an existing one is kept")
    parser.add_argument("--dialect", choices=sorted(DIALECTS), required=True, help="what to write")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="base model, if of another size than the published SDXL, SD3 and SD3.5: folder, hub id or single file",
    )
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} exists; choose another name or remove it")
    if not args.out.parent.is_dir():
        parser.error(f"{args.out.parent} is no folder; create it first")
    try:
        networks, file = read_alone(args.source, args.model)
        convert_lora(args.out, file, args.dialect, networks[family_of(networks).denoiser])
    except (WeightsError, ValueError) as e:
        print(e, file=sys.stderr)
        return 1
    print(lora.report(file), f"  written as      {args.dialect}, {args.out}", sep="\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
