"""Cycles of single blocks of SDXL and SD3 at their true sizes, by the real TPU compiler. No TPU is needed.

    python -m benchmarks.tpu_blocks                                   # v5e, 8 rows, base and with a delta of rank 32
    python -m benchmarks.tpu_blocks --chip v6e --block b640 --rows 2
    python -m benchmarks.tpu_blocks --tiny                            # one small block, for tests

A block compiles in half a minute where a whole denoiser takes many. Millions of cycles on one chip; see cycles.py.
"""

import argparse
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from autolora_jax import lora
from autolora_jax.models.joint import JointTransformerBlock
from autolora_jax.models.resnet import ResnetBlock2D
from autolora_jax.models.transformer import BasicTransformerBlock
from autolora_jax.sharding import replicated
from benchmarks.cycles import REGIONS, Cycles, Schedules, count
from benchmarks.tpu_compile import abstract, delta_shapes, topology_mesh

SETTINGS: dict[str, Any] = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "attention": "splash"}
ADAPTED = r"(.*/)?(to_[qkv]|to_out_0|add_[qkv]_proj|to_add_out|net_0/proj|net_2|conv[12])/kernel"


def transformer(tokens: int, features: int, heads: int) -> Any:
    block = BasicTransformerBlock(features=features, heads=heads, **SETTINGS)
    return block, [(tokens, features), (77, 2048)], 4 * tokens**2 * features


def resnet(side: int, features: int) -> Any:
    block = ResnetBlock2D(features=features, num_groups=32, epsilon=1e-5, **SETTINGS)
    return block, [(side, side, features), (1280,)], 0


def joint(tokens: int, text: int, features: int, heads: int) -> Any:
    block = JointTransformerBlock(
        features=features, heads=heads, qk_norm=False, dual_attention=False, text_only_read=False, **SETTINGS
    )
    return block, [(tokens, features), (text, features), (features,)], 4 * (tokens + text) ** 2 * features


# name -> (block, shapes of a row's inputs, FLOP of a row's attention kernel)
BLOCKS: dict[str, Callable[[], Any]] = {
    "b1280": lambda: transformer(1024, 1280, 20),
    "b640": lambda: transformer(4096, 640, 10),
    "r1280": lambda: resnet(32, 1280),
    "r640": lambda: resnet(64, 640),
    "r320": lambda: resnet(128, 320),
    "sd3": lambda: joint(4096, 333, 1536, 24),
    "tiny": lambda: transformer(256, 128, 2),
}
HEADER = "| block | chip | rows | weights | M cycles | " + " | ".join(REGIONS) + " | of the roofline | temporaries MB |"


def measure(name: str, chip: str, rows: int, rank: int | None, schedules: Schedules) -> tuple[Cycles, float]:
    """(cycles, MB of temporaries) of a block's forward. rank: of the delta on its layers, None without one."""
    block, shapes, attention = BLOCKS[name]()
    where = replicated(topology_mesh(f"{chip}:2x2", 1))
    inputs = [jax.ShapeDtypeStruct((rows, *shape), jnp.bfloat16) for shape in shapes]
    params = jax.eval_shape(block.clone(attention="xla").init, jax.random.key(0), *inputs)["params"]
    delta = delta_shapes(params, rank, re.compile(ADAPTED)) if rank else {}

    def forward(params: Any, delta: Any, scale: jax.Array, *inputs: Any) -> Any:
        return block.apply({"params": params, "lora": lora.at_scale(delta, scale)}, *inputs)

    scale = jax.ShapeDtypeStruct((1,), jnp.float32)
    schedules.clear()
    compiled = jax.jit(forward).lower(*abstract((params, delta, scale, *inputs), where)).compile()
    flop = compiled.cost_analysis()["flops"] + attention * rows
    return count(compiled, chip, flop, schedules), compiled.memory_analysis().temp_size_in_bytes / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", default="v5e", help="v5e or v6e")
    parser.add_argument("--block", choices=BLOCKS, action="append", help="repeatable")
    parser.add_argument("--rows", type=int, default=8, help="pictures times prompts")
    parser.add_argument("--rank", type=int, default=32, help="of the delta")
    parser.add_argument("--tiny", action="store_true", help="one small block")
    args = parser.parse_args()
    print(HEADER + "\n" + "|---" * (HEADER.count("|") - 1) + "|")
    names = ["tiny"] if args.tiny else args.block or [name for name in BLOCKS if name != "tiny"]
    with Schedules() as schedules:
        for name in names:
            for weights, rank in (("base", None), ("tuned", args.rank)):
                cycles, temporaries = measure(name, args.chip, args.rows, rank, schedules)
                print(f"| {name} | {args.chip} | {args.rows} | {weights} | {cycles} | {temporaries:.0f} |", flush=True)


if __name__ == "__main__":
    main()
