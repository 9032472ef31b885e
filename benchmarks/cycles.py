"""Where a compiled TPU program's cycles go, as its compiler counts them.

XLA for TPU writes `estimated_cycles` beside every operation of the program it has optimised. Pallas kernels have none:
theirs are the bundles of their schedule, which the compiler writes into a folder if asked before it is loaded, times
the steps of their grid. A loop's body counts once.
"""

import dataclasses
import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ", re.MULTILINE)
OP_NAME = re.compile(r'op_name="([^"]*)"')
KERNEL = re.compile(
    r"bf16\[(?:(\d+),)?(\d+),(\d+),\d+\][^\]]*\) custom-call\(.*tpu_custom_call.*?"  # [b h t d]
    r"operand_layout_constraints=\{(?:s\d+\[[\d,]*\]\{[\d,]*\}, )*(?:bf16|f32)\[[\d,]*\]\{[\d,]*\}, "  # queries
    r"(?:bf16|f32)\[[\d,]*,(\d+)\].*?"  # keys, [... d s]
    r'block_q\\": (\d+), \\"block_kv\\": (\d+)',
    re.DOTALL,
)
BUNDLES = re.compile(r"total scheduled bundles:\s+(\d+)")
# What an operation is, by its own name or the path of modules in its op_name; the first that is found.
REGIONS = {
    "attention kernels": (r"splash_mha\w*", r"pallas_call"),
    "merges": (r"", r"/merge/"),
    "copies": (r"(copy|transpose|pad|bitcast)[\w.\-]*", r""),
    "feed-forward": (r"", r"/ff(_context)?/"),
    "norms": (r"", r"/norm\w*/"),
    "attention's products": (r"", r"/attn\d?/"),
    "resnets": (r"", r"/resnets_\d+/|ResnetBlock2D/"),
    "the rest": (r"", r""),
}
# 2 · multipliers of a core's matrix units: floating-point operations a cycle, bfloat16.
PEAK = {"v5e": 2 * 4 * 128**2, "v6e": 2 * 4 * 256**2}


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Millions of cycles of a program on one chip."""

    regions: dict[str, float]
    unknown_kernels: int  # whose schedule was not found: not in the sum
    floor: float  # of the products alone, at the matrix units' peak

    @property
    def total(self) -> float:
        return sum(self.regions.values())

    @property
    def roofline(self) -> float:
        """Part of the cycles that the products need at least."""
        return self.floor / self.total

    def __str__(self) -> str:
        """A row of figures under the regions' names."""
        parts = " | ".join(f"{self.regions.get(name, 0.0):.2f}" for name in REGIONS)
        missing = f" without {self.unknown_kernels} kernels" if self.unknown_kernels else ""
        return f"{self.total:.2f}{missing} | {parts} | {self.roofline:.0%}"


class Schedules:
    """Context: the folder into which libtpu writes the schedules of Pallas kernels. Enter before JAX loads libtpu."""

    def __enter__(self) -> "Schedules":
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name)
        wanted = {"dump_to": self.path, "dump_llo_text": "true", "dump_llo_pass_label_regex": "final_bundles"}
        flags = [f"--xla_jf_{name}={value}" for name, value in wanted.items()]
        os.environ["LIBTPU_INIT_ARGS"] = " ".join([os.environ.get("LIBTPU_INIT_ARGS", ""), *flags]).strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def take(self, name: str) -> int | None:
        """Bundles of a kernel's schedule in the program compiled last, None if it is not there."""
        reports = sorted(self.path.glob(f"*-{name}-*schedule-analysis_final*"), key=lambda file: file.stat().st_mtime)
        found = BUNDLES.search(reports[-1].read_text()) if reports else None
        return int(found[1]) if found else None

    def clear(self) -> None:
        for file in self.path.iterdir():
            file.unlink()


def count(compiled: Any, chip: str, flop: float, schedules: Schedules | None = None) -> Cycles:
    """Cycles of a compiled program.

    chip: "v5e", "v6e" or a topology of them. flop: what its products take, those inside of kernels included.
    """
    regions: Counter[str] = Counter()
    unknown = 0
    known: dict[tuple[str, ...], int] = {}  # equal kernels are scheduled once
    for operation in _operations(compiled.as_text()):
        name = OPERATION.match(operation)
        assert name is not None
        estimate, path = ESTIMATE.search(operation), OP_NAME.search(operation)
        cycles = int(estimate[1]) if estimate else 0
        if kernel := KERNEL.search(operation):
            batch, heads, queries, keys, block_q, block_kv = (int(n or 1) for n in kernel.groups())
            steps = batch * heads * (queries // block_q) * (keys // block_kv)
            bundles = schedules.take(name[1]) if schedules else None
            bundles = known.setdefault(kernel.groups(), bundles) if bundles else known.get(kernel.groups())
            unknown += bundles is None
            cycles = steps * (bundles or 0)
        elif "tpu_custom_call" in operation:
            unknown += 1
        regions[_region(name[1], path[1] if path else "")] += cycles
    millions = {name: cycles / 1e6 for name, cycles in regions.items()}
    return Cycles(millions, unknown, flop / PEAK[chip.partition(":")[0]] / 1e6)


def _operations(text: str) -> list[str]:
    """The text of every operation, over several lines where a kernel's attributes are."""
    starts = [found.start() for found in OPERATION.finditer(text)]
    return [text[a:b].lstrip() for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def _region(name: str, path: str) -> str:
    return next(
        region
        for region, (own, within) in REGIONS.items()
        if re.match(own, name) and re.search(within, path) and (own or within or region == "the rest")
    )
