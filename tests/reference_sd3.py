"""PyTorch's SD3 and SD3.5, tiny and random, and whole guided runs of them, written out from the paper's equations."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.guiders import BaseGuidance
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

from autolora_jax import AutoLoRAPipeline
from autolora_jax.lora import at_scale
from tests.parity import channels_first, error, normal
from tests.reference import TEXT, VAE, randomize, save_tokenizer
from tests.reference_picture import Begun, Picture
from tests.reference_run import at_step, combine, encoded, noise

WIDTH = 96  # of the prompt's tokens: more than the CLIPs' 32 + 48, as in SD3
TRANSFORMER = dict(
    sample_size=16,
    patch_size=2,
    in_channels=16,
    out_channels=16,
    num_layers=3,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=WIDTH,
    caption_projection_dim=32,
    pooled_projection_dim=32 + 48,
    pos_embed_max_size=12,
)
KINDS: Mapping[str, Mapping[str, Any]] = {
    "sd3": {},
    "sd3.5": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
}
SCHEDULERS = {
    "flow_euler": (FlowMatchEulerDiscreteScheduler, {}),
    "flow_dpmpp_2m": (
        DPMSolverMultistepScheduler,
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    ),
}


def t5_tokenizer(folder: Path) -> T5TokenizerFast:
    """A T5 tokenizer of letters and a few words, written to `folder`."""
    words = ["▁cat", "▁the", "▁dog", "▁a", "at"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *((word, -1.0) for word in words), ("▁", -3.0)]
    vocabulary += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz,."]
    tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0)
    tokenizer.save_pretrained(folder)
    return T5TokenizerFast.from_pretrained(folder)


def tiny_sd3(workdir: Path, kind: str = "sd3", seed: int = 0) -> StableDiffusion3Pipeline:
    """A tiny random SD3 or SD3.5, float32; the tokenizers are written under workdir."""
    tok1 = save_tokenizer(workdir / "tokenizer", "<|endoftext|>")
    tok2 = save_tokenizer(workdir / "tokenizer_2", "!")
    tok3 = t5_tokenizer(workdir / "tokenizer_3")
    sizes = (
        dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, hidden_act="quick_gelu", projection_dim=32),
        dict(hidden_size=48, intermediate_size=96, num_hidden_layers=4, hidden_act="gelu", projection_dim=48),
    )
    one, two = (CLIPTextConfig(vocab_size=len(tok1), num_attention_heads=4, **size, **TEXT) for size in sizes)
    t5 = T5Config(
        vocab_size=len(tok3),
        d_model=WIDTH,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
    )
    vae = {**VAE, "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609}
    return StableDiffusion3Pipeline(
        transformer=randomize(SD3Transformer2DModel(**{**TRANSFORMER, **KINDS[kind]}), seed),
        vae=randomize(AutoencoderKL(**vae, use_quant_conv=False, use_post_quant_conv=False), seed + 1),
        text_encoder=randomize(CLIPTextModelWithProjection(one), seed + 2),
        text_encoder_2=randomize(CLIPTextModelWithProjection(two), seed + 3),
        text_encoder_3=randomize(T5EncoderModel(t5), seed + 4, std=0.5),
        tokenizer=tok1,
        tokenizer_2=tok2,
        tokenizer_3=tok3,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


@torch.no_grad()
def run(
    base: StableDiffusion3Pipeline,
    tuned: StableDiffusion3Pipeline,
    rule: Any,
    *,
    scheduler: str,
    steps: int,
    seeds: Sequence[int],
    height: int,
    width: int,
    picture: Picture | None = None,
    guider: BaseGuidance | None = None,
    **prompts: Any,
) -> np.ndarray:
    """Final latents [seeds h w c]; noise from torch's CPU generator. prompts: encode_prompt's arguments.

    guider: diffusers', of the tuned model with the prompt and without it, in place of the rule.
    """
    pipes, n = {"base": base, "lora": tuned}, len(seeds)
    texts = {"prompt_2": None, "prompt_3": None, **prompts}
    told = {kind: encoded(pipe, n, **texts) for kind, pipe in pipes.items()}
    cls, overrides = SCHEDULERS[scheduler]
    config = {} if overrides else dict(base.scheduler.config)
    solver = cls.from_config({**config, **overrides})
    solver.set_timesteps(steps)
    x, _ = noise(seeds, 16, height, width)
    begun = None if picture is None else Begun(base.vae, solver, picture, seeds, height, width)
    x, timesteps = (x, solver.timesteps) if begun is None else (begun.x, begun.timesteps)
    for i, t in enumerate(timesteps):

        @cache
        def predicted(kind: str, x=x, t=t) -> torch.Tensor:
            return pipes[kind].transformer(torch.cat([x] * 2), *told[kind], t.expand(2 * n), return_dict=False)[0]

        def e(kind: str, which: int, predicted=predicted) -> torch.Tensor:
            return predicted(kind).chunk(2)[which]

        if guider is None:
            guided = combine(at_step(rule, i, len(timesteps))[0], e)
        else:
            guider.set_state(step=i, num_inference_steps=len(timesteps), timestep=t)
            guided = guider.forward(e("lora", 1), e("lora", 0)).pred
        x = solver.step(guided, t, x).prev_sample
        x = x if begun is None else begun.kept(i, x)
    return x.permute(0, 2, 3, 1).numpy()


def with_lora(pipe: AutoLoRAPipeline, folder: Path, file: Path) -> tuple[float, float]:
    """Errors of a prediction by `pipe`, whose only LoRA is `file`: from its base's, from diffusers' with the file."""
    text = "a zib, the dog"
    told = pipe.conditioning(text, "")["lora"]
    positive = {name: jnp.asarray(value[:, 1]) for name, value in told.items()}
    sample, t = jnp.asarray(normal(1, 1, 8, 8, 16)), jnp.float32([321])
    params, delta = pipe.params["transformer"], pipe._delta["transformer"]
    ours, base = (
        jax.jit(pipe.denoiser.apply)({"params": params, "lora": at_scale(delta, scale)}, sample, t, **positive)
        for scale in np.float32([[1], [0]])
    )
    theirs = StableDiffusion3Pipeline.from_pretrained(folder)
    theirs.load_lora_weights(file.parent, weight_name=file.name)
    with torch.no_grad():
        hidden, _, pooled, _ = theirs.encode_prompt(text, None, None, do_classifier_free_guidance=False)
        prediction = theirs.transformer(channels_first(np.asarray(sample)), hidden, pooled, torch.tensor([321.0]))[0]
    return error(ours, base), error(ours, prediction)
