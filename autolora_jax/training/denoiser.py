"""The loss of a denoiser and, where they learn too, of its text encoders: for a LoRA and for whole networks alike.

Which of the two is a matter of the trees: a network whose weights are `frozen` has a delta in `trainable` (or none),
one that is not frozen has its weights there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from autolora_jax.text.encoding import output_at
from autolora_jax.text.stage import Join
from autolora_jax.training.deltas import over_pairs
from autolora_jax.training.objective import Noised, Objective

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DenoiserLoss:
    """A `step.Loss` over batches of rows

        {"mean", "std": [b h w c], "draw": int32 [b], "sizes": …, "prompt": …}

    mean, std: of the scaled latents' distribution. draw: number of the row's random draws, never used twice in a run.
    sizes: keywords that tell the denoiser of sizes, {"time_ids": [b 6]} for SDXL. prompt: the keywords that tell it of
    the prompt, or token ids by the encoders' names where they learn.
    frozen: {"seed": int32, "empty_prompt": like one row of "prompt", "params": network -> weights}.

    lora_scale: alpha / rank, what the deltas are multiplied by.
    caption_dropout: share of rows that see the empty prompt, for classifier-free guidance.
    """

    name: str  # of the denoiser, "unet" or "transformer"
    denoiser: nn.Module
    encoders: tuple[tuple[str, nn.Module], ...]
    join: Join  # of the encoders' outputs
    objective: Objective
    lora_scale: float = 1.0
    caption_dropout: float = 0.0

    def __call__(self, trainable: Tree, frozen: Tree, batch: Tree) -> tuple[Float[Array, "b"], dict[str, Array]]:
        noised, prompt = self.draw(frozen, batch)
        prediction = self.denoiser.apply(
            self._variables(self.name, trainable, frozen, len(batch["draw"])),
            noised.latents,
            noised.timesteps,
            **self._conditioning(trainable, frozen, prompt),
            **batch["sizes"],
        )
        assert isinstance(prediction, jax.Array)
        return self.objective.losses(prediction, noised), {}

    def draw(self, frozen: Tree, batch: Tree) -> tuple[Noised, Tree]:
        """(noised latents, prompts, some of them empty): all that is random, each row's by the seed and its number."""
        seed = jax.random.key(frozen["seed"])
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(seed, i), 3))(batch["draw"])  # [b 3]
        latents = batch["mean"].astype(jnp.float32)
        spread = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:], jnp.float32))(keys[:, 0])
        noised = self.objective.draw(keys[:, 1], latents + batch["std"].astype(jnp.float32) * spread)
        dropped = jax.vmap(jax.random.uniform)(keys[:, 2]) < self.caption_dropout
        prompt = jax.tree.map(
            lambda full, empty: jnp.where(dropped.reshape(-1, *(1,) * empty.ndim), empty[None], full),
            batch["prompt"],
            frozen["empty_prompt"],
        )
        return noised, prompt

    def _conditioning(self, trainable: Tree, frozen: Tree, prompt: Tree) -> dict[str, Array]:
        if "encoder_hidden_states" in prompt:
            return dict(prompt)
        outputs = {}
        for name, encoder in self.encoders:
            variables = self._variables(name, trainable, frozen, len(prompt[name]))
            outputs[name] = output_at(encoder.apply(variables, prompt[name]))
        return self.join(outputs)

    def _variables(self, network: str, trainable: Tree, frozen: Tree, rows: int) -> dict[str, Any]:
        if network not in frozen["params"]:
            return {"params": trainable[network]}
        delta = trainable.get(network)
        adapted = {"lora": _collection(delta, self.lora_scale, rows)} if delta else {}
        return {"params": frozen["params"][network], **adapted}


def _collection(delta: Tree, scale: float, rows: int) -> dict[str, Any]:
    """The "lora" collection in the form with a scale per image: x·W + ((x·down)·1)·up never builds a merged kernel, so
    its gradient is never taken either. alpha / rank goes into `up`, as a file's does when it is loaded: rounded to
    bfloat16 itself, it would be up to 0.4 % off."""

    def scaled(pair: Tree) -> dict[str, Array]:
        return {"down": pair["down"], "up": pair["up"] * scale, "scale": jnp.ones((rows, pair["up"].shape[0]))}

    return over_pairs(scaled, delta)
