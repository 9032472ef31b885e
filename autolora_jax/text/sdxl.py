"""SDXL's prompts: two CLIP encoders side by side, the second's pooled vector, size ids.

Source: diffusers pipeline_stable_diffusion_xl.py encode_prompt, _get_add_time_ids.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from autolora_jax.text.stage import Join, Keywords, TextSettings, TextStage

ENCODERS = ("text_encoder", "text_encoder_2")


def join(outputs: Mapping[str, tuple[Any, Any]]) -> Keywords:
    """{"encoder_hidden_states": [b t 2048], "text_embeds": [b 1280]} of (hidden [b t d], pooled [b p]) by encoder."""
    first, second = (outputs[name] for name in ENCODERS)
    xp = np if isinstance(first[0], np.ndarray) else jnp
    return {"encoder_hidden_states": xp.concatenate([first[0], second[0]], axis=-1), "text_embeds": second[1]}


class SDXLText(TextStage):
    """See stage.TextStage."""

    POOLED = "text_embeds"

    def of_sizes(self, settings: TextSettings) -> Keywords:
        return {"time_ids": np.stack([sizes.time_ids() for sizes in settings.sizes])}  # [2 6]

    def join(self, max_sequence_length: int) -> Join:
        return join
