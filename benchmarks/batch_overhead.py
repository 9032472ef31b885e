"""What a job costs beside its device programs: prompts, noise, fetching, PNG, writing, records.

    python -m benchmarks.batch_overhead                       # 96 pictures of the built-in model
    python -m benchmarks.batch_overhead --pictures 512 --steps 10 --batch 16

The job is drawn into a temporary folder as `autolora batch` does it. Then the device programs of its batches are run
again, one after the other, with the arguments they had, and nothing else. The overhead is the share of the job's time
(loading and compiling left out) that this does not take; `idle` is what the run itself says, from when batches were
given to the devices and when they were drawn. Where the CPU is the device, both also say what they take of its time:
that tells the same on a busy machine, though work that idle cores could do beside the device counts in full there.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from autolora_jax import pipeline
from autolora_jax.batch import Artist, Job, Settings, Summary, open_work, run
from autolora_jax.presets import Lora, ModelConfig, SamplerConfig

Programs = list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]


def recorded(function: Callable[..., Any], calls: Programs) -> Callable[..., Any]:
    """The function, noting what it is called with."""

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append((function, arguments, options))
        return function(*arguments, **options)

    return call


class Seconds(NamedTuple):
    """On the clock, and of all CPU cores."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Seconds":
        return cls(time.perf_counter(), time.process_time())

    def since(self, begun: "Seconds") -> "Seconds":
        return Seconds(self.wall - begun.wall, self.cpu - begun.cpu)


def replay(calls: Programs) -> Seconds:
    """What the programs take, each waiting for the one before."""
    begun = Seconds.now()
    for function, arguments, options in calls:
        jax.block_until_ready(function(*arguments, **options))
    return Seconds.now().since(begun)


def draw(job: Job, artist: Artist) -> tuple[Summary, Seconds]:
    """The job, drawn into a new folder, and what that took from planning to its manifest."""
    with tempfile.TemporaryDirectory() as folder:
        work = open_work(job, Path(folder) / "out")
        begun = Seconds.now()
        summary = run(work, artist)
        work.finish()
        return summary, Seconds.now().since(begun)


def measure(job: Job, rounds: int) -> list[tuple[Summary, Seconds, Seconds]]:
    """(what a run did, what it took, what its device programs take), of so many rounds after one that compiles."""
    calls: Programs = []
    pipeline.sample, pipeline.decode = recorded(pipeline.sample, calls), recorded(pipeline.decode, calls)
    artist = Artist()
    draw(job, artist)
    found = []
    for _ in range(rounds):
        calls.clear()
        found.append((*draw(job, artist), replay(calls)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=8, help="pictures per device")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prompts = ("a zib in the forest at night", "a red cat in the city")
    job = Job(
        prompts=prompts,
        seeds=range(options.pictures // len(prompts)),
        settings=Settings(
            model=ModelConfig(dtype="float32"),
            loras=(Lora("builtin:character"),),
            sampler=SamplerConfig(options.steps),
            size=(options.size, options.size),
        ),
        batch_size=options.batch,
    )
    shares = []
    for summary, whole, alone in measure(job, options.rounds):
        share = Seconds(*(1 - part / all_ for part, all_ in zip(alone, whole, strict=True)))
        shares.append(share)
        print(
            f"{summary.ok} pictures in {whole.wall:.2f} s, device programs alone {alone.wall:.2f} s: overhead "
            f"{share.wall:.1%}; of the CPU's time {share.cpu:.1%}; devices idle {summary.idle_share:.1%}"
        )
    wall, cpu = (statistics.median(values) for values in zip(*shares, strict=True))
    device = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    print(f"median overhead {wall:.1%}, of the CPU's time {cpu:.1%}, on {device}")


if __name__ == "__main__":
    main()
