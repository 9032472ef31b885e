"""What the real TPU compiler makes of the full-size SDXL sampler: memory, FLOPs and bytes of a step. No TPU is needed.

    python -m benchmarks.tpu_compile                                  # v5e and v6e, 4 chips, 4 images a chip
    python -m benchmarks.tpu_compile --topology v5e:2x2 --batch 8

Compiles ahead of time with libtpu (pip install libtpu). Each compile takes several minutes on two cores. A scan's body
is counted once, so the sampler's figures are those of one step (plus a few elementwise operations around the loop).
Pallas attention is invisible to the cost analysis on both sides of a ratio; `attention` is its exact count.
"""

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import topologies
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from autolora_jax.config import SchedulerConfig, UNetConfig
from autolora_jax.guidance import AutoLoRA, Rule, plan
from autolora_jax.models.shapes import param_shapes
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.sampler import Images, Shared, sample
from autolora_jax.schedules import make_schedule
from autolora_jax.sharding import data_mesh, replicated, split_images

COLLECTIVES = re.compile(r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")
ADAPTED = re.compile(r".*/(to_q|to_k|to_v|to_out_0|proj|net_2|proj_in|proj_out)/kernel")
GB, TERA = 1e9, 1e12
COLUMNS = ["program", "chip", "images", "arguments GB", "temporaries GB", "peak GB", "TFLOP", "+ attention"]
COLUMNS += ["moved GB", "collectives"]
HEADER = "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|"


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

    def __str__(self) -> str:
        """A row under HEADER."""
        memory = f"{self.arguments_gb:.2f} | {self.temporaries_gb:.2f} | {self.peak_gb:.2f}"
        work = f"{self.tflop:.2f} | {self.attention_tflop:.2f} | {self.moved_gb:.1f} | {self.collectives}"
        return f"| {self.program} | {self.topology} | {self.images} | {memory} | {work} |"


def network(size: int = 1024) -> UNet2DConditionModel:
    """The published SDXL UNet as TPUs run it."""
    config = dataclasses.replace(UNetConfig(), sample_size=size // 8)
    return UNet2DConditionModel(config=config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, attention="splash")


def topology_mesh(name: str, devices: int | None = None) -> Mesh:
    """A data mesh of TPU chips that are not here."""
    chips = topologies.get_topology_desc(name, platform="tpu").devices
    return data_mesh(chips[:devices])


def delta_shapes(
    params: Any, rank: int, layers: re.Pattern[str] = ADAPTED, dtype: DTypeLike | None = None
) -> dict[str, Any]:
    """A delta of this rank on every attention and feed-forward layer, or those whose kernels' paths match.

    dtype: of `down` and `up`, the kernel's if None.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    delta = {}
    for path, leaf in flat.items():
        if layers.fullmatch(path):
            *into, out = leaf.shape
            base = path.removesuffix("/kernel")
            delta[f"{base}/down"] = jax.ShapeDtypeStruct((*into, rank), dtype or leaf.dtype)
            delta[f"{base}/up"] = jax.ShapeDtypeStruct((rank, out), dtype or leaf.dtype)
            delta[f"{base}/owner"] = jax.ShapeDtypeStruct((rank,), jnp.int32)
    return traverse_util.unflatten_dict(delta, sep="/")


def abstract(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def conditioning(config: UNetConfig, *lead: int) -> dict[str, jax.ShapeDtypeStruct]:
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    shapes = {"encoder_hidden_states": (77, config.cross_attention_dim), "text_embeds": (pooled,), "time_ids": (6,)}
    return {name: jax.ShapeDtypeStruct((*lead, *shape), jnp.bfloat16) for name, shape in shapes.items()}


def lower_sampler(
    unet: UNet2DConditionModel, mesh: Mesh, batch: int, rule: Rule, rank: int = 32, steps: int = 30, loras: int = 1
) -> Any:
    """The lowered sampler for `batch` images a chip."""
    size, n = unet.config.sample_size, batch * mesh.size
    p = plan(rule, n, steps)
    params = param_shapes(unet)
    shared = Shared(
        params,
        delta_shapes(params, rank),
        make_schedule(SchedulerConfig(), steps),
        {kind: np.ones((steps, loras), np.float32) for kind in p.weights if kind != "base"},
    )
    images = Images(
        noise=jax.ShapeDtypeStruct((n, size, size, 4), jnp.float32),
        step_noise=None,
        conditioning={kind: conditioning(unet.config, n, 2) for kind in p.weights},
        coefficients=p.coefficients,
        lora_scales={},
        rescale=None,
    )
    shared = abstract(shared, replicated(mesh))
    return sample.lower(unet, p.segments, mesh, shared, abstract(images, split_images(mesh)))


def lower_forward(unet: UNet2DConditionModel, mesh: Mesh, batch: int) -> Any:
    """The lowered plain network, one forward of `batch` images on one chip."""
    size, where = unet.config.sample_size, replicated(mesh)
    arguments = (
        param_shapes(unet),
        jax.ShapeDtypeStruct((batch, size, size, 4), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.float32),
        conditioning(unet.config, batch),
    )

    def forward(params: Any, x: jax.Array, t: jax.Array, conditioning: Any) -> Any:
        return unet.apply({"params": params}, x, t, **conditioning)

    mapped = jax.shard_map(
        forward,
        mesh=mesh,
        in_specs=jax.sharding.PartitionSpec(),
        out_specs=jax.sharding.PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(mapped).lower(*abstract(arguments, where))


def attention_flop(config: UNetConfig, size: int, evaluations: int) -> float:
    """FLOPs of the self-attention products, which Pallas kernels hide: 4·T²·channels a layer and evaluation."""
    total = 0.0
    for level, (channels, depth) in enumerate(zip(config.block_out_channels, config.depths, strict=True)):
        tokens = (size // 2**level) ** 2
        layers = 0
        if config.down_block_types[level].startswith("CrossAttn"):
            layers += config.layers_per_block
        if config.up_block_types[::-1][level].startswith("CrossAttn"):
            layers += config.layers_per_block + 1
        if level == len(config.depths) - 1:
            layers += 1  # the middle block
        total += layers * depth * 4 * tokens**2 * channels
    return total * evaluations


def measure(program: str, topology: str, lowered: Any, images: int, attention: float) -> Compiled:
    """Compiles and reads the compiler's own figures, per chip."""
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
    )


def rows(topology: str, batch: int, size: int, rank: int) -> Iterator[Compiled]:
    """One forward, and the sampler's AutoLoRA step, on a topology."""
    unet = network(size)
    latent = size // 8
    one, all_chips = topology_mesh(topology, 1), topology_mesh(topology)
    once = attention_flop(unet.config, latent, batch)
    yield measure("one forward", topology, lower_forward(unet, one, batch), batch, once)
    lowered = lower_sampler(unet, all_chips, batch, AutoLoRA(), rank)
    yield measure("AutoLoRA step", topology, lowered, batch, 4 * once)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", action="append", help="v5e:2x2, v6e:2x2 …; repeatable (default: both)")
    parser.add_argument("--batch", type=int, default=4, help="images a chip")
    parser.add_argument("--size", type=int, default=1024, help="picture side in pixels")
    parser.add_argument("--rank", type=int, default=32, help="rank of the delta")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    print(HEADER)
    results = []
    for topology in args.topology or ["v5e:2x2", "v6e:2x2"]:
        for row in rows(topology, args.batch, args.size, args.rank):
            results.append(row)
            print(row, flush=True)
            print(f"compiled in {row.compile_s:.0f} s", file=sys.stderr)
        forward, step = results[-2:]
        print(
            f"\n{topology}: a step counts {step.tflop / forward.tflop:.3f} forwards without attention, "
            f"{(step.tflop + step.attention_tflop) / (forward.tflop + forward.attention_tflop):.3f} with it\n"
        )
    if args.json:
        with open(args.json, "w") as file:
            json.dump([dataclasses.asdict(r) for r in results], file, indent=1)


if __name__ == "__main__":
    main()
