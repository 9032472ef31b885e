"""LoRA files of every kind that LyCORIS trains, written and applied by LyCORIS itself."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule

from tests.lora_reference import KOHYA_PREFIX, canonical

RANK, ALPHA = 3, 2.0
# kind -> (LyCORIS' class, its arguments)
KINDS: Mapping[str, tuple[type, dict[str, Any]]] = {
    "locon": (LoConModule, {}),
    "locon tucker": (LoConModule, {"use_tucker": True}),
    "locon rslora": (LoConModule, {"rs_lora": True}),
    "loha": (LohaModule, {}),
    "loha tucker": (LohaModule, {"use_tucker": True}),
    "lokr": (LokrModule, {"factor": 4}),
    "lokr both": (LokrModule, {"factor": 8, "decompose_both": True}),
    "lokr tucker": (LokrModule, {"factor": 4, "use_tucker": True}),
    "lokr full": (LokrModule, {"factor": 4, "full_matrix": True}),
    "full": (FullModule, {}),
    "dora": (LoConModule, {"weight_decompose": True}),
    "dora tucker": (LoConModule, {"weight_decompose": True, "use_tucker": True}),
    "dora of inputs": (LoConModule, {"weight_decompose": True, "wd_on_out": False}),
    "loha dora": (LohaModule, {"weight_decompose": True}),
    "lokr dora": (LokrModule, {"factor": 4, "weight_decompose": True}),
    "norm": (NormModule, {}),
    "glora": (GLoRAModule, {}),
    "oft": (DiagOFTModule, {"constraint": 0.02}),
    "ia3": (IA3Module, {}),
    "ia3 of inputs": (IA3Module, {"train_on_input": True}),
}
MULTIPLIED = ("glora", "oft", "ia3", "ia3 of inputs")  # the layer's own weight


def trained(kind: str, name: str, layer: torch.nn.Module, seed: int, strength: float = 0.5) -> Any:
    """A LyCORIS module on a layer, as if it had been trained: at scale 1 a good part of the layer's size."""
    made, arguments = KINDS[kind]
    rank = {} if kind in ("full", "norm") else {"lora_dim": RANK, "alpha": ALPHA}
    torch.manual_seed(seed)
    module = made(name, layer, 1.0, **rank, **arguments)
    with torch.no_grad():
        for part, parameter in module.named_parameters():
            noise = torch.randn_like(parameter)
            if part == "dora_scale":
                parameter.mul_(1 + 0.3 * noise)
            else:
                parameter.copy_(noise * (0.3 if kind == "norm" else parameter[0].numel() ** -0.5))
        if kind not in ("full", "norm", *MULTIPLIED):
            _balance(module, layer.weight, strength)
    return module


def _balance(module: Any, weight: torch.Tensor, strength: float) -> None:
    """Scales one factor so that the change is `strength` times the weight."""
    factor = next(
        parameter
        for part, parameter in module.named_parameters()
        if part in ("lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a")
    )
    size = module.get_diff_weight(1.0)[0].norm() / weight.norm()
    factor.mul_(strength / size)


@contextlib.contextmanager
def applied(module: Any, scale: float) -> Iterator[None]:
    """The module's layer computes with it, at a scale, as when it is trained."""
    module.multiplier = scale
    module.apply_to()
    try:
        yield
    finally:
        module.restore()
        if isinstance(module, FullModule):  # it has taken the layer's own weights in
            module.weight.data.sub_(module._org_weight[0])
            if module.bias is not None:
                module.bias.data.sub_(module.org_bias[0])


def tensors_of(module: Any) -> dict[str, np.ndarray]:
    """What LyCORIS saves of a module, by its keys in a file."""
    with applied(module, 1.0):  # a full difference is one only now
        found = module.state_dict()
    return {f"{module.lora_name}.{ending}": tensor.detach().numpy().copy() for ending, tensor in found.items()}


def names_of(pipe: StableDiffusionXLPipeline, component: str) -> dict[str, torch.nn.Module]:
    """kohya's name -> layer, of all that LyCORIS can train."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm)
    found = {canonical(component, n): m for n, m in getattr(pipe, component).named_modules() if isinstance(m, kinds)}
    return {KOHYA_PREFIX[component] + name.replace(".", "_"): module for name, module in found.items()}
