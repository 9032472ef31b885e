"""SD3's prompts: two CLIP encoders side by side, T5's tokens behind them, both CLIPs' pooled vectors.

Source: diffusers pipeline_stable_diffusion_3.py encode_prompt, _get_t5_prompt_embeds.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from autolora_jax.text.stage import Join, Keywords, TextSettings, TextStage

CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"
MOST_TOKENS = 512  # of T5; SD3 was trained with at most so many


@dataclasses.dataclass(frozen=True)
class SD3Join:
    """{"encoder_hidden_states": [b, 77 + t, width], "pooled_projections": [b 2048]} of (hidden, pooled) by encoder.

    77 are of each chunk. CLIP's tokens, 768 + 1280 wide, are filled up with zeros. Without T5 its tokens are zeros.
    """

    width: int
    max_sequence_length: int

    def __call__(self, outputs: Mapping[str, tuple[Any, Any]]) -> Keywords:
        (hidden_1, pooled_1), (hidden_2, pooled_2) = (outputs[name] for name in CLIPS)
        xp = np if isinstance(hidden_1, np.ndarray) else jnp
        clip = xp.concatenate([hidden_1, hidden_2], axis=-1)
        clip = xp.pad(clip, ((0, 0), (0, 0), (0, self.width - clip.shape[-1])))
        zeros = xp.zeros((len(clip), self.max_sequence_length, self.width), clip.dtype)
        t5 = outputs[T5][0] if T5 in outputs else zeros
        return {
            "encoder_hidden_states": xp.concatenate([clip, t5.astype(clip.dtype)], axis=1),
            "pooled_projections": xp.concatenate([pooled_1, pooled_2], axis=-1),
        }


class SD3Text(TextStage):
    """See stage.TextStage. T5 is optional."""

    CLIPS_AS_ONE = True
    POOLED = "pooled_projections"

    def check(self, settings: TextSettings) -> None:
        super().check(settings)
        if not 1 <= settings.max_sequence_length <= MOST_TOKENS:
            raise ValueError(f"max_sequence_length={settings.max_sequence_length} should be 1 to {MOST_TOKENS} tokens")

    def join(self, max_sequence_length: int) -> Join:
        return SD3Join(self.joint_attention_dim, max_sequence_length)
