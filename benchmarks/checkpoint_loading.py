"""What loading a whole SDXL costs, against reading its bytes and no more.

    python -m benchmarks.checkpoint_loading                        # all three forms in bfloat16; 14 GB of disk
    python -m benchmarks.checkpoint_loading --forms folder --stored float16

The files have SDXL's names and shapes and random bytes (the VAE's float32), are just written, and so in the page cache.
Each row is a process of its own, of which what follows its imports counts; of several the one with the fewest CPU
seconds.

kept: every file read into memory of its own, which is the least that a loader onto the CPU does.
drained: every file read through a buffer of a megabyte, which is the least for any other device.
folder, file, orbax: open_checkpoint, and every component loaded in bfloat16, the VAE in float32.

CPU: seconds of all threads. opening: those of them until the first weight is read. Peak: memory of its own (RssAnon,
without what is mapped from files) above what the imports took, and above the bytes of all parameters.
"""

import argparse
import dataclasses
import json
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
FORMS = ("folder", "file", "orbax")
POOL = 1 << 25  # random bytes, repeated
BUFFER = 1 << 20
LOOKS = 0.005  # seconds between two looks at a process's memory


class Measured(NamedTuple):
    """Of one process. peak: bytes."""

    seconds: float
    cpu: float
    opening: float
    peak: int
    parameters: int


# ---- the files -------------------------------------------------------------------------------------------------------


def random_weights(pool: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Any bits but those of NaN, infinity and numbers near them: the exponent's highest bit is 0."""
    bits = np.resize(np.frombuffer(pool, f"u{dtype.itemsize}"), shape)
    return (bits & ~bits.dtype.type(1 << 8 * dtype.itemsize - 2)).view(dtype)


def networks_of(tiny: bool) -> Mapping[str, Any]:
    """SDXL's, or, to see that it works, those of the built-in model, its latents with SDXL's four channels."""
    from autolora_jax.demo import MODEL
    from autolora_jax.weights.checkpoint import open_checkpoint
    from autolora_jax.weights.published import SDXL_BASE

    if not tiny:
        return SDXL_BASE
    small = open_checkpoint(MODEL).networks
    unet = dataclasses.replace(small["unet"], in_channels=4, out_channels=4)
    return {**small, "unet": unet, "vae": dataclasses.replace(small["vae"], latent_channels=4)}


def write(form: str, out: Path, stored: str, tiny: bool) -> None:
    """A model in one of the forms."""
    from autolora_jax.demo import MODEL
    from autolora_jax.models.networks import shapes_of
    from autolora_jax.weights import folder_writing, ldm
    from autolora_jax.weights.checkpoint import open_checkpoint
    from autolora_jax.weights.rules import flat_shapes
    from autolora_jax.weights.tables import export_leaf
    from autolora_jax.weights.writing import stream_safetensors

    pool = np.random.default_rng(0).bytes(POOL)
    checkpoint = dataclasses.replace(open_checkpoint(MODEL), networks=networks_of(tiny))  # with its tokenizers

    def leaves_of(component: str, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
        for path, shape in flat_shapes(shapes_of(checkpoint.networks[component])).items():
            yield path, random_weights(pool, shape, dtype)

    if form != "file":
        kind = "diffusers" if form == "folder" else "orbax"
        folder_writing.write_folder(out, checkpoint, kind, stored, leaves_of, "random bytes")
        return
    renamed = {"unet": ldm.ldm_module_name, "vae": ldm.ldm_vae_module_name}  # CLIP's may be transformers' own
    tensors: dict[str, tuple[int, ...]] = {}
    for component, config in checkpoint.networks.items():
        for path, shape in flat_shapes(shapes_of(config)).items():
            name, leaf = export_leaf(path, np.broadcast_to(np.float32(0), shape))
            module, _, kind = name.rpartition(".")
            module = renamed[component](module, config) if component in renamed else module
            tensors[f"{ldm.PREFIXES[component]}{module}.{kind}"] = leaf.shape
    dtype = DTYPES[stored]
    stream_safetensors(out, tensors, dtype, ((n, random_weights(pool, s, dtype)) for n, s in tensors.items()))


# ---- what is measured, each in a process of its own ------------------------------------------------------------------


def files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def keep(path: Path, tiny: bool) -> tuple[float, Any]:
    """Every file's bytes, kept."""
    kept = []
    for file in files_of(path):
        with file.open("rb", buffering=0) as opened:
            kept.append(np.empty(file.stat().st_size, np.uint8))
            view = memoryview(kept[-1])
            while view and (count := opened.readinto(view)):
                view = view[count:]
    return 0.0, kept


def drain(path: Path, tiny: bool) -> tuple[float, Any]:
    """Every file's bytes, through a buffer."""
    buffer = bytearray(BUFFER)
    for file in files_of(path):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return 0.0, None


def load(path: Path, tiny: bool) -> tuple[float, Any]:
    """The parameters on the device."""
    import jax

    from autolora_jax.weights.checkpoint import open_checkpoint

    networks = networks_of(tiny) if path.is_file() else None
    begun = time.process_time()
    checkpoint = open_checkpoint(path, networks=networks)
    opening = time.process_time() - begun
    params = {name: checkpoint.load(name, "float32" if name == "vae" else "bfloat16") for name in checkpoint.networks}
    return opening, jax.block_until_ready(params)


WORKS: Mapping[str, Callable[[Path, bool], tuple[float, Any]]] = {"kept": keep, "drained": drain, "load": load}


def work(name: str, path: Path, tiny: bool) -> None:
    """Does one thing, tells what it took, and waits to be let go: its memory is being watched."""
    if name == "load":
        import jax

        import autolora_jax.weights.checkpoint  # noqa: F401

        jax.devices()
    print("ready", flush=True)
    sys.stdin.readline()
    wall, cpu = time.perf_counter(), time.process_time()
    opening, result = WORKS[name](path, tiny)
    told = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "opening": opening}
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(result)) if name == "load" else 0
    print(json.dumps({**told, "parameters": parameters}), flush=True)
    sys.stdin.readline()


def own_memory(pid: int) -> int:
    """Bytes of a process's memory that are of no file."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def measured(name: str, path: Path, tiny: bool) -> Measured:
    command = [sys.executable, "-m", "benchmarks.checkpoint_loading", "--work", name, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *(["--tiny"] if tiny else [])], **pipes) as child:
        assert child.stdin and child.stdout
        try:
            assert child.stdout.readline() == "ready\n", f"{name} failed"
            before = peak = own_memory(child.pid)
            child.stdin.write("go\n")
            child.stdin.flush()
            ready, _, _ = select.select([child.stdout], [], [], LOOKS)
            while not ready:
                peak = max(peak, own_memory(child.pid))
                ready, _, _ = select.select([child.stdout], [], [], LOOKS)
            told = child.stdout.readline()
            assert told, f"{name} failed"
            peak = max(peak, own_memory(child.pid))
        finally:
            child.stdin.close()
    return Measured(peak=peak - before, **json.loads(told))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="default: all")
    parser.add_argument("--stored", choices=list(DTYPES), default="bfloat16", help="what the files hold")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", type=Path, help="a folder for the files, which stay; default: a temporary one")
    parser.add_argument("--tiny", action="store_true", help="the built-in model's folder: only to see that it works")
    parser.add_argument("--work", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.work:
        work(args.work[0], Path(args.work[1]), args.tiny)
        return
    print("| | GB | seconds | CPU | of them opening | CPU, of kept | of drained | peak above parameters |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for form in args.forms or (FORMS[:1] if args.tiny else FORMS):
            path = (args.place or Path(temporary)) / (f"{form}.safetensors" if form == "file" else form)
            if not path.exists():
                write(form, path, args.stored, args.tiny)
            table(form, path, 1 if args.tiny else args.rounds, args.tiny)
            if args.place is None:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def table(form: str, path: Path, rounds: int, tiny: bool) -> None:
    """The rows of one form. Rounds take turns, so that what else the machine does falls on all of them."""
    runs = [{name: measured(name, path, tiny) for name in WORKS} for _ in range(rounds)]
    best = {name: min((run[name] for run in runs), key=lambda found: found.cpu) for name in WORKS}
    size = sum(file.stat().st_size for file in files_of(path))
    for name, found in best.items():
        shares = " | ".join(f"{found.cpu / max(best[plain].cpu, 1e-9):.1f}" for plain in ("kept", "drained"))
        above = f"{(found.peak - found.parameters) / 1e9:.2f} GB, {(found.peak - found.parameters) / size:.0%}"
        row = f"{size / 1e9:.2f} | {found.seconds:.2f} | {found.cpu:.2f} | {found.opening:.2f} | {shares}"
        print(f"| {form}: {name} | {row} | {above if name == 'load' else ''} |", flush=True)


if __name__ == "__main__":
    main()
