"""What loading a LoRA onto a ready SDXL costs, stage by stage, against reading the file's bytes and no more.

    python -m benchmarks.lora_loading                       # plain, 722 modules, rank 32: 170 MB
    python -m benchmarks.lora_loading --kinds lora loha lokr dora

The model is the published SDXL's names and shapes; its weights are not needed, except for DoRA, which is measured on
as many layers as DORA_BYTES of base kernels allow. Files are random, just written, and so in the page cache. Of several
repetitions the fastest counts; a machine that does something else shows.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

from autolora_jax import lora
from autolora_jax.weights.lora.export import write_lora
from autolora_jax.weights.lora.files import read_lora, targets_of
from autolora_jax.weights.lora.kinds import Change
from autolora_jax.weights.lora.kinds.dora import Magnitude
from autolora_jax.weights.lora.kinds.loha import Hadamard
from autolora_jax.weights.lora.kinds.lokr import Kronecker
from autolora_jax.weights.lora.kinds.low_rank import LowRank
from autolora_jax.weights.lora.names import Layer, layers
from autolora_jax.weights.published import SDXL_BASE

DORA_BYTES = 5e8
Random = np.random.Generator


def normal(rng: Random, *shape: int) -> np.ndarray:
    return (0.02 * rng.standard_normal(shape, np.float32)).astype(np.float16)


def low_rank(rng: Random, layer: Layer, rank: int) -> LowRank:
    inputs, outputs = layer.kernel[-2:]
    return LowRank(normal(rng, inputs, rank), normal(rng, rank, outputs), alpha=rank / 2)


def kronecker(rng: Random, layer: Layer, factor: int) -> Kronecker:
    inputs, outputs = layer.kernel[-2:]
    return Kronecker(normal(rng, factor, factor), normal(rng, inputs // factor, outputs // factor))


def dora(rng: Random, layer: Layer, rank: int) -> Change:
    return Change(low_rank(rng, layer, rank), Magnitude(1 + normal(rng, layer.kernel[-1]), "outputs", "lycoris"))


# kind -> a layer's change. LoHa's two pairs at half the rank, and LoKr at factor 8, are files of about the same size.
KINDS: Mapping[str, Callable[[Random, Layer, int], Change]] = {
    "lora": lambda rng, layer, rank: Change(low_rank(rng, layer, rank)),
    "loha": lambda rng, layer, rank: Change(
        Hadamard(low_rank(rng, layer, rank // 2), low_rank(rng, layer, rank // 2), alpha=rank / 4)
    ),
    "lokr": lambda rng, layer, rank: Change(kronecker(rng, layer, 8)),
    "dora": dora,
}


def part_with_weights(all_layers: list[Layer]) -> tuple[list[Layer], dict[str, Any]]:
    """Some of the layers, spread over the network, and base kernels for them."""
    step = max(1, round(2 * sum(np.prod(layer.kernel) for layer in all_layers) / DORA_BYTES))
    chosen = all_layers[::step]
    ones = {shape: np.ones(shape, jnp.bfloat16) for shape in {layer.kernel for layer in chosen}}
    flat = {(layer.component, *layer.path.split("/"), "kernel"): ones[layer.kernel] for layer in chosen}
    return chosen, traverse_util.unflatten_dict({key: jnp.asarray(kernel) for key, kernel in flat.items()})


def measured(path: Path, targets: Any, base: Any) -> dict[str, float]:
    """stage -> seconds, of loading the file once."""
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def done(stage: str) -> None:
        nonlocal start
        seconds[stage] = time.perf_counter() - start
        start = time.perf_counter()

    load_file(path)
    done("the file's bytes: safetensors.numpy.load_file")
    file = read_lora(path, targets)
    done("read_lora: names, checks, tensors")
    trees, _ = lora.attach(file, jnp.bfloat16, base)
    done("attach: our layout, bfloat16")
    room = lora.padded(lora.stack([trees["unet"]]), targets["unet"][0])
    done("stack, room for other ranks")
    jax.block_until_ready(jax.device_put(room))
    done("onto the device")
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=["lora"])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a few modules of every kind: only to see that it works")
    args = parser.parse_args(arguments)
    if args.tiny:
        args.kinds, args.rank, args.repeats = list(KINDS), 2, 1
    targets = {name: target for name, target in targets_of(SDXL_BASE).items() if name == "unet"}
    _, config = targets["unet"]
    adapted = [layer for layer in layers(targets) if "/attentions_" in layer.path][:: 90 if args.tiny else 1]
    for kind in args.kinds:
        chosen, base = part_with_weights(adapted) if kind == "dora" else (adapted, None)
        rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{kind}.safetensors"
            write_lora(path, {x: KINDS[kind](rng, x, args.rank) for x in chosen}, "kohya", None, config)
            size, runs = path.stat().st_size, [measured(path, targets, base) for _ in range(args.repeats)]
        best = {stage: min(run[stage] for run in runs) for stage in runs[0]}
        plain, *ours = best.values()
        share = f" of {len(adapted)}" if len(chosen) < len(adapted) else ""
        print(f"\n{kind}: {len(chosen)}{share} modules, {size / 1e6:.0f} MB, {jax.devices()[0].device_kind}")
        print("| | seconds |\n|---|---|")
        for stage, seconds in (*best.items(), ("**loading**, all but the first", sum(ours))):
            print(f"| {stage} | {seconds:.3f} |")
        print(f"loading / reading the bytes: {sum(ours) / plain:.1f}")


if __name__ == "__main__":
    main()
