"""GPUs that are not here: what XLA's CUDA compiler wants to know of one, so that it compiles for it on any machine.

Needs JAX's CUDA plugin and NVIDIA's libraries, no GPU: pip install "jax[cuda13]". XLA knows its targets by name inside
alone: a program has to hand over a description, of which these are the parts that matter.
"""

import dataclasses
import importlib.util
import os
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from autolora_jax.sharding import data_mesh

PLUGIN = "jax_plugins.xla_cuda13"
INSTALL = 'pip install "jax[cuda13]"'
# Hopper's, by NVIDIA's H100 white paper and table "technical specifications" of the CUDA programming guide.
LIMITS = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 * 1024,
    "shared_memory_per_block_optin": 227 * 1024,
    "shared_memory_per_core": 228 * 1024,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "fpus_per_core": 128,
    "core_count": 132,
    "l2_cache_size": 50 * 2**20,
    "clock_rate_ghz": 1.98,
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What tells GPUs of one generation apart, by NVIDIA's data sheets (SXM)."""

    name: str
    memory: int  # bytes, as its driver says
    bandwidth: float  # bytes a second

    @property
    def target(self) -> str:
        """A stream_executor.GpuTargetConfigProto as text."""
        numbers = LIMITS | {"memory_bandwidth": int(self.bandwidth), "device_memory_size": self.memory}
        told = "\n".join(f"  {name}: {value}" for name, value in numbers.items())
        return (
            f"gpu_device_info {{\n{told}\n  cuda_compute_capability {{ major: 9 minor: 0 }}\n}}\n"
            f'platform_name: "CUDA"\ndnn_version_info {{ major: 9 minor: 10 patch: 0 }}\n'
            f'device_description_str: "{self.name}"\n'
        )


GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", 81_559 * 2**20, 3.35e12),
    "h200": Gpu("NVIDIA H200", 143_771 * 2**20, 4.8e12),
}
# Dense products a second, floating-point operations, by dtype: the same on both. float32 is exact, without TF32.
PEAK = {"bf16": 989e12, "f16": 989e12, "f32": 67e12}


def missing() -> str | None:
    """What is not there and what to install, None if all is there."""
    found = importlib.util.find_spec("jax_plugins") and importlib.util.find_spec(PLUGIN)
    return (
        None if found else f"JAX's CUDA compiler, the module {PLUGIN}, is not installed: {INSTALL} (no GPU is needed)"
    )


def mesh(gpu: str, devices: int = 1, target: str | Path | None = None) -> Mesh:
    """A mesh of GPUs of one host that are not here.

    gpu: a key of GPUS. target: a file that describes another one, as XLA dumps and keeps them (*.txtpb).
    """
    if said := missing():
        raise SystemExit(said)
    # JAX would ask the driver for its version, and there is none; cuDNN's attention asks the same.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    text = Path(target).read_text() if target else GPUS[gpu].target
    found = topologies.get_topology_desc("", platform="cuda", target_config=text, topology=f"1x1x{devices}")
    return data_mesh(found.devices)


def cpu_only() -> None:
    """To be called before JAX is used: else it looks for a GPU to run on."""
    jax.config.update("jax_platforms", "cpu")
