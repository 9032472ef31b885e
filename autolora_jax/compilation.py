"""Where compiled programs are kept between processes: in JAX's persistent compilation cache, on unless asked otherwise.

JAX keeps no program that calls back to the host; none of ours does. A program is found again by what it computes, the
compiler's version and the kind of device, so a folder may serve any number of models, LoRAs and processes at once.
"""

import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

VARIABLE = "AUTOLORA_COMPILATION_CACHE"
OFF = "off"


def keep_programs(place: str | os.PathLike[str] | None = None) -> str | None:
    """Lets JAX keep every program that this process compiles from now on, and says where; None: nowhere.

    place: a folder, a bucket's URL (gs://…, s3://…) or "off". None: what JAX is told already (by an earlier call,
        JAX_COMPILATION_CACHE_DIR, jax.config), else what the environment variable AUTOLORA_COMPILATION_CACHE says,
        which may be any of these, else autolora-jax/programs in the user's cache folder.
    """
    config: Any = jax.config
    known: str | None = config.jax_compilation_cache_dir
    if place is None and not config.jax_enable_compilation_cache:
        return None
    if place is None and known:
        return known
    told = os.fspath(place) if place is not None else os.environ.get(VARIABLE)
    jax.config.update("jax_enable_compilation_cache", told != OFF)
    if told == OFF:
        return None
    folder = told or os.path.join(_user_cache(), "autolora-jax", "programs")
    if "://" not in folder:
        folder = os.path.abspath(os.path.expanduser(folder))
    if folder != known:
        jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # JAX looks at its settings once
    # The small programs, too: a second process is to compile nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def _user_cache() -> str:
    """The user's cache folder by the convention of the system."""
    if os.name == "nt":
        return os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    return os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
