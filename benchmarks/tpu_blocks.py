"""Cycles of single blocks of SDXL and SD3 at their true sizes, by the real TPU compiler. No TPU is needed.

    python -m benchmarks.tpu_blocks                                   # v5e, 8 rows, base and with a delta of rank 32
    python -m benchmarks.tpu_blocks --chip v6e --block b640 --rows 2
    python -m benchmarks.tpu_blocks --tiny                            # one small block, for tests

A block compiles in half a minute where a whole denoiser takes many. Millions of cycles on one chip; see cycles.py.
"""

import argparse

from benchmarks.cycles import REGIONS, Cycles, Schedules, count
from benchmarks.programs import BLOCKS, lower_block
from benchmarks.tpu_compile import topology_mesh

HEADER = "| block | chip | rows | weights | M cycles | " + " | ".join(REGIONS) + " | of the roofline | temporaries MB |"


def measure(name: str, chip: str, rows: int, rank: int | None, schedules: Schedules) -> tuple[Cycles, float]:
    """(cycles, MB of temporaries) of a block's forward. rank: of the delta on its layers, None without one."""
    schedules.clear()
    lowered, attention = lower_block(name, topology_mesh(f"{chip}:2x2", 1), rows, rank)
    compiled = lowered.compile()
    flop = compiled.cost_analysis()["flops"] + attention
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
