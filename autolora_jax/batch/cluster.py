"""A cluster of Ray: how it is reached, what its machines have, what a worker asks of them."""

import importlib
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autolora_jax.config import ConfigError

LOCAL = "local"  # address of a cluster that is started for a run, on its machine
Resources = Mapping[str, int | float]  # "CPU", "GPU", "TPU", or a name of the cluster's own -> amount


def usual_resources(nodes: Sequence[Mapping[str, Any]]) -> Resources:
    """What a worker needs on such machines, as ray.nodes() tells them."""
    for name, most in (("TPU", math.inf), ("GPU", 1.0)):
        if found := [node["Resources"][name] for node in nodes if node["Alive"] and node["Resources"].get(name)]:
            return {name: min(most, *found)}
    return {"CPU": 1.0}


def room(node: Mapping[str, Any], needs: Resources) -> int:
    """For how many workers a machine is large enough."""
    has = node["Resources"] if node["Alive"] else {}
    return int(min(has.get(name, 0) // amount for name, amount in needs.items()))


def said(needs: Resources) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in needs.items())


def options(needs: Resources) -> dict[str, Any]:
    """The same in Ray's words."""
    others = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
    # A lost worker is not restarted but replaced: what it had been sent has gone to others.
    return {"num_cpus": needs.get("CPU", 0), "num_gpus": needs.get("GPU", 0), "resources": others, "max_restarts": 0}


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster, which it leaves in the end if it was not before. Raises ConfigError, OSError."""
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ConfigError("a fleet needs Ray: pip install 'autolora-jax[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a cluster that starts here reports to Ray's makers
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address,
            log_to_driver=False,  # what they draw is shown, and what they raise is raised
            logging_level="ERROR",
            **({"include_dashboard": False} if address == LOCAL else {}),
        )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)  # Ray's would end the driver at once
        yield ray
    finally:
        ray.shutdown()
