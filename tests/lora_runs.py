"""A small SDXL in torch and here, run on the same inputs with the same LoRA."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline

from autolora_jax import lora
from autolora_jax.models.clip import CLIPTextModel
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.lora.files import read_lora, targets_of
from tests.lora_reference import COMPONENTS

TOLERANCE = 2e-5  # of the maximum; seen: UNet 2.2e-6, text encoders 6.5e-7, against the definition and diffusers alike

Tree = dict[str, Any]
Outputs = dict[str, np.ndarray]


class Both:
    """The pipeline in torch and here, with the same inputs."""

    def __init__(self, pipe: StableDiffusionXLPipeline, folder: Path) -> None:
        checkpoint = open_checkpoint(folder)
        self.pipe, self.networks = pipe, checkpoint.networks
        self.targets = targets_of(checkpoint.networks)
        self.params = {c: checkpoint.load(c) for c in COMPONENTS}
        g = torch.Generator().manual_seed(7)
        self.x = torch.randn(2, 4, 16, 16, generator=g)
        self.t = torch.tensor([500.0, 37.0])
        self.prompt = torch.randn(2, 77, 80, generator=g)
        self.pooled = torch.randn(2, 48, generator=g)
        self.sizes = torch.tensor([[128.0, 128, 0, 0, 128, 128], [64.0, 96, 8, 4, 128, 128]])
        self.ids = torch.randint(0, 500, (2, 77), generator=g)
        # Compile time is most of these tests; optimised code would not be more exact.
        self.run = jax.jit(self._run, compiler_options={"xla_backend_optimization_level": 0})

    @torch.no_grad()
    def torch(self) -> Outputs:
        """The UNet's prediction, both text encoders' states, as torch computes them now."""
        added = {"text_embeds": self.pooled, "time_ids": self.sizes}
        unet = self.pipe.unet(self.x, self.t, self.prompt, added_cond_kwargs=added).sample.permute(0, 2, 3, 1)
        one = self.pipe.text_encoder(self.ids, output_hidden_states=True)
        two = self.pipe.text_encoder_2(self.ids, output_hidden_states=True)
        found = {"unet": unet, "text_encoder": one.hidden_states[-2], "text_encoder_2": two.hidden_states[-2]}
        return {name: value.numpy() for name, value in {**found, "pooled": two.text_embeds}.items()}

    def _run(self, params: Tree, tree: Tree, scales: jax.Array) -> dict[str, jax.Array]:
        delta = lora.at_scale(tree, scales)
        x, t, prompt, pooled, sizes, ids = (
            jnp.asarray(a.numpy())
            for a in (self.x.permute(0, 2, 3, 1), self.t, self.prompt, self.pooled, self.sizes, self.ids.int())
        )
        variables = {c: {"params": params[c], "lora": delta.get(c, {})} for c in COMPONENTS}
        unet = UNet2DConditionModel(config=self.networks["unet"]).apply(variables["unet"], x, t, prompt, pooled, sizes)
        one, _ = CLIPTextModel(config=self.networks["text_encoder"]).apply(variables["text_encoder"], ids)
        two, last = CLIPTextModel(config=self.networks["text_encoder_2"]).apply(variables["text_encoder_2"], ids)
        return {"unet": unet, "text_encoder": one[-2], "text_encoder_2": two[-2], "pooled": last}

    def ours(self, tree: Tree, scales: Sequence[float] | Sequence[Sequence[float]]) -> Outputs:
        return jax.device_get(self.run(self.params, tree, jnp.float32(scales)))

    def load(self, path: Path) -> Tree:
        return lora.attach(read_lora(path, self.targets))[0]


def errors(got: Outputs, want: Outputs) -> dict[str, float]:
    """Largest difference of each output, relative to the output's maximum."""
    return {name: float(np.abs(got[name] - want[name]).max() / np.abs(want[name]).max()) for name in want}


def assert_close(got: Outputs, want: Outputs, tolerance: float = TOLERANCE) -> None:
    found = errors(got, want)
    assert max(found.values()) <= tolerance, found


def assert_changed(got: Outputs, base: Outputs) -> None:
    """The LoRA is large enough that getting it wrong would show."""
    found = errors(got, base)
    assert min(found.values()) > 0.1, found
