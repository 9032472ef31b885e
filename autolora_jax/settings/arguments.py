"""Settings as the arguments of a call: their names, types and help are those of a dataclass's fields."""

import dataclasses
import difflib
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from autolora_jax.config import ConfigError
from autolora_jax.settings.fields import settings_of

# Arguments and methods of diffusers' pipelines -> what does the same here.
HABITS: Mapping[str, str] = {
    "guidance_scale": "guidance=CFG(7.5), or AutoLoRA(gamma=1.5, w1=7.5, w2=7.5)",
    "generator": 'seeds=…, with noise="torch" for the noise of torch.Generator("cpu").manual_seed(seed)',
    "seed": "seeds=3, or several: seeds=range(4)",
    "num_images_per_prompt": "seeds=range(n), a picture each",
    "cross_attention_kwargs": "lora_scale=0.8",
    "joint_attention_kwargs": "lora_scale=0.8",
    "timesteps": "num_inference_steps= with scheduler= and timestep_spacing=",
    "sigmas": "num_inference_steps= with scheduler= and timestep_spacing=",
    "callback": "on_progress=, which is told of every step and can end the call by raising",
    "callback_steps": "left out: on_progress= is told of every step",
    "denoising_start": "strength=, a part of the steps",
    "masked_image_latents": "left out: image= and mask_image=, with ordinary checkpoints",
    "padding_mask_crop": "left out: crop image= and mask_image= yourself",
    "callback_on_step_end": "on_progress=, which is told of every step and can end the call by raising",
    "return_dict": "always an Output, with images and settings",
    "torch_dtype": 'dtype="bfloat16", "float16" or "float32"',
    "use_safetensors": "left out: nothing else is ever read",
    "safety_checker": "left out: there is none",
    "to": "from_pretrained(…, devices=jax.devices()); all devices are used by default",
    "load_lora_weights": "load_lora(file, scale=1.0, name=…)",
    "get_list_adapters": "pipe.loras, or get_active_adapters()",
    "fuse_lora": "load_lora(file, scale=…), which costs no more; `autolora merge` writes a merged checkpoint",
    "unload_lora_weights": "unload_lora()",
    "enable_model_cpu_offload": 'text_encoder_3="host" or weight_shards=n of from_pretrained, or a smaller batch_size',
    "enable_sequential_cpu_offload": 'text_encoder_3="host" or weight_shards=n of from_pretrained',
    "enable_attention_slicing": "left out: the fused attention of the device is used by itself",
    "enable_vae_slicing": "left out: pictures are decoded one at a time by themselves",
    "unet": "pipe.denoiser, which is compiled at the first call; pipe.warm_up() compiles it ahead",
    "transformer": "pipe.denoiser, which is compiled at the first call; pipe.warm_up() compiles it ahead",
    "enable_xformers_memory_efficient_attention": "left out: the fused attention of the device is used by itself",
    "enable_vae_tiling": "left out: large pictures are decoded in tiles by themselves",
    "scheduler_config": "scheduler= of a call",
}

P = ParamSpec("P")
S = TypeVar("S")
Owner = TypeVar("Owner")
R = TypeVar("R")


def taking(settings: Callable[P, S]) -> Callable[[Callable[[Owner, S], R]], Callable[Concatenate[Owner, P], R]]:
    """A method of one dataclass of settings, called with its fields: typed for checkers, explained for people.

    What is no field raises TypeError that names the nearest one.
    """

    def decorate(method: Callable[[Owner, S], R]) -> Callable[Concatenate[Owner, P], R]:
        kind: Any = settings
        known = inspect.signature(kind).parameters

        @functools.wraps(method)
        def call(owner: Owner, *args: P.args, **kwargs: P.kwargs) -> R:
            _check(kwargs, known, method.__name__)
            return method(owner, settings(*args, **kwargs))

        owner = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        returns = inspect.signature(method).return_annotation
        signature = inspect.Signature([owner, *known.values()], return_annotation=returns)
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = f"{inspect.cleandoc(method.__doc__ or '')}\n\n{explained(kind)}"
        return call

    return decorate


def only_known(method: Callable[P, R]) -> Callable[P, R]:
    """A method that refuses what is no argument of it as `taking` does."""
    known = inspect.signature(method).parameters

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        _check(kwargs, known, method.__name__)
        return method(*args, **kwargs)

    return call


def _check(given: Mapping[str, Any], known: Mapping[str, Any], method: str) -> None:
    for name in given.keys() - known.keys():
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        raise TypeError(f"{name} is no argument of {method}{advice(name) or hint}")

    if isinstance(number := given.get("guidance"), int | float):
        raise ConfigError(f"guidance = {number} should be a rule: CFG({number}), or AutoLoRA(w1={number}, w2={number})")


def advice(name: str) -> str:
    """What to write for a name that diffusers has: "; here it is …", "" for others."""
    return f"; here it is {HABITS[name]}" if name in HABITS else ""


def explained(kind: type) -> str:
    """What each of the settings does, as a docstring has it."""
    lines = []
    fields = {field.name: field for field in settings_of(kind)}
    for field in (fields[name] for name in inspect.signature(kind).parameters if name in fields):
        default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
        text = f"{field.name}{default}: {field.said.help}"
        lines += textwrap.wrap(text, 110, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)
