"""Converts an SDXL checkpoint to the Orbax form, which loads straight onto the devices of any mesh.

    python convert/sdxl.py sd_xl_base_1.0.safetensors models/sdxl
    python convert/sdxl.py stabilityai/stable-diffusion-xl-base-1.0 models/sdxl --variant fp16
    python convert/sdxl.py some/diffusers/folder models/sdxl --dtype float32

SOURCE is a diffusers folder, a hub id, or a single .safetensors in the LDM/sgm layout (as civitai ships them). OUT is a
folder that does not exist yet; it appears when everything is written. Pickles (.ckpt, .pt, .bin) are never opened.
--help lists the options: it is `autolora convert`, on the CPU, so that no accelerator is taken.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import typer

from autolora_jax.cli.flags import command
from autolora_jax.settings.programs import Convert

if __name__ == "__main__":
    typer.run(command(Convert))
