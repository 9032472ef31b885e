"""What XLA's CUDA compiler makes of the full-size programs: memory, kernels, bytes and FLOPs, without a GPU.

    python -m benchmarks.gpu_compile                                       # SDXL on an H100, 4 images, all programs
    python -m benchmarks.gpu_compile --model sd3-medium --gpu h200 --batch 1
    python -m benchmarks.gpu_compile --program step --model sd3.5-large --batch 1
    python -m benchmarks.gpu_compile --program blocks                      # which compile in seconds
    python -m benchmarks.gpu_compile --program training --devices 4 --batch 1
    python -m benchmarks.gpu_compile --target a100.txtpb                   # another GPU, as XLA describes it

Compiles ahead of time (gpus.py says what that needs). No kernel is tuned, which takes a GPU: tiles are XLA's defaults,
and a run may take a library's product where this has Triton's. What is read and written, kernel by kernel, is
kernels.py's count; "at best" is the sum over kernels of what memory or matrix units need at full speed, whichever is
slower: a floor that no run reaches, to compare programs by. It is no measured time.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh

from autolora_jax.settings.rules import AutoLoRA
from benchmarks import gpus
from benchmarks.kernels import LOGITS, Kernel, arrays, kernels, size
from benchmarks.programs import (
    BLOCKS,
    MODELS,
    NETWORKS,
    ROOM,
    lower_block,
    lower_decoder,
    lower_encoder,
    lower_forward,
    lower_sampler,
    network,
)
from benchmarks.training_program import lower_training, training_network

GB, TERA = 1e9, 1e12
HEADINGS = [
    "model",
    "program",
    "GPU",
    "images",
    "arguments GB",
    "temporaries GB",
    "peak GB",
    "TFLOP",
    "of them attention",
]
HEADINGS += ["moved GB", "merges GB", "at best ms", "cuDNN attentions", "convolutions", "logits MB", "collectives"]
HEADER = "| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|"
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
SIZES = 1024, 1536  # of decoded pictures, pixels
TRAINED_RANK = 16
Programs = Iterator[tuple[str, Any, int]]  # name, lowered program, images a GPU


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one compiled program needs, per GPU."""

    model: str
    program: str
    gpu: str
    images: int
    arguments_gb: float  # weights, delta, prompts, noise
    temporaries_gb: float  # activations; a second copy of the weights would show here
    peak_gb: float
    tflop: float  # of products, convolutions and attentions
    attention_tflop: float  # cuDNN's among them
    moved_gb: float
    merges_gb: float  # moved to make W + down·up
    at_best_ms: float
    attentions: int  # calls of cuDNN's kernel
    convolutions: int  # and of its convolutions
    logits_mb: float  # the largest that another attention writes; a prompt's are 77 wide
    collectives: int
    compile_s: float

    def __str__(self) -> str:
        """A row under HEADER."""
        memory = f"{self.arguments_gb:.2f} | {self.temporaries_gb:.2f} | {self.peak_gb:.2f}"
        work = f"{self.tflop:.2f} | {self.attention_tflop:.2f} | {self.moved_gb:.1f} | {self.merges_gb:.1f}"
        calls = f"{self.attentions} | {self.convolutions} | {self.logits_mb:.0f} | {self.collectives}"
        what = f"{self.model} | {self.program} | {self.gpu} | {self.images}"
        return f"| {what} | {memory} | {work} | {self.at_best_ms:.1f} | {calls} |"


def measure(model: str, program: str, gpu: str, lowered: Any, images: int, keep: str | None = None) -> Compiled:
    """Compiles, and counts. keep: a file for the optimised program's text."""
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if keep:
        with open(keep, "w") as file:
            file.write(text)
    found = kernels(text)
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return Compiled(
        model=model,
        program=program,
        gpu=gpu,
        images=images,
        arguments_gb=memory.argument_size_in_bytes / GB,
        temporaries_gb=memory.temp_size_in_bytes / GB,
        peak_gb=(peak - memory.alias_size_in_bytes) / GB,
        tflop=sum(sum(kernel.flop.values()) for kernel in found) / TERA,
        attention_tflop=sum(kernel.attention for kernel in found) / TERA,
        moved_gb=sum(kernel.moved for kernel in found) / GB,
        merges_gb=sum(kernel.moved for kernel in found if "/merge/" in kernel.path) / GB,
        at_best_ms=1e3 * sum(kernel.seconds(gpus.GPUS[gpu].bandwidth, gpus.PEAK) for kernel in found),
        attentions=sum("__cudnn$fmha" in kernel.target for kernel in found),
        convolutions=sum("__cudnn$conv" in kernel.target for kernel in found),
        logits_mb=max((logits(kernel) for kernel in found), default=0) / 1e6,
        collectives=sum(kernel.name.startswith(COLLECTIVES) and "done" not in kernel.name for kernel in found),
        compile_s=seconds,
    )


def logits(kernel: Kernel) -> int:
    """Bytes of the logits that a kernel writes to memory."""
    return size(kernel.result) if LOGITS in kernel.path and arrays(kernel.result) else 0


def forward(model: str, mesh: Mesh, batch: int, size: int, rank: int) -> Programs:
    """The denoiser once."""
    yield "one forward", lower_forward(network(size, model, "cudnn"), mesh, batch), batch


def step(model: str, mesh: Mesh, batch: int, size: int, rank: int) -> Programs:
    """The sampler's program; tuned weights are merged in it."""
    yield "AutoLoRA step", lower_sampler(network(size, model, "cudnn"), mesh, batch, AutoLoRA(), rank), batch


def kept(model: str, mesh: Mesh, batch: int, size: int, rank: int) -> Programs:
    """The sampler's program, where a copy of the tuned weights is kept."""
    lowered = lower_sampler(network(size, model, "cudnn"), mesh, batch, AutoLoRA(), kept=True)
    yield "AutoLoRA step, tuned weights kept", lowered, batch


def training(model: str, mesh: Mesh, batch: int, size: int, rank: int) -> Programs:
    """A step of a LoRA of the denoiser."""
    denoiser = training_network(size, model, "cudnn")
    yield "LoRA training step", lower_training(model, denoiser, mesh, batch, TRAINED_RANK), batch


def training_text(model: str, mesh: Mesh, batch: int, size: int, rank: int) -> Programs:
    """A step of a LoRA of the denoiser and both CLIP text encoders."""
    denoiser = training_network(size, model, "cudnn")
    lowered = lower_training(model, denoiser, mesh, batch, TRAINED_RANK, text_encoders=True)
    yield "LoRA training step, text encoders too", lowered, batch


def encoders(model: str, mesh: Mesh, batch: int, size: int, rank: int) -> Programs:
    """One text, by each encoder."""
    for name, config in NETWORKS[model].items():
        if name.startswith("text_encoder"):
            t5 = not hasattr(config, "max_position_embeddings")
            yield name, lower_encoder(config, mesh, 256 if t5 else 77, 0 if t5 else rank), 1


def decoders(model: str, mesh: Mesh, batch: int, size: int, rank: int) -> Programs:
    """A batch's pictures, one after another."""
    for side in SIZES if size == SIZES[0] else (size,):
        yield f"decoder {side}²", lower_decoder(NETWORKS[model]["vae"], mesh, batch, side), batch


def blocks(model: str, mesh: Mesh, batch: int, size: int, rank: int) -> Programs:
    """Single blocks at 1024², for the two prompts of every image: base, which is also tuned and kept, and merged."""
    for name in BLOCKS:
        if name != "tiny" and name.startswith("sd3") == model.startswith("sd3"):
            for weights, room in (("base", None), ("merged", rank)):
                yield f"{name}, {weights}", lower_block(name, mesh, 2 * batch, room, "cudnn")[0], batch


PROGRAMS: dict[str, Callable[..., Programs]] = {
    each.__name__: each for each in (forward, step, kept, encoders, decoders, blocks, training, training_text)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=gpus.GPUS, default="h100")
    parser.add_argument("--target", help="a description of another GPU, XLA's *.txtpb; --gpu still says how fast it is")
    parser.add_argument("--devices", type=int, default=1, help="GPUs of one host")
    parser.add_argument("--model", choices=MODELS, action="append", help="repeatable (default: sdxl)")
    parser.add_argument("--program", choices=PROGRAMS, action="append", help="repeatable (default: all)")
    parser.add_argument("--batch", type=int, default=4, help="images a GPU")
    parser.add_argument("--size", type=int, default=1024, help="picture side in pixels")
    parser.add_argument("--rank", type=int, default=ROOM, help="ranks that every layer has room for")
    parser.add_argument("--json", help="also write each row to this file, a line of JSON, as it is made")
    parser.add_argument("--keep", help="also write the compiled programs' texts to files that begin like this")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: only to see that it works")
    args = parser.parse_args()
    if args.tiny:
        args.model, args.batch, args.size = ["tiny"], 1, 64
        args.program = args.program or ["forward", "encoders", "decoders"]  # the others take a minute each
    gpus.cpu_only()
    mesh = gpus.mesh(args.gpu, args.devices, args.target)
    print(HEADER)
    for model in args.model or ["sdxl"]:
        for program in args.program or PROGRAMS:
            for name, lowered, images in PROGRAMS[program](model, mesh, args.batch, args.size, args.rank):
                keep = args.keep and f"{args.keep}{model}-{name.replace(' ', '-')}.txt"
                row = measure(model, name, args.gpu, lowered, images, keep)
                print(row, flush=True)
                print(f"compiled in {row.compile_s:.0f} s", file=sys.stderr)
                if args.json:
                    with open(args.json, "a") as file:
                        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


if __name__ == "__main__":
    main()
