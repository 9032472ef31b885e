"""Comparing our networks with PyTorch's: weights through the real tables, layouts, errors, module by module."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import torch
from numpy.typing import ArrayLike

from autolora_jax.models.networks import param_shapes
from autolora_jax.weights import rules, tables


def params_of(module: torch.nn.Module, network: nn.Module) -> dict[str, Any]:
    """The torch module's weights as the network's parameters."""
    tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    return rules.convert(tensors, tables.stages_for(network.config), param_shapes(network))


def submodule(bound: nn.Module, path: str) -> Any:
    """Our part of a torch path: "down_blocks.0.resnets.1" of a bound network."""
    for name in path.split("."):
        bound = bound[int(name)] if name.isdigit() else getattr(bound, name)
    return bound


def error(ours: ArrayLike, theirs: torch.Tensor | ArrayLike) -> float:
    """Largest difference, relative to their largest value. Images: ours [b h w c], theirs torch's [b c h w]."""
    ours = np.asarray(ours, np.float64)
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach().numpy()
        theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    theirs = np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def channels_first(x: np.ndarray) -> torch.Tensor:
    """[b h w c] -> torch's [b c h w]."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a traced program, those of loops and calls included, a shared body's once a call."""
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jax.core.jaxprs_in_params(eqn.params):
            yield from equations(sub)
