"""`autolora doctor`: what is here, found out by itself; then what of it makes runs slow, or fail."""

import collections
import dataclasses
import glob
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
from huggingface_hub import constants

from autolora_jax import __version__
from autolora_jax.cli.console import show
from autolora_jax.compilation import keep_programs
from autolora_jax.settings.programs.doctor import Doctor

NAME = "autolora-jax"
GB = 1e9
# Of SDXL: files in half precision, the peak of four pictures at once (docs/reference/performance.md).
SDXL_FILES, SDXL_MEMORY = 7.1, 7.0  # GB
# Extra -> devices that need it, and what shows that a machine has them.
CHIPS = {"cuda": ("an NVIDIA GPU", ("/dev/nvidia[0-9]*",)), "tpu": ("a TPU", ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"))}
# JAX's settings that make programs slow -> what they are there for.
SLOW = {
    "jax_disable_jit": "nothing is compiled",
    "jax_debug_nans": "every result is looked at",
    "jax_enable_x64": "numbers take 64 bits",
}
VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS")  # of the environment, that JAX reads


@dataclasses.dataclass(frozen=True)
class Found:
    """What a machine has. Bytes are GB; None: not known, or not there."""

    versions: Mapping[str, str | None]  # of autolora-jax, Python and what is needed
    extras: Mapping[str, list[str]]  # extra -> its packages that are missing
    devices: Mapping[str, int]  # kind -> how many
    platform: str  # "cpu", "gpu", "tpu"; "none": JAX can't start
    failure: str  # why
    unused: list[str]  # of CHIPS: here, and not used
    device_memory: float | None  # of a device, what JAX may use
    cores: int
    memory: float | None  # of the machine
    available: float | None
    cache: str | None  # where programs are kept
    programs: int | None  # files there; None: a bucket
    programs_size: float | None
    writable: bool
    hub: str
    disk: float  # free, where the hub's files are kept
    token: bool
    offline: bool
    slow_settings: list[str]
    flags: Mapping[str, str]  # environment variables that JAX reads


def run(asked: Doctor) -> int:
    """Prints what is found. 1: something does not work."""
    found = look(asked.compilation_cache)
    problems, advice = [*broken(found)], [*slow(found)]
    if asked.json:
        print(json.dumps({**dataclasses.asdict(found), "broken": problems, "slow": advice}, ensure_ascii=False))
    else:
        rows = [("broken", each) for each in problems] + [("would be slow", each) for each in advice]
        show("What this machine has", [*told(found), *(rows or [("all is well", "")])], red=("broken",))
    return 1 if problems else 0


# ---- what is here --------------------------------------------------------------------------------------------------


def look(place: str | None) -> Found:
    """What this machine has. place: the compilation cache that is asked for."""
    failure, devices = "", []
    try:
        devices = jax.local_devices()
    except RuntimeError as e:
        failure = str(e).strip().splitlines()[0]
    kinds = collections.Counter(device.device_kind for device in devices)
    stats = (devices[0].memory_stats() or {}) if devices else {}
    cache = keep_programs(place)
    local = cache if cache and "://" not in cache else None
    files = [file for file in Path(local).rglob("*") if file.is_file()] if local else []
    hub = constants.HF_HUB_CACHE
    backend = devices[0].platform if devices else "none"
    idle = backend in ("cpu", "none")
    return Found(
        versions={NAME: __version__, "Python": platform.python_version(), **_versions(_required(NAME))},
        extras={extra: _missing(_required(NAME, extra)) for extra in sorted(_extras())},
        devices=dict(kinds),
        platform=backend,
        failure=failure,
        unused=[chip for chip, (_, paths) in CHIPS.items() if idle and any(map(glob.glob, paths))],
        device_memory=_gb(stats.get("bytes_limit")),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=_memory("SC_PHYS_PAGES"),
        available=_memory("SC_AVPHYS_PAGES"),
        cache=cache,
        programs=len([file for file in files if not file.name.endswith("-atime")]) if local or not cache else None,
        programs_size=_gb(sum(file.stat().st_size for file in files)),
        writable=not local or os.access(_existing(Path(local)), os.W_OK),
        hub=hub,
        disk=round(shutil.disk_usage(_existing(Path(hub))).free / GB, 1),
        token=bool(huggingface_hub.get_token()),
        offline=constants.HF_HUB_OFFLINE,
        slow_settings=[name for name in SLOW if getattr(jax.config, name)],
        flags={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def _extras() -> set[str]:
    return {*(_about(NAME).get_all("Provides-Extra") or ())} - {"test", "docs"}


def _required(package: str, extra: str = "") -> list[str]:
    """The packages that one needs, or that an extra of it brings; none where it is not known to be installed."""
    names: list[str] = []
    for line in _about(package).get_all("Requires-Dist") or ():
        of = re.search(r"extra == ['\"]([\w-]+)", line)
        if (of[1] if of else "") == extra and (match := re.match(r"([\w.-]+)(?:\[([\w-]+)\])?", line)):
            name, inner = match.groups()
            names += _required(name, inner) if inner and name != package and package == NAME else [name]
    return names


def _about(package: str) -> Any:
    try:
        return metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return Message()


def _versions(names: list[str]) -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in [*names, "jaxlib"]:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return dict(sorted(versions.items()))


def _missing(names: list[str]) -> list[str]:
    return [name for name, version in _versions(names).items() if version is None and name in names]


def _gb(size: int | None) -> float | None:
    return None if size is None else round(size / GB, 1)


def _memory(name: str) -> float | None:
    known = getattr(os, "sysconf_names", {})
    return _gb(os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")) if name in known else None


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


# ---- what that means -----------------------------------------------------------------------------------------------


def told(found: Found) -> Iterator[tuple[str, str]]:
    """(heading, text) of all that is found."""
    yield "versions", ", ".join(f"{name} {version or 'missing'}" for name, version in found.versions.items())
    yield "extras", ", ".join(extra for extra, missing in found.extras.items() if not missing) or "none"
    yield "extras not here", ", ".join(extra for extra, missing in found.extras.items() if missing) or "none"
    for kind, count in found.devices.items():
        of = f", {found.device_memory} GB each" if found.device_memory else ""
        yield "devices", f"{count} × {kind}{of}"
    yield "machine", f"{found.cores} cores, {found.memory} GB of memory, {found.available} GB of it unused"
    kept = "" if found.programs is None else f": {found.programs} programs, {found.programs_size} GB"
    yield "compilation cache", f"{found.cache}{kept}" if found.cache else "off"
    yield "hub's files", f"{found.hub}, {found.disk} GB of disk free"
    yield "hub", f"{'offline' if found.offline else 'asked'}, {'with' if found.token else 'without'} a token"
    for name, value in found.flags.items():
        yield "environment", f"{name}={value}"


def broken(found: Found) -> Iterator[str]:
    """What does not work, each with what to do."""
    if found.failure:
        yield f"JAX can't start its devices ({found.failure}). JAX_PLATFORMS=cpu does without them"
    if missing := [name for name, version in found.versions.items() if version is None]:
        yield f"{', '.join(missing)}: missing. Install {NAME} again"


def slow(found: Found) -> Iterator[str]:
    """What runs slowly or is likely to fail on such a machine, each with what to do."""
    for chip in found.unused:
        name = CHIPS[chip][0]
        remedy = "unset JAX_PLATFORMS" if found.flags.get("JAX_PLATFORMS") == "cpu" else f'pip install "{NAME}[{chip}]"'
        yield f"{name} is here, and JAX does not use it: {remedy}"
    if found.platform == "cpu" and not found.unused:
        yield "no accelerator: the built-in model draws in seconds, SDXL takes many minutes a picture"
    if found.cache is None:
        yield "compiled programs are not kept, so every run compiles, for minutes at full size: see --compilation-cache"
    elif not found.writable:
        yield f"{found.cache} can't be written, so every run compiles: name another place with --compilation-cache"
    if found.device_memory and found.device_memory < SDXL_MEMORY:
        yield f"SDXL peaks at {SDXL_MEMORY} GB with four pictures at once: --batch-size 1, or see docs/guides/memory.md"
    if found.platform == "cpu" and found.available and found.available < SDXL_MEMORY:
        yield f"SDXL takes some {SDXL_MEMORY} GB of memory in bfloat16; what is unused here is less"
    if found.disk < SDXL_FILES:
        yield f"SDXL's files are {SDXL_FILES} GB, and where the hub's are kept there is less: --cache-dir, or HF_HOME"
    for name in found.slow_settings:
        yield f"{name} is set ({SLOW[name]})"
    if "optimization_level=0" in found.flags.get("XLA_FLAGS", ""):
        yield "XLA_FLAGS tells the compiler not to optimise"
