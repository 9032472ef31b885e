"""Eight CPU devices, checked shapes and dtypes, and the tiny reference models, for every test."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

gc.disable()  # until the tests are collected: all that is imported stays

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for a hub is wrong
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# All processes of a run share their programs, and no run depends on another: xdist's workers inherit the first's place.
PROGRAMS = "AUTOLORA_COMPILATION_CACHE"
if PROGRAMS not in os.environ:
    os.environ[PROGRAMS] = tempfile.mkdtemp(prefix="autolora-jax-tests-")
    atexit.register(shutil.rmtree, os.environ[PROGRAMS], ignore_errors=True)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # of each operation, which nobody reads here
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads spin while they wait: ruinous beside other processes

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", os.environ[PROGRAMS])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]
# Calls are checked where arrays have shapes, of which mypy knows nothing; all other types are mypy's.
SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.glob("autolora_jax/**/*.py"))
    if "jaxtyping" in path.read_text(encoding="utf-8")
]
install_import_hook(SHAPED, "beartype.beartype")

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

MUCH = 5 * 2**30  # bytes
# What makes XLA's CPU programs faster and takes longer to make: without, a UNet costs 40 % less to compile.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
# The files that take longest begin first, so that none of them is left to one worker at the end; and test_img2img well
# after test_pipeline, whose programs it finds on the disk then.
LONGEST = (
    *("test_pipeline", "test_batch_end_to_end", "test_compilations", "test_benchmarks", "test_tutorials"),
    "test_img2img",
    *("test_lora_kinds_runs", "test_batch_fleet", "test_sd3_files", "test_notebook", "test_reproduce"),
    *("test_lora_merged", "test_batch_kill", "test_lora_compiles", "test_cli_train", "test_sd3_pipeline", "test_vae"),
    *("test_unet", "test_batch_pipeline", "test_builtin", "test_lora", "test_sweep", "test_cli", "test_lora_extract"),
    *("test_batch_processes", "test_training_flow", "test_training_resume", "test_distill", "test_gradients"),
    "test_tpu_compile",
)


def pytest_configure(config: pytest.Config) -> None:
    """Small programs compile for seconds and run for milliseconds: the compiler's backend need not optimise them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited by what runs in the background; tests send it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "not slow" in config.getoption("-m"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
    config.option.loadscopereorder = False  # xdist's, which begins with the files that have the most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish() -> None:
    """What the imports made is looked at no more, and the rest seldom: tracing makes millions of objects."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Compiled programs are kept for the files that follow, until they are too many."""
    yield
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    if pages * os.sysconf("SC_PAGE_SIZE") > MUCH:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def facts() -> Path:
    """Published key lists and configs, kept beside the repository (third-party data, not part of it)."""
    folder = ROOT.parent / "shared" / "facts"
    if not folder.is_dir():
        pytest.skip("published key lists are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SDXL saved by diffusers as a folder. Read-only: copy it to change it."""
    from tests import reference

    folder = tmp_path_factory.mktemp("tiny") / "sdxl"
    reference.tiny_sdxl(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["files", "shards"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int | None, dict[str, bytes]]:
    """(pictures of a shard, if any; what a small job leaves that nothing disturbs)."""
    from tests.batch_jobs import SHARDS, draw_all, small_job, tree

    out, shard_size = tmp_path_factory.mktemp("whole"), SHARDS if request.param else None
    draw_all(small_job(shard_size), out)
    return shard_size, tree(out)


@pytest.fixture(scope="session")
def small_sd35(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SD3.5 of 64 pixels, saved by diffusers as a folder. Read-only."""
    from tests import reference_sd3

    folder = tmp_path_factory.mktemp("sd35")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(reference_sd3.TRANSFORMER, "sample_size", 8)
        reference_sd3.tiny_sd3(folder, "sd3.5").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL of two levels, because compiling is what programs' tests wait for, with a LoRA small:0.5.safetensors."""
    from tests import reference
    from tests.lora_reference import random_lora

    folder = tmp_path_factory.mktemp("small")
    small = dict(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "UNET", {**reference.UNET, **small})
        pipe = reference.tiny_sdxl(folder)
    pipe.save_pretrained(folder)
    random_lora(pipe, seed=1).save(folder / "small:0.5.safetensors", "peft")
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder: Path):
    """diffusers' own pipeline of `tiny_folder`, float32."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def small_pipeline(small_folder: Path):
    """diffusers' own pipeline of `small_folder`, float32."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(small_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def both(small_pipeline, small_folder: Path):
    """`small_pipeline` in torch and here, on the same inputs; see tests.lora_runs."""
    import torch

    from tests.lora_runs import Both

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network only waits for its threads
    yield Both(small_pipeline, small_folder)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; see tests.browser."""
    from tests.browser import open_browser

    with open_browser() as opened:
        yield opened


@pytest.fixture
def count_compilations() -> Callable[[], contextlib.AbstractContextManager[list[str]]]:
    """`with count_compilations() as names:` collects one entry per program that XLA compiles inside."""

    @contextlib.contextmanager
    def counting() -> Iterator[list[str]]:
        compiled: list[str] = []

        def listen(event: str, duration: float, **_: object) -> None:
            if event.endswith("backend_compile_duration"):
                compiled.append(f"{duration:.2f} s")

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield compiled
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return counting
