"""What an AutoLoRA step costs: ours, against four plain forwards of ours, and against diffusers, adapter on and off.

    python -m benchmarks.step                          # a reduced SDXL on CPU, full SDXL in bfloat16 on CUDA
    python -m benchmarks.step --model sdxl --size 512 --images 1

One run, one machine, interleaved repetitions; the figures that travel are the ratios. The reference is what a user of
diffusers would write: per step one UNet call with the adapter disabled and one with it enabled, each on [negative,
positive]. On CUDA it is compiled by torch.compile, once per adapter state.
"""

import argparse
import dataclasses
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from autolora_jax.config import SchedulerConfig, UNetConfig
from autolora_jax.guidance import plan
from autolora_jax.models.attention import default_implementation
from autolora_jax.models.networks import param_shapes
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.run import Run
from autolora_jax.sampler import Model
from autolora_jax.schedules import make_schedule
from autolora_jax.settings.rules import AutoLoRA
from autolora_jax.sharding import data_mesh, replicated
from benchmarks import programs

MODELS = {
    "sdxl": UNetConfig(),
    # A twentieth of the width and a third of the depth: a step takes about a second on two CPU cores.
    "small": dataclasses.replace(
        UNetConfig(),
        block_out_channels=(96, 192, 384),
        transformer_layers_per_block=(1, 2, 4),
        attention_head_dim=(2, 3, 6),
        cross_attention_dim=512,
        projection_class_embeddings_input_dim=256 + 6 * 256,
    ),
    "tiny": programs.MODELS["tiny"],  # only to see that it works
}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
STEPS = 4  # of one sampler call; the figure is a step's share


def random_tree(shapes: Any, dtype: Any) -> Any:
    """Small random weights, made on the device: the time of a product does not depend on its values."""
    flat = traverse_util.flatten_dict(shapes, sep="/")
    keys = jax.random.split(jax.random.key(0), len(flat))
    values = {
        path: jnp.zeros(leaf.shape, jnp.int32)
        if path.endswith("/owner")
        else (jax.random.normal(key, leaf.shape, dtype) * 0.02)
        for (path, leaf), key in zip(flat.items(), keys, strict=True)
    }
    return traverse_util.unflatten_dict(values, sep="/")


def ours(config: UNetConfig, latent: int, n: int, rank: int, dtype: Any) -> dict[str, Callable[[], Any]]:
    """A sampler call of STEPS steps, and STEPS × four plain forwards."""
    mesh = data_mesh(jax.devices()[:1])
    attention = default_implementation(mesh.devices.flat[0].platform, dtype)
    unet = UNet2DConditionModel(config=config, dtype=dtype, param_dtype=dtype, attention=attention)
    shapes = param_shapes(unet)
    params = random_tree(shapes, dtype)
    rng = np.random.default_rng(0)

    def conditioning(*lead: int) -> dict[str, np.ndarray]:
        shapes = programs.conditioning(config, *lead)
        return {name: rng.standard_normal(leaf.shape, np.float32) for name, leaf in shapes.items()}

    table, schedule = plan(AutoLoRA().filled(5.0), n, STEPS), make_schedule(SchedulerConfig(), STEPS)
    x = rng.standard_normal((n, latent, latent, 4), np.float32)
    told = {kind: conditioning(n, 2) for kind in table.weights}
    delta = random_tree(programs.delta_shapes(shapes, rank, re.compile(".*/kernel")), dtype)
    model = jax.device_put(Model(params, delta, {}), replicated(mesh))
    forward = jax.jit(lambda params, x, t, c: unet.apply({"params": params}, x, t, **c))
    arguments = jax.device_put((x, np.full(n, 500.0, np.float32), conditioning(n)))

    def step() -> None:
        run = Run(unet, mesh, model, table, schedule, {"lora": np.ones((n, 1, 1), np.float32)}, told, x)
        while run.done < run.total:
            run.advance()
        jax.block_until_ready(run.state)

    def forwards() -> None:
        for _ in range(4 * STEPS):
            result = forward(params, *arguments)
        result.block_until_ready()

    return {"AutoLoRA step, ours": step, "four plain forwards, ours": forwards}


def diffusers_way(config: UNetConfig, latent: int, n: int, rank: int, cuda: bool) -> dict[str, Callable[[], Any]]:
    """STEPS steps of diffusers' UNet, adapter off and on."""
    import torch
    from diffusers import UNet2DConditionModel as Reference
    from peft import LoraConfig

    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    fields = dataclasses.asdict(config)
    with torch.device(device):
        unet = Reference(**fields, addition_embed_type="text_time").to(dtype).eval()
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights=False))
    unet.to(device, dtype)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    x = torch.randn(2 * n, 4, latent, latent, device=device, dtype=dtype)
    prompt = torch.randn(2 * n, 77, config.cross_attention_dim, device=device, dtype=dtype)
    added = {
        "text_embeds": torch.randn(2 * n, pooled, device=device, dtype=dtype),
        "time_ids": torch.full((2 * n, 6), 1024.0, device=device, dtype=dtype),
    }
    call = torch.compile(unet) if cuda else unet

    @torch.no_grad()
    def steps() -> None:
        for _ in range(STEPS):
            unet.disable_adapters()
            base = call(x, 500, prompt, added_cond_kwargs=added).sample
            unet.enable_adapters()
            tuned = call(x, 500, prompt, added_cond_kwargs=added).sample
            base + 1.5 * (tuned - base)
        if cuda:
            torch.cuda.synchronize()

    return {"AutoLoRA step, diffusers": steps}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), help="default: sdxl on CUDA, small elsewhere")
    parser.add_argument("--size", type=int, help="picture side in pixels (default: 1024 on CUDA, 512 elsewhere)")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-diffusers", action="store_true", help="ours only, where torch is not installed")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, ours only: only to see that it works")
    args = parser.parse_args(arguments)
    if args.tiny:
        args.model, args.size, args.repeats, args.without_diffusers = "tiny", 64, 1, True
    cuda = jax.devices()[0].platform == "gpu"
    model = args.model or ("sdxl" if cuda else "small")
    size = args.size or (1024 if cuda else 512)
    dtype = jnp.bfloat16 if jax.devices()[0].platform != "cpu" else jnp.float32
    config = MODELS[model]
    contestants = ours(config, size // 8, args.images, args.rank, dtype)
    if not args.without_diffusers:
        contestants |= diffusers_way(config, size // 8, args.images, args.rank, cuda)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()  # compiles
        run()
    for _ in range(args.repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / STEPS)
    print(
        f"{model}, {size}², {args.images} image(s), rank {args.rank}, {dtype.__name__}, {jax.devices()[0].device_kind}"
    )
    print("| | median ms | min ms | max ms | ratio to ours |\n|---|---|---|---|---|")
    best = statistics.median(times["AutoLoRA step, ours"])
    for name, values in times.items():
        middle = statistics.median(values)
        print(
            f"| {name} | {1e3 * middle:.1f} | {1e3 * min(values):.1f} | {1e3 * max(values):.1f} | {middle / best:.2f} |"
        )


if __name__ == "__main__":
    main()
