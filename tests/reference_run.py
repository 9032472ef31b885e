"""Whole guided runs in PyTorch, written out from the paper's equations around diffusers' networks and schedulers."""

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLPipeline,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

from autolora_jax import CFG, AutoGuidance, AutoLoRA, NoGuidance, PersonalizationGuidance
from tests.lora_reference import COMPONENTS, RandomLora, adaptable
from tests.reference_picture import Begun, Picture

SCHEDULERS = {
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {}),
    "tcd": (TCDScheduler, {}),
}

Predict = Callable[[str, int], torch.Tensor]  # (kind of weights, prompt: 0 negative, 1 positive) -> prediction


@lru_cache(maxsize=4)
def tuned(pipe: StableDiffusionXLPipeline, lora: RandomLora, scale: float) -> StableDiffusionXLPipeline:
    """A copy of the pipeline with W + scale·ΔW."""
    copies = StableDiffusionXLPipeline(
        **{**pipe.components, **{name: copy.deepcopy(getattr(pipe, name)) for name in COMPONENTS}}
    )
    for component in COMPONENTS:
        layers = adaptable(copies, component, ("",))
        with torch.no_grad():
            for (owner, name), change in lora.changes.items():
                if owner == component:
                    weight = layers[name].weight
                    weight.copy_((weight.double() + scale * change.delta).to(weight.dtype))
    return copies


def combine(rule, e: Predict) -> torch.Tensor:
    """ê by the equations of arXiv 2410.03941, not by the branch table."""

    def cfg(kind: str, w: float) -> torch.Tensor:
        return e(kind, 0) + w * (e(kind, 1) - e(kind, 0))

    match rule:
        case NoGuidance():
            return e("lora", 1)
        case CFG(w=w):
            return cfg("lora", w)
        case AutoLoRA(gamma=gamma, w1=w1, w2=w2):
            return cfg("base", w1) + gamma * (cfg("lora", w2) - cfg("base", w1))
        case AutoGuidance(w=w):
            return e("base", 1) + w * (e("lora", 1) - e("base", 1))
        case PersonalizationGuidance(w=w):
            return e("weak", 0) + w * (e("lora", 1) - e("weak", 0))
    raise AssertionError(rule)


def refreshed(rule, e: Predict, since: int, kept: dict[str, torch.Tensor]) -> torch.Tensor:
    """ê where the base model, or what is without the prompt, is asked every few steps alone, and kept meanwhile.

    since: steps since the rule took hold. kept: what was, which is changed.
    """
    every = {name: getattr(rule, name, None) for name in ("refresh_base", "refresh_uncond")}
    if not {*every.values()} - {None, 1}:
        return combine(rule, e)
    due = {name: steps is not None and since % steps == 0 for name, steps in every.items()}
    alone, between = e("lora", 1), e("lora", 1)
    if isinstance(rule, AutoLoRA):
        if any(due.values()):
            kept["uncond"] = combine(CFG(rule.w2), e) - alone
        between = alone + kept["uncond"]
    if due["refresh_base"] or (due["refresh_uncond"] and not isinstance(rule, AutoLoRA)):
        kept["share"] = combine(rule, e) - between
    return between + kept["share"]


def encoded(pipe, images: int, **prompts: object) -> list[torch.Tensor]:
    """[states, pooled] of the negative prompt, once an image, then of the positive one. prompts: encode_prompt's."""
    positive, negative, pooled, negative_pooled = pipe.encode_prompt(do_classifier_free_guidance=True, **prompts)
    pairs = (negative, positive), (negative_pooled, pooled)
    return [torch.cat(pair).repeat_interleave(images, 0) for pair in pairs]


def noise(seeds: Sequence[int], channels: int, height: int, width: int) -> tuple[torch.Tensor, list[torch.Generator]]:
    """The seeds' initial noise, by torch's CPU generators, which are returned as they then stand."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    shape = (1, channels, height // 8, width // 8)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators]), generators


def at_step(rule, i: int, steps: int):
    """(the rule that holds at step i, for how many steps it has)."""
    first, last = int(rule.start * steps), int(rule.stop * steps)
    return (rule, i - first) if first <= i < last else (rule.outside(), i if i < first else i - last)


@torch.no_grad()
def run(
    pipe: StableDiffusionXLPipeline,
    lora: RandomLora,
    rule,
    *,
    scheduler: str,
    steps: int,
    seeds: Sequence[int],
    prompt: str,
    negative_prompt: str | None,
    height: int,
    width: int,
    scale: float = 1.0,
    rescale: float = 0.0,
    picture: Picture | None = None,
    guider: Callable[..., torch.Tensor] | None = None,
) -> np.ndarray:
    """Final latents [seeds h w c]; noise from torch's CPU generator.

    guider: (the tuned model's prediction with the prompt, without it, latents, sigma) -> ê, in place of the rule's.
    """
    kinds = {"base": 0.0, "lora": scale, "weak": getattr(rule, "omega", 0.0) * scale}
    pipes = {kind: tuned(pipe, lora, s) for kind, s in kinds.items()}
    n = len(seeds)
    told = {kind: encoded(p, n, prompt=prompt, negative_prompt=negative_prompt) for kind, p in pipes.items()}
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).expand(2 * n, -1)
    cls, overrides = SCHEDULERS[scheduler]
    solver = cls.from_config(pipe.scheduler.config, **overrides)
    solver.set_timesteps(steps)
    x, generators = noise(seeds, 4, height, width)
    x, timesteps, begun = x * solver.init_noise_sigma, solver.timesteps, None
    if picture is not None:
        begun = Begun(pipe.vae, solver, picture, seeds, height, width)
        x, timesteps, generators = begun.x, begun.timesteps, begun.generators
    kept: dict[str, torch.Tensor] = {}
    for i, t in enumerate(timesteps):
        scaled = solver.scale_model_input(x, t)

        @cache  # both prompts of all images in one call: what takes torch's time here is the number of calls
        def predicted(kind: str, scaled=scaled, t=t) -> torch.Tensor:
            hidden, pooled = told[kind]
            added = {"text_embeds": pooled, "time_ids": time_ids}
            return pipes[kind].unet(torch.cat([scaled] * 2), t, hidden, added_cond_kwargs=added).sample

        def e(kind: str, which: int, predicted=predicted) -> torch.Tensor:
            return predicted(kind).chunk(2)[which]

        holds, since = at_step(rule, i, len(timesteps))
        guided = refreshed(holds, e, since, kept)
        if guider is not None:
            guided = guider(e("lora", 1), e("lora", 0), x, solver.sigmas[i])
        if rescale:
            guided = rescale_noise_cfg(guided, e("lora", 1), guidance_rescale=rescale)
        noisy = {"generator": generators} if "generator" in inspect.signature(solver.step).parameters else {}
        x = solver.step(guided, t, x, **noisy).prev_sample
        x = x if begun is None else begun.kept(i, x)
    return x.permute(0, 2, 3, 1).numpy()
