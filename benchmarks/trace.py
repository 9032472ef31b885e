"""What every process pays before it compiles: CPU seconds to trace and lower a sampling step of a full-size denoiser.

    python -m benchmarks.trace                    # SDXL and SD3 Medium
    python -m benchmarks.trace --model sdxl
    python -m benchmarks.trace --tiny             # two small networks of the same kinds, for tests

A step is two calls of the denoiser in a scan, as AutoLoRA makes them: the base weights and those with a delta, each by
vmap on a negative and a positive prompt. Arguments are shapes alone: nothing is computed, no accelerator is needed. A
compilation cache does not save this time.
"""

import argparse
import dataclasses
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from autolora_jax import lora
from autolora_jax.config import MMDiTConfig, UNetConfig
from autolora_jax.models.networks import network_of, param_shapes
from benchmarks.programs import MODELS, conditioning, delta_shapes

IMAGES = 4
STEPS = 30
RANK = 32
TINY: dict[str, UNetConfig | MMDiTConfig] = {
    "sdxl": MODELS["tiny"],
    "sd3-medium": dataclasses.replace(
        MODELS["sd3-medium"],
        num_attention_heads=2,
        attention_head_dim=16,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        num_layers=6,
    ),
}


class Seconds(NamedTuple):
    """CPU seconds of this process."""

    model: str
    shapes: float  # the parameter tree's shapes, which loading needs too
    trace: float
    lower: float

    def __str__(self) -> str:
        """A row under HEADER."""
        return f"| {self.model} | {self.shapes:.1f} | {self.trace:.1f} | {self.lower:.1f} |"


HEADER = "| step of | parameter shapes, s | trace, s | lower, s |\n|---|---|---|---|"


def step_of(network: Any) -> Any:
    """(params, delta, scales [steps 1], x, conditioning) -> x: a sampler's loop with nothing but its evaluations."""

    def predictions(variables: Any, x: jax.Array, told: Any) -> jax.Array:
        timesteps = jnp.full(x.shape[:1], 500.0)
        return jax.vmap(lambda told: network.apply(variables, x, timesteps, **told), in_axes=1)(told)

    def two_calls(params: Any, delta: Any, scales: jax.Array, x: jax.Array, told: Any) -> jax.Array:
        def step(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
            base = {"params": params}
            tuned = {**base, "lora": lora.at_scale(delta, scale)}
            guided = sum(predictions(variables, x, told).sum(0) for variables in (base, tuned))
            return jnp.asarray(guided, jnp.float32), None

        return jax.lax.scan(step, x, scales)[0]

    return two_calls


def measure(model: str, tiny: bool = False) -> Seconds:
    """One model, in this process; what an earlier call traced is not traced again."""
    config = TINY[model] if tiny else dataclasses.replace(MODELS[model], sample_size=128)
    size = 16 if tiny else config.sample_size
    network = network_of(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, attention="xla" if tiny else "splash")
    start = time.process_time()
    params = param_shapes(network)
    known = time.process_time()
    told = conditioning(config, IMAGES, 2)
    x = jax.ShapeDtypeStruct((IMAGES, size, size, config.in_channels), jnp.float32)
    scales = jax.ShapeDtypeStruct((STEPS, 1), jnp.float32)
    arguments = (params, delta_shapes(params, RANK), scales, x, told)
    ready = time.process_time()
    traced = jax.jit(step_of(network)).trace(*arguments)
    done = time.process_time()
    traced.lower(lowering_platforms=("cpu" if tiny else "tpu",))
    return Seconds(model, known - start, done - ready, time.process_time() - done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=TINY, action="append", help="repeatable (default: both)")
    parser.add_argument("--tiny", action="store_true", help="small networks")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    print(HEADER)
    rows = [measure(model, args.tiny) for model in args.model or TINY]
    for row in rows:
        print(row)
    if args.json:
        with open(args.json, "w") as file:
            json.dump([row._asdict() for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
