"""A LoRA in training by torch, PEFT and diffusers: what one step means to them, and their names for what learns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from diffusers.training_utils import compute_snr
from peft import LoraConfig, inject_adapter_in_model
from safetensors.numpy import load_file

from autolora_jax.lora import save_lora
from autolora_jax.training.deltas import stored_delta
from autolora_jax.training.objective import Noised
from autolora_jax.weights.lora.names import Layer
from autolora_jax.weights.tables import torch_module
from tests.lora_reference import canonical
from tests.parity import channels_first
from tests.reference import SCHEDULER

ATTENTION = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "text_encoder_2": ["q_proj", "k_proj", "v_proj", "out_proj"],
}
Parameters = Mapping[str, torch.nn.Parameter]  # name in a PEFT file -> A [r, in] or B [out, r]


def adapt(pipe: StableDiffusionXLPipeline, components: Sequence[str], rank: int, alpha: float) -> Parameters:
    """Puts PEFT's layers on the attention of these components, neither half of them zero; only they learn.

    Deltas as large as the kernels would saturate the softmax: torch's own float32 gradients are then 2e-3 off its
    float64 ones, and 6e-6 with these.
    """
    g = torch.Generator().manual_seed(0)
    found = {}
    for component in components:
        module = getattr(pipe, component)
        module.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=ATTENTION[component]), module)
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                with torch.no_grad():
                    size = (0.3 if "lora_B" in name else 1.0) / parameter.shape[1] ** 0.5
                    parameter.copy_(size * torch.randn(parameter.shape, generator=g))
                parameter.requires_grad_(True)
                found[f"{component}.{canonical(component, name.replace('.default', ''))}"] = parameter
    return found


def delta_of(parameters: Parameters, chosen: Sequence[Layer]) -> dict[str, Any]:
    """The same values as our trainable tree, copied."""
    trees: dict[str, Any] = {}
    for layer in chosen:
        module = f"{layer.component}.{torch_module(layer.path)}"
        node = trees.setdefault(layer.component, {})
        for name in layer.path.split("/"):
            node = node.setdefault(name, {})
        for half, theirs in (("down", "lora_A"), ("up", "lora_B")):
            node[half] = parameters[f"{module}.{theirs}.weight"].detach().numpy().T.copy()
    return trees


def by_name(tree: Mapping[str, Any], scratch: Path) -> dict[str, np.ndarray]:
    """Our tree (of values, of gradients) under PEFT's names, by way of an exported file."""
    save_lora(scratch / "tree.safetensors", stored_delta(tree, 1.0), "peft")
    return load_file(scratch / "tree.safetensors")


def mean_loss(
    pipe: StableDiffusionXLPipeline,
    prediction_type: str,
    gamma: float,
    noised: Noised,
    prompt: Mapping[str, Any],
    time_ids: np.ndarray,
) -> torch.Tensor:
    """The loss of one batch with min-SNR weights. prompt: the denoiser's arrays, or ids for both encoders."""
    scheduler = DDPMScheduler.from_config({**SCHEDULER, "prediction_type": prediction_type})
    clean, noise = channels_first(np.asarray(noised.clean)), channels_first(np.asarray(noised.noise))
    t = torch.from_numpy(np.array(noised.timesteps)).long()
    told = {name: torch.from_numpy(np.array(value)) for name, value in prompt.items()}
    if "text_encoder" in told:
        outputs = [getattr(pipe, name)(ids.long(), output_hidden_states=True) for name, ids in told.items()]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = outputs[1].text_embeds
    else:
        hidden, pooled = told["encoder_hidden_states"], told["text_embeds"]
    sizes = {"text_embeds": pooled, "time_ids": torch.from_numpy(np.array(time_ids))}
    prediction = pipe.unet(scheduler.add_noise(clean, noise, t), t, hidden, added_cond_kwargs=sizes).sample
    snr = compute_snr(scheduler, t)
    if prediction_type == "epsilon":
        target, divisor = noise, snr
    else:
        target, divisor = scheduler.get_velocity(clean, noise, t), snr + 1
    squares = torch.square(prediction - target).mean(dim=(1, 2, 3))
    return (squares * snr.clamp(max=gamma) / divisor).mean()
