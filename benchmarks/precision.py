"""What rounding costs the built-in model's pictures: whole runs, what a LoRA changes, and the decoder, beside float32.

    python -m benchmarks.precision

A CPU has exact products. Those of TPUs and GPUs are played here: what goes into a float32 product of a lower
`precision` is rounded as the device rounds it, and summed in float32, as the device sums it.
"""

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, UInt8

from autolora_jax import AutoLoRA, AutoLoRAPipeline, lora
from autolora_jax.engine import decode
from autolora_jax.models.int8 import quantized
from autolora_jax.models.layers import EXACT, FAST, HIGH
from autolora_jax.models.networks import network_of
from autolora_jax.sampler import Model
from autolora_jax.schedules.diffusion import alphas_cumprod

Product = Callable[[Array, Array], Array]
PROMPTS = ("a zib in the forest at night", "a zib on the beach on a sunny day")
RULE = AutoLoRA(1.5, 5.0, 5.0)  # adds up predictions times 2, -2.5, -6 and 7.5
TIMESTEPS = (850, 600, 350, 120)  # at which predictions are compared
WEAK, STRONG = 0.1, 1.0  # scales of the LoRA
BFLOAT16, TF32 = (8, 7), (8, 10)  # bits of exponent and mantissa


def _once(bits: tuple[int, int], f: Product, a: Array, b: Array) -> Array:
    return f(jax.lax.reduce_precision(a, *bits), jax.lax.reduce_precision(b, *bits))


def _thrice(f: Product, a: Array, b: Array) -> Array:
    """Each number as two of bfloat16; the product of the two small ones is left out."""
    (a0, a1), (b0, b1) = ((big, x - big) for x in (a, b) for big in [jax.lax.reduce_precision(x, *BFLOAT16)])
    return f(a0, b0) + _once(BFLOAT16, f, a0, b1) + _once(BFLOAT16, f, a1, b0)


# Device -> precision -> how a product rounds. https://docs.jax.dev/en/latest/jax.lax.html#jax.lax.Precision
DEVICES: Mapping[str, Mapping[str, Callable[[Product, Array, Array], Array]]] = {
    "TPU": {FAST: lambda *product: _once(BFLOAT16, *product), HIGH: _thrice},
    "GPU": {FAST: lambda *product: _once(TF32, *product), HIGH: lambda *product: _once(TF32, *product)},
}


@contextlib.contextmanager
def played(device: str) -> Iterator[None]:
    """float32 products of what is traced inside round as a device's do. device: a key of DEVICES."""

    def rounding(function: Callable[..., Array], at: int) -> Callable[..., Array]:
        def product(*args: Any, precision: Any = None, **more: Any) -> Array:
            before, (a, b), after = args[:at], args[at : at + 2], args[at + 2 :]

            def exact(a: Array, b: Array) -> Array:
                return function(*before, a, b, *after, precision=EXACT, **more)

            rounds = DEVICES[device].get(precision) if a.dtype == b.dtype == jnp.float32 else None
            return rounds(exact, a, b) if rounds else function(*args, precision=precision, **more)

        return product

    jax.clear_caches()  # what was traced before would be taken for it
    with (
        mock.patch.object(jnp, "matmul", rounding(jnp.matmul, 0)),
        mock.patch.object(jnp, "einsum", rounding(jnp.einsum, 1)),
        mock.patch.object(jax.lax, "conv_general_dilated", rounding(jax.lax.conv_general_dilated, 0)),
    ):
        yield
    jax.clear_caches()


class Computing(NamedTuple):
    """How a network computes. device: whose float32 products, if any, round."""

    dtype: str
    weights: str
    precision: str = EXACT
    device: str = "TPU"

    def network(self, config: Any) -> Any:
        stored = self.dtype if self.weights == "int8" else self.weights
        return network_of(config, dtype=self.dtype, param_dtype=stored, precision=self.precision)


EXACTLY = Computing("float32", "float32")
DENOISERS: Mapping[str, Computing] = {
    "bfloat16": Computing("bfloat16", "bfloat16"),
    "float16": Computing("float16", "float16"),
    "bfloat16, kernels in 8 bits": Computing("bfloat16", "int8"),
    "float32 of bfloat16 weights, fast on a TPU": Computing("float32", "bfloat16", FAST),
    "float32 of bfloat16 weights, three passes": Computing("float32", "bfloat16", HIGH),
    "float32 of bfloat16 weights": Computing("float32", "bfloat16"),
    "float32, fast on a GPU": Computing("float32", "float32", FAST, "GPU"),
}
DECODERS: Mapping[str, Computing] = {
    "the default on a TPU": Computing("float32", "float32", HIGH),
    "the default on a GPU": Computing("float32", "float32", HIGH, "GPU"),
    "one pass of a TPU": Computing("float32", "float32", FAST),
    "bfloat16": Computing("bfloat16", "bfloat16"),
    "float16": Computing("float16", "float16"),
}


class Scene:
    """The built-in model with its character, and pictures that it drew in float32, or others."""

    def __init__(self, pictures: int = 8, steps: int = 30) -> None:
        self.pipe = AutoLoRAPipeline.from_pretrained(dtype="float32", devices=jax.devices()[:1])
        self.pipe.load_lora("builtin:character")
        self.steps, self.seeds = steps, range(pictures // len(PROMPTS))
        self._exact = self.pipe.engine.denoiser, self.pipe.engine.model

    @functools.cached_property
    def latents(self) -> Float[np.ndarray, "b h w c"]:
        """Of the whole run in float32."""
        return self._drawn()

    def _drawn(self) -> np.ndarray:
        settings: Any = {"seeds": self.seeds, "guidance": RULE, "num_inference_steps": self.steps}
        drawn: np.ndarray = self.pipe(list(PROMPTS), **settings, output_type="latent").images
        return drawn

    def run(self, how: Computing) -> Float[np.ndarray, "b h w c"]:
        """Latents of the whole run with a denoiser that computes so, texts in float32."""
        engine, (exact, model) = self.pipe.engine, self._exact
        engine.denoiser, engine.model = how.network(exact.config), Model(*_cast(tuple(model), how.weights))
        try:
            with played(how.device):
                return self._drawn()
        finally:
            engine.denoiser, engine.model = self._exact

    def predictions(
        self, how: Computing, scales: tuple[float, ...] = (WEAK, STRONG)
    ) -> tuple[Float[np.ndarray, "b h w c"], list[Float[np.ndarray, "b h w c"]]]:
        """(the base model's, what the LoRA adds to them at each scale), at noises of TIMESTEPS."""
        exact, model = self._exact
        network, (params, delta, _) = how.network(exact.config), _cast(tuple(model), how.weights)
        noise = np.random.default_rng(0).standard_normal((len(TIMESTEPS), *self.latents.shape), np.float32)
        kept = alphas_cumprod(self.pipe.scheduler)[list(TIMESTEPS)].reshape(-1, 1, 1, 1, 1)
        x = (np.sqrt(kept) * self.latents + np.sqrt(1 - kept) * noise).reshape(-1, *self.latents.shape[1:])
        times = np.repeat(np.float32(TIMESTEPS), len(self.latents))
        texts = self.pipe.conditioning(list(PROMPTS))["base"]
        told = {
            name: np.tile(np.repeat(t[:, 1], len(self.seeds), 0), (len(TIMESTEPS), *(1,) * (t.ndim - 2)))
            for name, t in texts.items()
        }

        @jax.jit
        def predict(scale: Any, x: Array, times: Array, told: Any) -> Array:
            variables = {"params": params}
            if scale is not None:
                variables["lora"] = lora.at_scale(delta, scale)
            return network.apply(variables, x, times, **told).astype(jnp.float32)

        most = 4  # LoRAs that a delta tree has room for
        with played(how.device):
            base = np.asarray(predict(None, x, times, told))
            at = (np.float32([scale] + [0] * (most - 1)) for scale in scales)
            return base, [np.asarray(predict(scale, x, times, told)) - base for scale in at]

    def pictures(self, how: Computing) -> UInt8[np.ndarray, "b H W 3"]:
        """The latents, decoded so."""
        params = _cast(self.pipe.params["vae"], how.weights)
        with played(how.device):
            drawn, _ = decode(how.network(self.pipe.vae.config), self.pipe.mesh, params, self.latents)
            return np.asarray(drawn)


def _cast(tree: Any, dtype: str) -> Any:
    """A model's, or a network's, weights as they are kept. dtype "int8": kernels so, all else in bfloat16."""
    if dtype == "int8":
        params, *rest = tree
        flat = traverse_util.flatten_dict(params, sep="/")
        kept = {path: quantized(path, jnp.array(leaf)) for path, leaf in flat.items()}
        rounded = {k: v if k.endswith("/kernel") else _cast(v, "bfloat16") for k, v in kept.items()}
        return traverse_util.unflatten_dict(rounded, sep="/"), *(_cast(part, "bfloat16") for part in rest)
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def rms(a: np.ndarray, of: np.ndarray) -> float:
    """Root mean square of a beside that of `of`."""
    return float(np.sqrt(np.mean(np.square(a)) / np.mean(np.square(of))))


def within(ours: np.ndarray, exact: np.ndarray, levels: int = 1) -> float:
    """Part of 8-bit values that are at most so many levels off."""
    return float(np.mean(np.abs(ours.astype(int) - exact) <= levels))


def decoders(scene: Scene, rows: slice) -> None:
    """Their table."""
    exact = scene.pictures(EXACTLY)
    print("| decoder | equal | within a level | within two |\n|---|---|---|---|")
    for name, how in list(DECODERS.items())[rows]:
        pictures = scene.pictures(how)
        print(f"| {name} | " + " | ".join(f"{within(pictures, exact, n):.3%}" for n in (0, 1, 2)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", help="of the denoisers, those with this in their name; no decoders")
    parser.add_argument("--tiny", action="store_true", help="noise, no run, a row each: only to see that it works")
    args = parser.parse_args()
    rows = slice(1) if args.tiny else slice(None)
    scene = Scene(len(PROMPTS) if args.tiny else args.pictures, args.steps)
    if args.tiny:
        scene.latents = np.random.default_rng(1).standard_normal((2, 12, 12, 8), np.float32)
    if not args.only:
        decoders(scene, rows)
    base, changes = scene.predictions(EXACTLY)
    sizes = " and ".join(f"{rms(change, base):.1%}" for change in changes)
    print(f"\nThe LoRA changes predictions by {sizes}\n")
    print("| denoiser | a prediction | a weak LoRA's change | a strong one's | a run's latents |")
    print("|---|---|---|---|---|")
    for name, how in list(DENOISERS.items())[rows]:
        if args.only and args.only not in name:
            continue
        found, changed = scene.predictions(how)
        wrong = [rms(found - base, base)]
        wrong += [rms(theirs - exact, exact) for theirs, exact in zip(changed, changes, strict=True)]
        wrong += [] if args.tiny else [rms(scene.run(how) - scene.latents, scene.latents)]
        print(f"| {name} | " + " | ".join(f"{x:.2%}" for x in wrong) + " |", flush=True)


if __name__ == "__main__":
    main()
