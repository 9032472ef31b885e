"""What the real TPU compiler makes of a LoRA training step of full-size SDXL: memory and FLOPs. No TPU is needed.

    python -m benchmarks.tpu_train_compile                            # v5e, 4 chips, 1024², 1 image a chip, rank 16
    python -m benchmarks.tpu_train_compile --size 512 --depth 2       # a shallow network: minutes, not an hour

The step: gradients of the mean squared error with respect to a float32 delta on the attention layers, averaged over the
chips; frozen bfloat16 weights, blocks recomputed, splash attention. An optimizer's arithmetic on the delta is not in
it; AdamW's state is counted below the table. `+ attention` is what the cost analysis does not see, see tpu_compile.
"""

import argparse
import dataclasses
import re
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from autolora_jax.models.networks import param_shapes
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.sharding import IMAGES, replicated, split_images
from autolora_jax.training.deltas import over_pairs
from benchmarks.tpu_compile import (
    GB,
    HEADER,
    Compiled,
    abstract,
    attention_flop,
    conditioning,
    delta_shapes,
    measure,
    network,
    topology_mesh,
)

ATTENTION = re.compile(r".*/(to_q|to_k|to_v|to_out_0)/kernel")
# Products of [tokens, tokens] an attention layer takes: two forward, two recomputed, five in the fused backward kernel.
ATTENTION_PASSES = (2 + 2 + 5) / 2


def trainable_shapes(unet: UNet2DConditionModel, rank: int) -> dict[str, Any]:
    """The float32 delta {down, up} on the attention layers."""
    delta = delta_shapes(param_shapes(unet), rank, ATTENTION, jnp.float32)
    return over_pairs(lambda leaf: {"down": leaf["down"], "up": leaf["up"]}, delta)


def mean_loss(unet: UNet2DConditionModel, delta: Any, params: Any, images: Any) -> jax.Array:
    """Mean squared error of the adapted network's predictions, float32.

    images: {"target": [b h w c], "told": the network's keyword arguments}
    """
    # With a scale per image the kernels stay as they are; a merged kernel would have a full-size gradient.
    rows = len(images["target"])
    collection = over_pairs(lambda pair: {**pair, "scale": jnp.ones((rows, len(pair["up"])))}, delta)
    prediction = unet.apply({"params": params, "lora": collection}, **images["told"])
    return jnp.mean(jnp.square(prediction.astype(jnp.float32) - images["target"]))


def lower_step(unet: UNet2DConditionModel, mesh: Mesh, batch: int, rank: int) -> Any:
    """The lowered (params, delta, images) -> (loss, gradients of the delta) for `batch` images a chip."""
    size, n = unet.config.sample_size, batch * mesh.size
    latents = jax.ShapeDtypeStruct((n, size, size, unet.config.in_channels), jnp.float32)
    told = {"timesteps": jax.ShapeDtypeStruct((n,), jnp.float32), **conditioning(unet.config, n)}

    def step(params: Any, delta: Any, images: Any) -> Any:
        return jax.lax.pmean(jax.value_and_grad(partial(mean_loss, unet))(delta, params, images), IMAGES)

    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(IMAGES)),
        out_specs=PartitionSpec(),
        check_vma=False,  # Pallas kernels do not declare how their outputs vary
    )
    shared = abstract((param_shapes(unet), trainable_shapes(unet, rank)), replicated(mesh))
    images = abstract({"target": latents, "told": {"sample": latents, **told}}, split_images(mesh))
    return jax.jit(mapped).lower(*shared, images)


def training_network(size: int, depth: int | None = None, model: str = "sdxl") -> UNet2DConditionModel:
    """SDXL's UNet as TPUs train it. depth: at most this many transformer blocks per attention layer."""
    unet = network(size, model).clone(remat=True)
    depths = tuple(min(depth or n, n) for n in unet.config.depths)
    return unet.clone(config=dataclasses.replace(unet.config, transformer_layers_per_block=depths))


def adamw_gb(unet: UNet2DConditionModel, rank: int) -> float:
    """What AdamW keeps for the delta: two float32 moments."""
    return 8 * sum(leaf.size for leaf in jax.tree.leaves(trainable_shapes(unet, rank))) / GB


def compiled_step(unet: UNet2DConditionModel, topology: str, batch: int, rank: int) -> Compiled:
    """The compiler's figures of one step, per chip."""
    attention = ATTENTION_PASSES * attention_flop(unet.config, unet.config.sample_size, batch)
    lowered = lower_step(unet, topology_mesh(topology), batch, rank)
    return measure("LoRA training step", topology, lowered, batch, attention)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2", help="v5e:2x2, v6e:2x2 …")
    parser.add_argument("--batch", type=int, default=1, help="images a chip")
    parser.add_argument("--size", type=int, default=1024, help="picture side in pixels")
    parser.add_argument("--rank", type=int, default=16, help="rank of the delta")
    parser.add_argument("--depth", type=int, help="at most this many transformer blocks per attention layer")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: only to see that it works")
    args = parser.parse_args()
    unet = training_network(64, 1, "tiny") if args.tiny else training_network(args.size, args.depth)
    row = compiled_step(unet, args.topology, args.batch, args.rank)
    print(f"{HEADER}\n{row}\n\nAdamW keeps another {adamw_gb(unet, args.rank):.2f} GB")
    print(f"compiled in {row.compile_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
