"""What the real TPU compiler makes of the full-size sampler: memory, FLOPs, bytes and cycles of a step, without a TPU.

    python -m benchmarks.tpu_compile                                  # v5e and v6e, 4 chips, 4 images a chip
    python -m benchmarks.tpu_compile --topology v5e:2x2 --batch 8
    python -m benchmarks.tpu_compile --model sd3-medium --topology v5e:2x2 --batch 1
    python -m benchmarks.tpu_compile --model sd3.5-large --topology v5e:2x2 --batch 1 --weight-shards 4
    python -m benchmarks.tpu_compile --program decoder --topology v5e:2x2 --size 1536

Compiles ahead of time with libtpu (pip install libtpu). Each compile takes several minutes on two cores. A scan's body
is counted once, so the sampler's figures are those of one step (plus a few elementwise operations around the loop), the
decoder's those of one picture (and of a chunk of its attention).
Pallas attention is invisible to the cost analysis on both sides of a ratio; `attention` is its exact count. Cycles and
their regions are cycles.py's; single blocks, which compile in half a minute, are tpu_blocks.py's.
"""

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from autolora_jax.settings.rules import AutoLoRA
from autolora_jax.sharding import data_mesh
from benchmarks.cycles import REGIONS, Cycles, Schedules, count
from benchmarks.programs import (
    MODELS,
    NETWORKS,
    ROOM,
    attention_flop,
    lower_decoder,
    lower_forward,
    lower_sampler,
    network,
)

COLLECTIVES = re.compile(r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")
GB, TERA = 1e9, 1e12
# How the decoder may compute: asked for, for networks in bfloat16.
DECODERS = {"float32": jnp.dtype("float32"), "the default": None, "bfloat16": jnp.dtype("bfloat16")}
HEADINGS = ["program", "chip", "images", "arguments GB", "temporaries GB", "peak GB", "TFLOP", "+ attention"]
HEADINGS += ["moved GB", "collectives"]
HEADER = "| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|"
CYCLES_HEADER = "| program | chip | M cycles | " + " | ".join(REGIONS) + " | of the roofline |"
CYCLES_HEADER += "\n" + "|---" * (len(REGIONS) + 4) + "|"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one compiled program needs, per chip."""

    program: str
    topology: str
    images: int
    arguments_gb: float  # weights, delta, prompts, noise
    temporaries_gb: float  # activations; a second copy of the weights would show here
    peak_gb: float
    tflop: float  # as counted: without Pallas attention
    attention_tflop: float
    moved_gb: float
    collectives: int
    compile_s: float
    cycles: Cycles

    def __str__(self) -> str:
        """A row under HEADER."""
        memory = f"{self.arguments_gb:.2f} | {self.temporaries_gb:.2f} | {self.peak_gb:.2f}"
        work = f"{self.tflop:.2f} | {self.attention_tflop:.2f} | {self.moved_gb:.1f} | {self.collectives}"
        return f"| {self.program} | {self.topology} | {self.images} | {memory} | {work} |"


def topology_mesh(name: str, devices: int | None = None, weight_shards: int = 1) -> Mesh:
    """A mesh of TPU chips that are not here."""
    chips = topologies.get_topology_desc(name, platform="tpu").devices
    return data_mesh(chips[:devices], weight_shards)


def measure(
    program: str, topology: str, lowered: Any, images: int, attention: float, schedules: Schedules | None = None
) -> Compiled:
    """Compiles and reads the compiler's own figures, per chip. schedules: without, kernels are not in the cycles."""
    if schedules:
        schedules.clear()
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return Compiled(
        program=program,
        topology=topology,
        images=images,
        arguments_gb=memory.argument_size_in_bytes / GB,
        temporaries_gb=memory.temp_size_in_bytes / GB,
        peak_gb=(
            memory.argument_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
        )
        / GB,
        tflop=cost["flops"] / TERA,
        attention_tflop=attention / TERA,
        moved_gb=cost["bytes accessed"] / GB,
        collectives=len(COLLECTIVES.findall(compiled.as_text())),
        compile_s=seconds,
        cycles=count(compiled, topology, cost["flops"] + attention, schedules),
    )


def rows(
    topology: str,
    batch: int,
    size: int,
    rank: int,
    model: str = "sdxl",
    weight_shards: int = 1,
    schedules: Schedules | None = None,
    int8: bool = False,
) -> Iterator[Compiled]:
    """One forward (where one chip can hold the model), and the sampler's AutoLoRA step, on a topology.

    int8: the step with its kernels in 8 bits, and no forward.
    """
    denoiser = network(size, model)
    latent = size // 8
    one, all_chips = topology_mesh(topology, 1), topology_mesh(topology, None, weight_shards)
    once = attention_flop(denoiser.config, latent, batch)
    if weight_shards == 1 and not int8:
        yield measure("one forward", topology, lower_forward(denoiser, one, batch), batch, once, schedules)
    lowered = lower_sampler(denoiser, all_chips, batch, AutoLoRA(), rank, int8=int8)
    yield measure("AutoLoRA step, int8" if int8 else "AutoLoRA step", topology, lowered, batch, 4 * once, schedules)


def decoders(
    topology: str, batch: int, size: int, model: str = "sdxl", schedules: Schedules | None = None
) -> Iterator[Compiled]:
    """The decoder on one chip, in each of DECODERS."""
    mesh = topology_mesh(topology, 1)
    for name, dtype in DECODERS.items():
        lowered = lower_decoder(NETWORKS[model]["vae"], mesh, batch, size, dtype)
        yield measure(f"decoder, {size}, {name}", topology, lowered, batch, 0.0, schedules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", action="append", help="v5e:2x2, v6e:2x2 …; repeatable (default: both)")
    parser.add_argument("--batch", type=int, default=4, help="images a chip")
    parser.add_argument("--size", type=int, default=1024, help="picture side in pixels")
    parser.add_argument("--program", choices=("sampler", "decoder"), default="sampler")
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    parser.add_argument("--weight-shards", type=int, default=1, help="chips that hold one copy of the weights together")
    parser.add_argument("--int8", action="store_true", help="the step alone, the denoiser's kernels in 8 bits")
    parser.add_argument("--rank", type=int, default=ROOM, help="ranks that every layer has room for")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on v5e: only to see that it works")
    args = parser.parse_args()
    if args.tiny:
        args.topology, args.batch, args.size, args.model = ["v5e:2x2"], 1, 64, "tiny"
    with Schedules() as schedules:
        results = table(args, schedules)
    if args.json:
        with open(args.json, "w") as file:
            json.dump([dataclasses.asdict(r) for r in results], file, indent=1)


def table(args: argparse.Namespace, schedules: Schedules) -> list[Compiled]:
    """Prints a table a topology, memory and work first, then cycles."""
    results = []
    for topology in args.topology or ["v5e:2x2", "v6e:2x2"]:
        print(HEADER)
        first = len(results)
        if args.program == "decoder":
            compiled = decoders(topology, args.batch, args.size, args.model, schedules)
        else:
            asked = args.batch, args.size, args.rank, args.model, args.weight_shards
            compiled = rows(topology, *asked, schedules, args.int8)
        for row in compiled:
            results.append(row)
            print(row, flush=True)
            print(f"compiled in {row.compile_s:.0f} s", file=sys.stderr)
        print(f"\n{CYCLES_HEADER}")
        for row in results[first:]:
            print(f"| {row.program} | {row.topology} | {row.cycles} |", flush=True)
        if args.program == "decoder" or args.weight_shards > 1 or args.int8:
            continue
        forward, step = results[-2:]
        print(
            f"\n{topology}: a step counts {step.tflop / forward.tflop:.3f} forwards without attention, "
            f"{(step.tflop + step.attention_tflop) / (forward.tflop + forward.attention_tflop):.3f} with it\n"
        )
    return results


if __name__ == "__main__":
    main()
