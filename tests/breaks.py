"""Wrong edits of the library, and whether the tests notice: `python -m tests.breaks [NUMBER …] [--all]`.

Each row of BREAKS is applied alone, to a copy of the repository. Its text is looked for in the whole library, so that a
row outlives a move, and has to be there exactly once. Then pytest runs until the first failure: the test files named
after the broken module, then those that reach it by the fewest imports, because these are the likeliest to notice; the
25 `--nearest` of them, or `--all` there are. So "noticed" is a fact, and "nothing" without `--all` says only that no
near file has. A run that exceeds `--limit` is told as such, not as noticed. Checks of the source's style (test_house)
are left out: they do not run what is broken.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "autolora_jax"
LEFT_OUT = {"test_house.py", "test_breaks.py"}
FEW = 4  # test files


class Break(NamedTuple):
    """A wrong edit: `old`, which is there once, becomes `new`."""

    what: str
    old: str
    new: str


BREAKS = (
    # guidance, and one step of a run
    Break("guidance's interval ends a step late", "int(rule.stop * steps)", "int(rule.stop * steps) + 1"),
    Break(
        "outside its interval AutoLoRA keeps the base's scale",
        "return CFG(self.w2, refresh",
        "return CFG(self.w1, refresh",
    ),
    Break("guidance_rescale is all or nothing", "amount * ratio + (1 - amount)", "ratio"),
    Break("one image without a LoRA takes it from its batch", "scales.any(axis=(0, 3))", "scales.any(3).all(0)"),
    Break("seeds above 32 bits repeat", "[seed >> 32, seed & 0xFFFFFFFF]", "[0, seed & 0xFFFFFFFF]"),
    # schedules
    Break("a linear time shift is taken for an exponential", '"linear": lambda mu: mu', '"linear": math.exp'),
    # networks and pictures
    Break("odd sizes are cut at the wrong end", "x[:, : size[0], : size[1]]", "x[:, -size[0] :, -size[1] :]"),
    Break("the VAE's norms have the UNet's epsilon", "= 1e-6  # of every norm here;", "= 1e-5  # of every norm here;"),
    Break("tiles fade out instead of in", "jnp.broadcast_to(ramp, old.shape)", "jnp.broadcast_to(1 - ramp, old.shape)"),
    Break("a padded key is seen", "(jnp.arange(s) >= k.shape[1])", "(jnp.arange(s) > k.shape[1])"),
    Break("pictures are darker by half a level", "jnp.round(jnp.clip(pixels", "jnp.floor(jnp.clip(pixels"),
    # text
    Break("a long prompt loses one token more", "length - len(begin) - 1", "length - len(begin) - 2"),
    # LoRA files and what they do to a layer
    Break("PEFT's DoRA adds its change unscaled", "gain - 1, s * gain", "gain - 1, gain"),
    Break("a DoRA at 0 is not the base", '{"keep": jnp.where(s == 0, 0, keep)', '{"keep": jnp.where(s < 0, 0, keep)'),
    Break("a layer may be named twice", "in name.shares if share.layer in layers", "in name.shares if False"),
    Break("truncation squares its error once too seldom", "self.max_error**2 * total", "self.max_error * total"),
    # checkpoints
    Break("values may overflow in a smaller dtype", "dtype.itemsize < x.dtype.itemsize and", "False and"),
    Break("a silent scheduler file has SDXL's offset", '"steps_offset": 0', '"steps_offset": 1'),
    # training
    Break("Min-SNR of v is not divided by SNR + 1", "(snr, gamma) / (snr + 1)", "(snr, gamma) / snr"),
    Break("a mirrored crop tells the other edge", "self.target[1] - left if flip else left", "self.target[1] - left"),
    Break("every epoch has the same order", "(len(rows), self.seed, epoch, number)", "(len(rows), self.seed, number)"),
    # evaluation
    Break("the jackknife forgets its factor", "float((blocks - 1) / blocks *", "float(1 / blocks *"),
    Break("the oldest verdict counts", "ORDER BY number DESC", "ORDER BY number ASC"),
    Break("a judge may say one key twice", "len(found) < len(pairs)", "len(found) < 0"),
    Break("a negative figure takes area away", "max(x, 0.0) * (y - top)", "x * (y - top)"),
    Break("plain pictures are no pixel art at all", "total, 1.0), 1 / side)", "total, 1.0), 0.0)"),
    # large jobs
    Break("a gap of one picture is drawn again", "np.diff(items) != 1", "np.diff(items) > 2"),
    Break("what failed before is never drawn again", "found.ok if retry", "found.known if retry"),
    Break("a batch may end one worker more", "self._suspects[number] >= ATTEMPTS", "self._suspects[number] > ATTEMPTS"),
    # the command line
    Break("SIGTERM ends as Ctrl-C does", "Terminated: 143", "Terminated: 130"),
    # roles and few steps
    Break(
        "a worse base acts on the tuned model",
        '"base": 1.0, "weak": 0.0, "lora": 0.0',
        '"base": 0.0, "weak": 0.0, "lora": 1.0',
    ),
    Break("a strength over the steps is its first", "np.linspace(0, 1, len(given)), given)", "np.zeros(1), given[:1])"),
    Break("UniPC corrects what it had leant, too", "gain * (lean - 0.5) / ratio", "gain * lean / ratio"),
    Break(
        "TCD's noise is that of its next level", "/ grid.next_signal) ** 2 - grid.down**2)", "/ grid.next_signal) ** 2)"
    ),
    Break("block weights of block 1 are block 10's", '(?:_\\d+)?(?:/|$)", path)', '", path)'),
    # shares of guidance
    Break(
        "what is kept is gone after a step",
        "held[~due, j] = _row(share.coefficients), 1.0",
        "held[~due, j] = _row(share.coefficients), 0.5",
    ),
    Break("projection takes the wrong part", "kept * (forms.parallel - 1) * along", "kept * forms.parallel * along"),
    Break(
        "skip-layer guidance holds on its first edge, too",
        "range(zeroed, steps) if skip.start * steps <",
        "range(zeroed, steps) if skip.start * steps <=",
    ),
    Break("a skipped layer changes the text", "jnp.where(out, given[1], text)", "text"),
    Break("steps of zero end a step late", "max(begin, zeroed) : end", "max(begin, zeroed + (zeroed > 0)) : end"),
    # LoRAs as they are spelled
    Break(
        "pictures of a batch share block weights",
        "zip(sources, self.roles, self.blocks",
        "zip(sources, self.roles, self.roles",
    ),
)


def find(text: str) -> Path:
    """The library's file that holds this text. Raises LookupError unless it is there exactly once."""
    counts = {path: path.read_text(encoding="utf-8").count(text) for path in (ROOT / LIBRARY).rglob("*.py")}
    found = [path for path, count in counts.items() if count]
    if sum(counts.values()) != 1:
        there = ", ".join(f"{path.relative_to(ROOT)} ({counts[path]} times)" for path in found) or "nowhere"
        raise LookupError(f"{text!r} should be in {LIBRARY} exactly once, and is there: {there}")
    return found[0].relative_to(ROOT)


def nearest(path: Path) -> list[str]:
    """The test files, those that reach a module by the fewest imports first."""
    users: dict[Path, set[Path]] = {}
    for user in (*(ROOT / LIBRARY).rglob("*.py"), *(ROOT / "tests").glob("*.py")):
        if user.name not in LEFT_OUT:
            for used in _imported(user):
                users.setdefault(used, set()).add(user)
    distance, queue = {ROOT / path: 0}, deque([ROOT / path])
    while queue:
        module = queue.popleft()
        # A test's helpers and a package's __init__ hand on what they import: they are no step of their own.
        further = distance[module] + 1
        for user in sorted(users.get(module, set()) - distance.keys()):
            helper = user.parent.name == "tests" and not user.name.startswith("test_")
            handed_on = helper or user.name == "__init__.py"
            distance[user] = further - handed_on
            (queue.appendleft if handed_on else queue.append)(user)
    tests = [path for path in (ROOT / "tests").glob("test_*.py") if path.name not in LEFT_OUT]

    def likeliness(test: Path) -> tuple[bool, int, bool, str]:
        words = {word[:6] for word in test.stem.split("_")}
        far = distance.get(test, len(distance))
        return path.stem[:6] not in words, far, path.parent.name[:6] not in words, test.name

    return [str(test.relative_to(ROOT)) for test in sorted(tests, key=likeliness)]


def _imported(path: Path) -> Iterator[Path]:
    """The repository's modules that a file imports by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            for dotted in (name, name.rpartition(".")[0]):
                module = ROOT.joinpath(*dotted.split("."))
                if file := next((f for f in (module.with_suffix(".py"), module / "__init__.py") if f.is_file()), None):
                    yield file
                    break


def run(row: Break, tests: Sequence[str], limit: float | None = None) -> str | None:
    """The first test that fails where a break is applied; None: none does."""
    path = find(row.old)
    with tempfile.TemporaryDirectory(prefix="breaks-") as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "build"))
        if (ROOT.parent / "shared").exists():
            (Path(folder) / "shared").symlink_to(ROOT.parent / "shared")
        text = (copy / path).read_text(encoding="utf-8")
        (copy / path).write_text(text.replace(row.old, row.new), encoding="utf-8")
        try:
            # The likeliest few first: the others' imports alone take longer than those.
            return _first_failure(copy, tests[:FEW], limit) or _first_failure(copy, tests[FEW:], limit)
        except subprocess.TimeoutExpired:
            return f"(nothing failed within {limit:.0f} s)"


def _first_failure(copy: Path, tests: Sequence[str], limit: float | None) -> str | None:
    if not tests:
        return None
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", *tests],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=limit,
    )
    if done.returncode in (0, 5):
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if not failed:
        raise RuntimeError(f"pytest failed without a failing test:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return failed[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="of the breaks, from 1; none: all")
    parser.add_argument("--nearest", type=int, default=25, help="test files that may notice")
    parser.add_argument("--all", action="store_true", help="all test files may notice")
    parser.add_argument("--limit", type=float, help="seconds a break")
    parser.add_argument("--out", type=Path, help="markdown file; else stdout")
    asked = parser.parse_args()
    for row in BREAKS:
        find(row.old)  # before hours of tests
    lines = ["| | break | in | noticed by | seconds |", "|---|---|---|---|---|"]
    for number in asked.numbers or range(1, len(BREAKS) + 1):
        row, path = BREAKS[number - 1], find(BREAKS[number - 1].old)
        tests = nearest(path)[: None if asked.all else asked.nearest]
        started = time.monotonic()
        by = run(row, tests, asked.limit)
        noticed = f"`{by.removeprefix('tests/')}`" if by else f"**nothing** in {len(tests)} files"
        seconds = time.monotonic() - started
        lines.append(f"| {number} | {row.what} | `{path.relative_to(LIBRARY)}` | {noticed} | {seconds:.0f} |")
        print(lines[-1], file=sys.stderr)
        if asked.out:
            asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not asked.out:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
