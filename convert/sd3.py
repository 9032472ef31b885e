"""Converts an SD3 or SD3.5 checkpoint to the Orbax form, which loads straight onto the devices of any mesh.

    python convert/sd3.py stabilityai/stable-diffusion-3-medium-diffusers models/sd3
    python convert/sd3.py sd3_medium_incl_clips_t5xxlfp16.safetensors models/sd3
    python convert/sd3.py sd3_medium_incl_clips.safetensors models/sd3 --text-encoders-from t5xxl_fp8_e4m3fn.safetensors
    python convert/sd3.py sd3.5_large.safetensors models/sd35-large --text-encoders-from text_encoders

SOURCE is a diffusers folder, a hub id, or a single .safetensors in the sd3-ref layout. What a single file leaves out
comes from --text-encoders-from; without that, CLIP's two encoders from the hub, and T5 stays out. OUT is a folder that
does not exist yet; it appears when everything is written. 8-bit floats are widened exactly, scaled ones are refused.
--help lists the options: it is `autolora convert`, on the CPU, so that no accelerator is taken.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import typer

from autolora_jax.cli.flags import command
from autolora_jax.settings.programs import Convert

if __name__ == "__main__":
    typer.run(command(Convert))
