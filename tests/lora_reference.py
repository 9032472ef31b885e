"""Random LoRA files for the tiny pipeline, in every dialect. Their meaning: W + scale · (alpha / rank) · up @ down.

The files have mixed ranks, and an alpha that differs from module to module unless a test asks for one alpha. Their
weights are large: at scale 1 a LoRA changes a kernel by about half its own size.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from autolora_jax.config import CLIPTextConfig, UNetConfig, VAEConfig
from autolora_jax.models.networks import Networks
from autolora_jax.weights.ldm import ldm_module_name
from autolora_jax.weights.lora.files import targets_of
from autolora_jax.weights.lora.names import Targets
from tests.reference import UNET

Tensors = dict[str, np.ndarray]

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
KOHYA_PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
ATTENTION_AND_FEED_FORWARD = ("attentions.", "self_attn.", "mlp.")
CONVOLUTIONS = ("resnets.", "downsamplers.", "upsamplers.")


@dataclasses.dataclass(frozen=True)
class Change:
    """One module's change. down: [r, in] or [r, in, kh, kw]; up: [out, r] or [out, r, 1, 1]."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def delta(self) -> torch.Tensor:
        """ΔW at scale 1, in the weight's shape."""
        product = self.up.flatten(1).double() @ self.down.flatten(1).double()
        return (self.alpha / self.down.shape[0] * product).reshape(self.up.shape[0], *self.down.shape[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class RandomLora:
    """A LoRA: (component, canonical module name) -> change."""

    changes: dict[tuple[str, str], Change]

    def save(self, path: Path, dialect: str, metadata: dict[str, str] | None = None) -> Path:
        """Writes the file; dialect is a key of DIALECTS."""
        names, endings, has_alpha = DIALECTS[dialect]
        tensors = {}
        for (component, module), change in self.changes.items():
            name = names(component, module)
            down, up = endings[min(COMPONENTS.index(component), len(endings) - 1)]
            tensors[f"{name}.{down}"] = change.down.contiguous()
            tensors[f"{name}.{up}"] = change.up.contiguous()
            if has_alpha:
                tensors[f"{name}.alpha"] = torch.tensor(change.alpha)
        save_file(tensors, path, metadata=metadata)
        return path

    def peft_metadata(self) -> dict[str, str]:
        """The header with which diffusers says ranks and alphas, every module by its full name."""
        raw: dict[str, object] = {}
        for component in sorted({component for component, _ in self.changes}):
            ranks = {m: x.down.shape[0] for (c, m), x in self.changes.items() if c == component}
            alphas = {m: x.alpha for (c, m), x in self.changes.items() if c == component}
            raw |= {
                f"{component}.r": 1,
                f"{component}.lora_alpha": 1.0,
                f"{component}.rank_pattern": ranks,
                f"{component}.alpha_pattern": alphas,
                f"{component}.target_modules": list(ranks),
                f"{component}.use_rslora": False,
            }
        return {"lora_adapter_metadata": json.dumps(raw)}


def _kohya_sgm(component: str, module: str) -> str:
    name = ldm_module_name(module, UNetConfig.from_dict(UNET)) if component == "unet" else module
    return KOHYA_PREFIX[component] + name.replace(".", "_")


def _kohya_diffusers(component: str, module: str) -> str:
    return KOHYA_PREFIX[component] + module.replace(".", "_")


def _dotted(component: str, module: str) -> str:
    return f"{component}.{module}"


_KOHYA_ENDINGS = [("lora_down.weight", "lora_up.weight")]
_DIFFUSERS_ENDINGS = [  # of the UNet, of text encoders
    ("lora.down.weight", "lora.up.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
]
# dialect -> (module's name in the file, endings of down and up, alpha as a tensor)
DIALECTS = {
    "kohya_sgm": (_kohya_sgm, _KOHYA_ENDINGS, True),
    "kohya_diffusers": (_kohya_diffusers, _KOHYA_ENDINGS, True),
    "peft": (_dotted, [("lora_A.weight", "lora_B.weight")], False),
    "diffusers": (_dotted, _DIFFUSERS_ENDINGS, False),
}


def canonical(component: str, module: str) -> str:
    """Published name of a torch module: transformers >= 5.6 has dropped CLIPTextModel's `text_model.`."""
    return f"text_model.{module}" if component == "text_encoder" and not module.startswith("text_model.") else module


def adaptable(pipe: StableDiffusionXLPipeline, component: str, kinds: Sequence[str]) -> dict[str, torch.nn.Module]:
    """Canonical name -> module, of the Linear and Conv2d layers of a component that belong to `kinds`."""
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    modules = (
        (canonical(component, n), m) for n, m in getattr(pipe, component).named_modules() if isinstance(m, layers)
    )
    return {name: module for name, module in modules if any(kind in name for kind in kinds)}


def random_lora(
    pipe: StableDiffusionXLPipeline,
    seed: int = 0,
    *,
    ranks: Sequence[int] = (2, 4, 3),
    alphas: Sequence[float] | None = (1.0, 4.0, 2.5, 8.0),
    components: Sequence[str] = COMPONENTS,
    convolutions: bool = False,
    strength: float = 0.5,
) -> RandomLora:
    """A LoRA for the pipeline. Module i has rank ranks[i % len] and alpha alphas[i % len]; alphas=None: alpha = rank.

    convolutions: LoCon: also the resnets, down- and upsamplers.
    strength: size of a change at scale 1 relative to a unit-gain kernel.
    """
    g = torch.Generator().manual_seed(seed)
    kinds = (*ATTENTION_AND_FEED_FORWARD, *(CONVOLUTIONS if convolutions else ()))
    found = {(c, name): m for c in components for name, m in adaptable(pipe, c, kinds).items()}
    changes = {}
    for i, (key, module) in enumerate(found.items()):
        outputs, *rest = module.weight.shape
        r = ranks[i % len(ranks)]
        alpha = float(alphas[i % len(alphas)]) if alphas else float(r)
        size = strength * r / alpha / r**0.5
        down = torch.randn(r, *rest, generator=g) / module.weight[0].numel() ** 0.5
        up = torch.randn(outputs, r, *(1 for _ in rest[1:]), generator=g) * size
        changes[key] = Change(down, up, alpha)
    return RandomLora(changes)


@contextlib.contextmanager
def merged(pipe: StableDiffusionXLPipeline, *loras: tuple[RandomLora, float]) -> Iterator[StableDiffusionXLPipeline]:
    """The pipeline with LoRAs at their scales merged into its weights, by definition; restored on leaving."""
    kept = {}
    try:
        for lora, scale in loras:
            layers = {c: adaptable(pipe, c, ("",)) for c in COMPONENTS}
            for (component, name), change in lora.changes.items():
                weight = layers[component][name].weight
                kept.setdefault(id(weight), (weight, weight.detach().clone()))
                with torch.no_grad():
                    weight.copy_((weight.double() + scale * change.delta).to(weight.dtype))
        yield pipe
    finally:
        with torch.no_grad():
            for weight, value in kept.values():
                weight.copy_(value)


@functools.lru_cache
def tiny_networks() -> Networks:
    """The tiny pipeline's configs."""
    text = functools.partial(CLIPTextConfig, vocab_size=530)
    one = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, projection_dim=32)
    two = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, projection_dim=48)
    return dict(
        text_encoder=text(**one),
        text_encoder_2=text(**two, with_projection=True, hidden_act="gelu"),
        unet=UNetConfig.from_dict(UNET),
        vae=VAEConfig(),
    )


def tiny_targets() -> Targets:
    """What a LoRA for the tiny pipeline may change; shapes only."""
    return targets_of(tiny_networks())


# Three modules of the tiny pipeline, for files that are written by hand.
UNET_MODULE = _kohya_sgm("unet", "down_blocks.1.attentions.0.proj_in")  # a Linear, 64 -> 64
CONV_MODULE = _kohya_sgm("unet", "down_blocks.0.downsamplers.0.conv")  # a 3x3 convolution, 32 -> 32
TEXT_MODULE = "lora_te1_text_model_encoder_layers_0_mlp_fc1"  # 32 -> 64


def halves(module: str, inputs: int, outputs: int, rank: int = 2, window: tuple[int, ...] = ()) -> Tensors:
    """Both halves of a kohya module, random."""
    rng = np.random.default_rng(len(module) + rank)
    down = rng.normal(size=(rank, inputs, *window)).astype(np.float32)
    up = rng.normal(size=(outputs, rank, *(1 for _ in window))).astype(np.float32)
    return {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}


def good() -> Tensors:
    """A small file in which nothing is wrong: one alpha, two ranks, a convolution, a text encoder's layer."""
    return {
        **halves(UNET_MODULE, 64, 64),
        **halves(CONV_MODULE, 32, 32, 3, (3, 3)),
        **halves(TEXT_MODULE, 32, 64),
        f"{UNET_MODULE}.alpha": np.array(1.0, np.float32),
    }


def saved(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """Writes numpy tensors to a file."""
    save_numpy(tensors, path, metadata=metadata)
    return path
