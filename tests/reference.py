"""The PyTorch reference, tiny and random: what every parity test compares with."""

import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from recipes.builtin.tokenizer import write_tokenizer

# SDXL in everything but size: three levels (the first without attention) of different depth, heads given as numbers of
# heads, linear projections, text_time conditioning, two text encoders with different activations, VAE factor 8. As few
# layers as that allows: compiling is what the tests wait for.
UNET = dict(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    block_out_channels=(32, 64, 128),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    transformer_layers_per_block=(1, 1, 2),
    attention_head_dim=(2, 4, 8),
    cross_attention_dim=32 + 48,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=48 + 6 * 8,
    norm_num_groups=16,
)
VAE = dict(
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    block_out_channels=(32, 32, 64, 64),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=1,
    norm_num_groups=16,
    sample_size=128,
    scaling_factor=0.13025,
)
SCHEDULER = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    timestep_spacing="leading",
    steps_offset=1,
    interpolation_type="linear",
    prediction_type="epsilon",
)
# In the published file too: Euler keeps them for DDIM.
FOR_OTHER_SOLVERS = dict(clip_sample=False, set_alpha_to_one=False)
TEXT = dict(max_position_embeddings=77, eos_token_id=2, bos_token_id=0, pad_token_id=1)


def save_tokenizer(folder: Path, pad_token: str) -> CLIPTokenizer:
    """A CLIP tokenizer whose words are single letters plus a few merges, written to `folder`."""
    merges = (("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("t", "h"), ("th", "e</w>"))
    write_tokenizer(folder, pad_token, merges)
    return CLIPTokenizer.from_pretrained(folder)


def randomize(module: torch.nn.Module, seed: int, std: float = 1.0) -> torch.nn.Module:
    """Weights a trained model could have: unit-gain matrices, norms and biases away from their neutral values."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if p.ndim == 1:
                p.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
            elif "embedding" in name and "time" not in name and "add_" not in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(std * noise / p[0].numel() ** 0.5)
    return module.eval()


def trained_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor that a trained model could have, always the same for a name.

    A test that makes its weights twice, for torch and for us, never has two full-size models in memory.
    """
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.endswith(("pos_embed", "relative_attention_bias.weight")):  # tables
        return noise
    if len(shape) == 1:
        return 0.1 * noise + ("norm" in name and name.endswith("weight"))
    noise /= np.float32(np.prod(shape[1:])) ** 0.5
    return noise / 8 if "SelfAttention.q" in name else noise  # T5 trains √d_kv into its queries


def tiny_sdxl(workdir: Path, seed: int = 0) -> StableDiffusionXLPipeline:
    """A tiny random SDXL pipeline, float32; the tokenizers are written under workdir."""
    tok1 = save_tokenizer(workdir / "tokenizer", "<|endoftext|>")
    tok2 = save_tokenizer(workdir / "tokenizer_2", "!")
    one = CLIPTextConfig(
        vocab_size=len(tok1),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act="quick_gelu",
        projection_dim=32,
        **TEXT,
    )
    two = CLIPTextConfig(
        vocab_size=len(tok2),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_act="gelu",
        projection_dim=48,
        **TEXT,
    )
    return StableDiffusionXLPipeline(
        unet=randomize(UNet2DConditionModel(**UNET), seed),
        vae=randomize(AutoencoderKL(**VAE), seed + 1),
        text_encoder=randomize(CLIPTextModel(one), seed + 2),
        text_encoder_2=randomize(CLIPTextModelWithProjection(two), seed + 3),
        tokenizer=tok1,
        tokenizer_2=tok2,
        scheduler=EulerDiscreteScheduler.from_config({**SCHEDULER, **FOR_OTHER_SOLVERS}),
        add_watermarker=False,
    )
