"""What the splash kernel's tiles cost, by the real TPU compiler's schedules: how attention.py's tables came about.

    python -m benchmarks.splash_tiles                         # lengths of SDXL and SD3 at their usual sizes, v5e
    python -m benchmarks.splash_tiles --chip v6e --tokens 4685
    python -m benchmarks.splash_tiles --search                # every pair of blocks, on their own: half an hour

Cycles are the bundles of the compiled kernel's schedule times its grid: one head, bfloat16, heads of 64. A schedule
knows no waiting for memory, of which there is little: keys and values of a head stay in the core. No TPU is needed.
"""

import argparse
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from autolora_jax.models import attention
from autolora_jax.sharding import replicated
from benchmarks.cycles import Schedules

TOKENS = {
    1024: "SDXL 1024², inner level",
    4096: "SDXL 1024²; SD3.5's image alone",
    988: "SDXL 832 x 1216, inner level",
    3952: "SDXL 832 x 1216",
    4429: "SD3 1024², text of 333",
    4685: "SD3 1024², text of 589",
}
HEAD_DIM = 64


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a call is cut: lengths after padding, and blocks."""

    queries: int
    keys: int
    block_q: int
    block_kv: int  # of one product
    memory: int  # keys that a core holds

    @property
    def steps(self) -> int:
        """Of the kernel's grid, a head."""
        return self.queries // self.block_q * (self.keys // self.memory)


def chosen(tokens: int) -> Tiles:
    """The library's tiles for so many tokens that attend to each other."""
    queries, block_q = attention.padded_length(tokens, attention.QUERY_BLOCKS)
    keys, block_kv = attention.padded_length(tokens, attention.KEY_BLOCKS)
    return Tiles(queries, keys, block_q, block_kv, attention.memory_block(keys, block_kv, 2))


def candidates(tokens: int) -> Iterator[Tiles]:
    """The chosen tiles first, then every other padding of queries or of keys."""
    ours = chosen(tokens)
    yield ours
    for block in attention.QUERY_BLOCKS:
        if block != ours.block_q:
            yield dataclasses.replace(ours, block_q=block, queries=-(-tokens // block) * block)
    for block in attention.KEY_BLOCKS:
        if block != ours.block_kv:
            keys = -(-tokens // block) * block
            yield dataclasses.replace(ours, block_kv=block, keys=keys, memory=attention.memory_block(keys, block, 2))


def pairs() -> Iterator[Tiles]:
    """Every pair of blocks on about 4096 keys that all lie in a core."""
    for block_q in attention.QUERY_BLOCKS:
        for block_kv in attention.KEY_BLOCKS:
            keys = round(4096 / block_kv) * block_kv
            yield Tiles(2 * block_q, keys, block_q, block_kv, keys)


def bundles(tiles: Tiles, padded: bool, topology: str, schedules: Schedules) -> int | None:
    """Of the kernel's schedule for one step of its grid; None where the core's memory does not suffice.

    padded: some keys are padding, which a mask hides.
    """
    from benchmarks.tpu_compile import topology_mesh

    schedules.clear()
    seq_minor = splash.QKVLayout.SEQ_MINOR
    sizes = splash.BlockSizes(
        block_q=tiles.block_q,
        block_kv=tiles.memory,
        block_kv_compute=tiles.block_kv,
        q_layout=seq_minor,
        k_layout=seq_minor,
        v_layout=seq_minor,
    )
    where = replicated(topology_mesh(topology, 1))

    def head(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        mask = splash.MultiHeadMask([splash.FullMask((tiles.queries, tiles.keys))])
        segments = None
        if padded:
            last = (jnp.arange(tiles.keys) == tiles.keys - 1).astype(jnp.int32)
            segments = splash.SegmentIds(jnp.zeros(tiles.queries, jnp.int32), last)
        return splash.make_splash_mha_single_device(mask, block_sizes=sizes)(q, k, v, segment_ids=segments)

    q, k, v = (
        jax.ShapeDtypeStruct((1, n, HEAD_DIM), jnp.bfloat16, sharding=where)
        for n in (tiles.queries, tiles.keys, tiles.keys)
    )
    try:
        jax.jit(head).lower(q, k, v).compile()
    except jax.errors.JaxRuntimeError as problem:
        if "Vmem" in str(problem):
            return None
        raise
    return schedules.take("*splash*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", default="v5e", help="v5e, v6e …")
    parser.add_argument("--tokens", type=int, action="append", help="repeatable")
    parser.add_argument("--search", action="store_true", help="every pair of blocks")
    parser.add_argument("--tiny", action="store_true", help="the chosen tiles of 512 tokens: only to see that it works")
    args = parser.parse_args()
    if args.tiny:
        args.tokens = [512]
    with Schedules() as schedules:  # before the compiler is loaded
        print("| tokens | queries | in blocks of | keys | in blocks of | in a core | thousand cycles a head |")
        print("|---|---|---|---|---|---|---|")
        for tokens in args.tokens or ([4096] if args.search else TOKENS):
            for tiles in [chosen(tokens)] if args.tiny else pairs() if args.search else candidates(tokens):
                count = bundles(tiles, args.search or tiles.keys > tokens, f"{args.chip}:2x2", schedules)
                cost = "does not fit" if count is None else f"{count * tiles.steps / 1000:.1f}"
                if args.search and count is not None:
                    cost = f"{count / (tiles.block_q * tiles.keys) * 4096**2 / 1000:.1f}"  # of 4096 x 4096
                cut = f"{tiles.queries} | {tiles.block_q} | {tiles.keys} | {tiles.block_kv} | {tiles.memory}"
                print(f"| {tokens} | {cut} | {cost} |", flush=True)


if __name__ == "__main__":
    main()
