"""How much of a job's time its devices have nothing to do: prompts, noise, fetching, PNG, writing, records.

    python -m benchmarks.batch_overhead                       # 96 pictures of the built-in model
    python -m benchmarks.batch_overhead --pictures 512 --steps 10 --batch 16 --latency 0.02
    python -m benchmarks.batch_overhead --chunks 3            # prompts of all lengths, from a few words to 200 tokens

The job is drawn into a temporary folder as `autolora batch` does it, once with two prompts for all pictures and once
with a prompt for each, all of which are new to the pipeline; what compiles has been compiled before. The device is
in_order's stand-in for an accelerator.

idle: the share of the time from its first program to its last in which none ran. overhead: the share of the whole job's
time, from planning to the manifest, that is not its programs'. run says: the idle share that the run itself tells, from
when batches were given to the devices and when they were drawn.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from autolora_jax.batch import Artist, Job, Settings, open_work, run
from autolora_jax.settings import Lora, ModelConfig
from benchmarks.in_order import InOrder, in_order

COLOURS, PLACES = ("red", "green", "blue", "white"), ("forest", "city", "desert", "snow")


class Measured(NamedTuple):
    """Of one job. idle, overhead, said: shares, see above."""

    seconds: float
    programs: int
    idle: float
    overhead: float
    said: float


def prompts(count: int, number: int, chunks: int) -> tuple[str, ...]:
    """So many, other ones for every number; of all lengths that so many chunks hold, if these are several."""
    lengths = [41 * i % (75 * chunks - 40) if chunks > 1 else 0 for i in range(count)]  # tokens; ", zib" is four
    heads = (f"a {COLOURS[i % 4]} zib in the {PLACES[i // 4 % 4]}, {i} of {number}" for i in range(count))
    return tuple(head + ", zib" * (length // 4) for head, length in zip(heads, lengths, strict=True))


def measured(device: InOrder, artist: Artist, job: Job) -> Measured:
    """The job, drawn into a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        work = open_work(job, Path(folder) / "out")
        device.seconds.clear()
        begun = time.perf_counter()
        summary = run(work, artist)
        work.finish()
        seconds = time.perf_counter() - begun
    assert summary.ok == len(work.plan)
    return Measured(seconds, len(device.seconds), device.idle(), 1 - device.busy() / seconds, summary.idle_share)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--prompts", type=int, nargs="+", help="how many, of each job (default: 2, and one a picture)")
    parser.add_argument("--chunks", type=int, default=1, help="of 75 tokens that prompts fill, each to another extent")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=8, help="pictures per device")
    parser.add_argument("--latency", type=float, default=0.005, help="seconds that an answer takes to the host")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a few small pictures: only to see that it works")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.pictures, options.steps, options.size, options.batch, options.rounds = 8, 2, 32, 2, 1

    def job(count: int, number: int) -> Job:
        return Job(
            prompts=prompts(count, number, options.chunks),
            seeds=range(options.pictures // count),
            settings=Settings(
                model=ModelConfig(dtype="float32"),
                loras=(Lora("builtin:character"),),
                num_inference_steps=options.steps,
                size=(options.size, options.size),
                prompt_chunks=options.chunks,
            ),
            batch_size=options.batch,
        )

    device_kind = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    print(f"{options.pictures} pictures, {options.steps} steps, batches of {options.batch}, {device_kind} in order")
    print("| prompts | seconds | programs | idle | overhead | run says |\n|---|---|---|---|---|---|")
    with in_order(options.latency) as device:
        artist = Artist()
        for count in options.prompts or (2, options.pictures):
            measured(device, artist, job(count, 0))  # compiles
            found = [measured(device, artist, job(count, 1 + i)) for i in range(options.rounds)]
            middle = Measured(*(statistics.median(values) for values in zip(*found, strict=True)))
            shares = " | ".join(f"{share:.2%}" for share in (middle.idle, middle.overhead, middle.said))
            print(f"| {count} | {middle.seconds:.2f} | {middle.programs} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
