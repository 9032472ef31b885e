"""Converts an SDXL checkpoint to the Orbax form, which loads straight onto the devices of any mesh.

    python convert/sdxl.py sd_xl_base_1.0.safetensors models/sdxl
    python convert/sdxl.py stabilityai/stable-diffusion-xl-base-1.0 models/sdxl --variant fp16
    python convert/sdxl.py some/diffusers/folder models/sdxl --dtype float32

SOURCE is a diffusers folder, a hub id, or a single .safetensors in the LDM/sgm layout (as civitai ships them). OUT is a
folder that does not exist yet; it appears when everything is written. Pickles (.ckpt, .pt, .bin) are never opened.
"""

import argparse
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # converting needs no accelerator

from rich.console import Console
from rich.progress import Progress

from autolora_jax.config import ConfigError
from autolora_jax.weights import WeightsError, convert_checkpoint
from autolora_jax.weights.conversion import DTYPES


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="diffusers folder, hub id or .safetensors file")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="bfloat16",
        help="of the stored weights (default %(default)s); a VAE that overflows in half precision stays float32",
    )
    parser.add_argument("--variant", help='file variant of a diffusers folder or hub repository, for example "fp16"')
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument("--cache-dir", help="where hub files are kept (default: the hub's own cache)")
    parser.add_argument(
        "--tokenizer",
        help="folder or hub id with tokenizer/ and tokenizer_2/; a single file holds none, so SDXL base's are fetched",
    )
    given = vars(parser.parse_args(arguments))
    try:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("open", total=None)
            out = convert_checkpoint(
                **given,
                on_progress=lambda done, total, what: bar.update(
                    task, completed=done, total=total, description=what or "done"
                ),
            )
    except (WeightsError, ConfigError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"{out} is ready", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
