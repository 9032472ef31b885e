"""`autolora batch` as several processes that draw together, without a model.

python -m tests.batch_processes       # reads runs as JSON lines, forks one for each; see batch_jobs.Runs
"""

import dataclasses
import functools
import itertools
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax

import autolora_jax.cli.batch  # noqa: F401  # imported once, not in every run
from autolora_jax.batch import processes, work
from autolora_jax.batch.draw import Draw, Drawing
from autolora_jax.batch.plan import Batch, Row
from autolora_jax.batch.run import run
from autolora_jax.batch.work import Work
from autolora_jax.cli import app
from tests.batch_jobs import FakeSources, Runs, draw, serve

JOB = """
import dataclasses
from tests.batch_jobs import small_job

def get_config():
    return dataclasses.replace(small_job({shard_size}), seeds=range({seeds}))
"""


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclasses.dataclass(frozen=True)
class Told:
    """What came of a process: its exit status, negative: the signal that ended it; what it said; which keys it drew."""

    code: int
    stdout: str
    stderr: str
    drawn: list[str]


class Machines:
    """So many machines."""

    def __init__(self, count: int) -> None:
        self._servers = [Runs("tests.batch_processes") for _ in range(count)]

    def run(self, folder: Path, count: int | None = None, **order: Any) -> list[Told]:
        """Draws tests.batch_jobs.small_job into folder/out.

        order: see `_obey`; a list holds a value for each process.
        """
        servers = self._servers[:count]
        folder.mkdir(exist_ok=True)
        places = [folder / f"{i}-{time.monotonic_ns()}" for i in range(len(servers))]
        common = {"out": str(folder / "out"), "port": free_port(), "count": len(servers), **order}
        for i, server in enumerate(servers):
            own = {name: value[i] if isinstance(value, list) else value for name, value in common.items()}
            server.begin(**{**own, "number": i, "log": str(places[i])})
        codes = [server.end() for server in servers]

        def text(place: Path, kind: str) -> str:
            return place.with_suffix(f".{kind}").read_text()

        return [
            Told(code, text(place, "stdout"), text(place, "stderr"), text(place, "drawn").split())
            for code, place in zip(codes, places, strict=True)
        ]

    def close(self) -> None:
        for server in self._servers:
            server.close()


def _obey(order: Mapping[str, Any]) -> int:
    """Runs the command; see the code for what an order may hold.

    port, count, number: of processes. out: of the job. log: how the files begin that tell what came of it.
    job: text of its file; by default small_job with `seeds` and `shard_size`, drawn without a model.
    devices: of this process. lost_after: see join. pause: seconds that a batch takes.
    ends: [signal, n]: which it sends itself in place of its n-th batch, counted from 0.
    late: seconds that it takes to enter an opened job. flags: by default those that say port, count and number.
    """
    log = Path(order["log"])
    file = log.with_suffix(".py")
    file.write_text(order.get("job") or JOB.format(shard_size=order.get("shard_size"), seeds=order.get("seeds", 5)))
    for number, kind in ((1, "stdout"), (2, "stderr")):
        with log.with_suffix(f".{kind}").open("w") as said:
            os.dup2(said.fileno(), number)
    jax.config.update("jax_num_cpu_devices", order.get("devices", 1))
    processes.LOOK_EVERY = 0.1
    processes.join = functools.partial(processes.join, join_within=20, lost_after=order.get("lost_after", 20))
    with log.with_suffix(".drawn").open("w") as keys:
        if "job" not in order:
            work.Sources = processes.Sources = FakeSources  # type: ignore[misc]
            noted = _noting(keys, order.get("pause", 0.0), *(order.get("ends") or (0, -1)))
            processes.enter = _late(processes.enter, order.get("late", 0.0))
            processes.draw_work = lambda work, batches, *_: run(work, noted, batches)
        where = f"--coordinator-address 127.0.0.1:{order['port']} --num-processes {order['count']}"
        flags = order.get("flags", f"{where} --process-id {order['number']}").split()
        arguments = ["batch", file, "--out", order["out"], *flags]
        try:
            app([str(argument) for argument in arguments], prog_name="autolora")
        except SystemExit as e:
            return int(e.code or 0)
        finally:
            jax.distributed.shutdown()  # as JAX does when a program ends
    raise AssertionError("a command ends by SystemExit")


def _late(enter: Callable[..., Work], seconds: float) -> Callable[..., Work]:
    def entered(*arguments: Any) -> Work:
        time.sleep(seconds)
        return enter(*arguments)

    return entered


def _noting(keys: IO[str], pause: float, number: int, at: int) -> Draw:
    """`draw`, noting keys, until a signal is sent in place of a batch."""
    begun = itertools.count()

    def note(rows: Sequence[Row], batch: Batch) -> Drawing:
        time.sleep(pause)
        if next(begun) == at:
            os.kill(os.getpid(), number)
        print(*(row.key for row in rows), file=keys, flush=True)
        return draw(rows, batch)

    return note


if __name__ == "__main__":
    serve(_obey)
