"""The loss of SDXL's denoiser and, where they learn too, of its text encoders: for a LoRA and for whole networks alike.

Which of the two is a matter of the trees: a network whose weights are `frozen` has a delta in `trainable` (or none),
one that is not frozen has its weights there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from autolora_jax.models.clip import CLIPTextModel
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.text.sdxl import ENCODERS, join
from autolora_jax.text.stage import HIDDEN_LAYER
from autolora_jax.training.objective import Noised, Objective

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DenoiserLoss:
    """A `step.Loss` over batches of rows

        {"mean", "std": [b h w c], "time_ids": [b 6], "draw": int32 [b], "prompt": …}

    mean, std: of the scaled latents' distribution. draw: number of the row's random draws, never used twice in a run.
    prompt: {"encoder_hidden_states", "text_embeds"}, or token ids {"text_encoder", "text_encoder_2"} where the encoders
    learn. frozen: {"seed": int32, "empty_prompt": like one row of "prompt", "params": network -> weights}.

    lora_scale: alpha / rank, what the deltas are multiplied by.
    caption_dropout: share of rows that see the empty prompt, for classifier-free guidance.
    """

    unet: UNet2DConditionModel
    encoders: tuple[CLIPTextModel, ...]
    objective: Objective
    lora_scale: float = 1.0
    caption_dropout: float = 0.0

    def __call__(self, trainable: Tree, frozen: Tree, batch: Tree) -> tuple[Float[Array, "b"], dict[str, Array]]:
        noised, prompt = self.draw(frozen, batch)
        prediction = self.unet.apply(
            self._variables("unet", trainable, frozen, len(batch["draw"])),
            noised.latents,
            noised.timesteps.astype(jnp.float32),
            **self._conditioning(trainable, frozen, prompt),
            time_ids=batch["time_ids"],
        )
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
        if "text_embeds" in prompt:
            return dict(prompt)
        outputs = {}
        for name, encoder in zip(ENCODERS, self.encoders, strict=True):
            states, pooled = encoder.apply(self._variables(name, trainable, frozen, len(prompt[name])), prompt[name])
            outputs[name] = states[HIDDEN_LAYER], pooled
        return join(outputs)

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
    if "down" in delta:
        return {"down": delta["down"], "up": delta["up"] * scale, "scale": jnp.ones((rows, delta["up"].shape[0]))}
    return {name: _collection(node, scale, rows) for name, node in delta.items()}
