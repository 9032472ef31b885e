"""What the real TPU compiler makes of the full-size sampler: memory, FLOPs, bytes and cycles of a step, without a TPU.

    python -m benchmarks.tpu_compile                                  # v5e and v6e, 4 chips, 4 images a chip
    python -m benchmarks.tpu_compile --topology v5e:2x2 --batch 8
    python -m benchmarks.tpu_compile --model sd3-medium --topology v5e:2x2 --batch 1
    python -m benchmarks.tpu_compile --model sd3.5-large --topology v5e:2x2 --batch 1 --weight-shards 4

Compiles ahead of time with libtpu (pip install libtpu). Each compile takes several minutes on two cores. A scan's body
is counted once, so the sampler's figures are those of one step (plus a few elementwise operations around the loop).
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

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.experimental import topologies
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from autolora_jax.config import MMDiTConfig, UNetConfig
from autolora_jax.guidance import COLUMNS, plan
from autolora_jax.models.networks import network_of, param_shapes
from autolora_jax.run import calls as calls_of
from autolora_jax.sampler import STRETCH, Images, Model, Numbers, State, Steps, advance
from autolora_jax.schedules import Schedule
from autolora_jax.settings.rules import AutoLoRA, Rule
from autolora_jax.sharding import WEIGHTS, data_mesh, map_images, replicated, split_axes, split_images, weight_placement
from autolora_jax.weights import published
from benchmarks.cycles import REGIONS, Cycles, Schedules, count

COLLECTIVES = re.compile(r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")
ADAPTED = re.compile(r".*/(to_q|to_k|to_v|to_out_0|add_[qkv]_proj|to_add_out|net_0/proj|net_2|proj_in|proj_out)/kernel")
GB, TERA = 1e9, 1e12
ROOM = 64  # ranks that every layer has place for, as lora.padded gives it
TEXT_TOKENS = 77 + 256  # of SD3: CLIP's and T5's
MODELS = {
    "tiny": dataclasses.replace(
        published.SDXL_BASE["unet"],
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(1, 2),
        transformer_layers_per_block=(1, 1),
    ),
    "sdxl": published.SDXL_BASE["unet"],
    "sd3-medium": published.SD3_MEDIUM["transformer"],
    "sd3.5-medium": published.SD35_MEDIUM["transformer"],
    "sd3.5-large": published.SD35_LARGE["transformer"],
}
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


def network(size: int = 1024, model: str = "sdxl") -> Any:
    """A published denoiser as TPUs run it. model: a key of MODELS."""
    config = dataclasses.replace(MODELS[model], sample_size=size // 8)
    return network_of(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, attention="splash")


def topology_mesh(name: str, devices: int | None = None, weight_shards: int = 1) -> Mesh:
    """A mesh of TPU chips that are not here."""
    chips = topologies.get_topology_desc(name, platform="tpu").devices
    return data_mesh(chips[:devices], weight_shards)


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


def conditioning(config: UNetConfig | MMDiTConfig, *lead: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes: dict[str, tuple[int, ...]]
    if isinstance(config, MMDiTConfig):
        tokens, pooled = (TEXT_TOKENS, config.joint_attention_dim), (config.pooled_projection_dim,)
        shapes = {"encoder_hidden_states": tokens, "pooled_projections": pooled}
    else:
        pooled = (config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim,)
        shapes = {"encoder_hidden_states": (77, config.cross_attention_dim), "text_embeds": pooled, "time_ids": (6,)}
    return {name: jax.ShapeDtypeStruct((*lead, *shape), jnp.bfloat16) for name, shape in shapes.items()}


def lower_sampler(denoiser: Any, mesh: Mesh, batch: int, rule: Rule, rank: int = ROOM, loras: int = 4) -> Any:
    """The lowered sampler for `batch` images a chip. rank: of the delta's room in every layer."""
    config = denoiser.config
    size, n = config.sample_size, batch * mesh.size
    calls = calls_of(plan(rule.filled(5.0), 1, 1), 0, 1)
    made, prompts = calls.columns.shape[1:]

    def numbers(*shape: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    params, latents = param_shapes(denoiser), (size, size, config.in_channels)
    steps = Steps(
        steps=numbers(dtype=jnp.int32),
        schedule=Schedule(*(numbers(STRETCH) for _ in Schedule._fields)),
        calls=numbers(STRETCH, dtype=jnp.int32),
        adapted=numbers(STRETCH, made, dtype=bool),
        columns=numbers(STRETCH, made, prompts, dtype=jnp.int32),
    )
    images = (
        Images(conditioning(config, n, len(COLUMNS)), numbers(n)),
        Numbers(
            coefficients=numbers(n, STRETCH, made, prompts),
            scales=numbers(n, STRETCH, made, loras),
            step_noise=numbers(n, STRETCH, *latents),
        ),
        State(numbers(n, *latents), numbers(n, *latents)),
    )
    model = Model(params, delta_shapes(params, rank, re.compile(".*/kernel")) if rank else {})
    model, steps = abstract((model, steps), replicated(mesh))
    place = weight_placement(mesh)
    flat = traverse_util.flatten_dict(params, sep="/")
    split = {path: abstract(leaf, place(path, leaf.shape)) for path, leaf in flat.items()}
    model = model._replace(params=traverse_util.unflatten_dict(split, sep="/"))
    axes = split_axes(model.params) if mesh.shape[WEIGHTS] > 1 else ()
    return advance.lower(denoiser, mesh, model, steps, *abstract(images, split_images(mesh)), axes=axes)


def lower_forward(denoiser: Any, mesh: Mesh, batch: int) -> Any:
    """The lowered plain network, one forward of `batch` images on one chip."""
    config = denoiser.config
    latents = jax.ShapeDtypeStruct((batch, config.sample_size, config.sample_size, config.in_channels), jnp.float32)
    images = latents, jax.ShapeDtypeStruct((batch,), jnp.float32), conditioning(config, batch)

    def forward(params: Any, images: Any) -> Any:
        x, t, told = images
        return denoiser.apply({"params": params}, x, t, **told)

    return jax.jit(map_images(forward, mesh)).lower(*abstract((param_shapes(denoiser), images), replicated(mesh)))


def attention_flop(config: UNetConfig | MMDiTConfig, size: int, evaluations: int) -> float:
    """FLOPs of the self-attention products, which Pallas kernels hide: 4·T²·channels a layer and evaluation."""
    total = 0.0
    if isinstance(config, MMDiTConfig):
        tokens = (size // config.patch_size) ** 2
        squares = config.num_layers * (tokens + TEXT_TOKENS) ** 2 + len(config.dual_attention_layers) * tokens**2
        return 4.0 * squares * config.features * evaluations
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
) -> Iterator[Compiled]:
    """One forward (where one chip can hold the model), and the sampler's AutoLoRA step, on a topology."""
    denoiser = network(size, model)
    latent = size // 8
    one, all_chips = topology_mesh(topology, 1), topology_mesh(topology, None, weight_shards)
    once = attention_flop(denoiser.config, latent, batch)
    if weight_shards == 1:
        yield measure("one forward", topology, lower_forward(denoiser, one, batch), batch, once, schedules)
    lowered = lower_sampler(denoiser, all_chips, batch, AutoLoRA(), rank)
    yield measure("AutoLoRA step", topology, lowered, batch, 4 * once, schedules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", action="append", help="v5e:2x2, v6e:2x2 …; repeatable (default: both)")
    parser.add_argument("--batch", type=int, default=4, help="images a chip")
    parser.add_argument("--size", type=int, default=1024, help="picture side in pixels")
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    parser.add_argument("--weight-shards", type=int, default=1, help="chips that hold one copy of the weights together")
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
        for row in rows(topology, args.batch, args.size, args.rank, args.model, args.weight_shards, schedules):
            results.append(row)
            print(row, flush=True)
            print(f"compiled in {row.compile_s:.0f} s", file=sys.stderr)
        print(f"\n{CYCLES_HEADER}")
        for row in results[first:]:
            print(f"| {row.program} | {row.topology} | {row.cycles} |", flush=True)
        if args.weight_shards > 1:
            continue
        forward, step = results[-2:]
        print(
            f"\n{topology}: a step counts {step.tflop / forward.tflop:.3f} forwards without attention, "
            f"{(step.tflop + step.attention_tflop) / (forward.tflop + forward.attention_tflop):.3f} with it\n"
        )
    return results


if __name__ == "__main__":
    main()
