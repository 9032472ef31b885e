"""Thousands of damaged LoRA files: each ends in an answer or in a WeightsError, soon and in little memory.

All random, all seeded: a failure names its mutation and number.
"""

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from autolora_jax import lora
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.inspect import describe
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.files import read_lora
from tests.lora_mutations import GOOD, MUTATIONS, TARGETS, Header, Random, good, packed, rebuilt, tensors_of

FILES = [pytest.param(30, id="30"), pytest.param(200, id="200", marks=pytest.mark.slow)]  # of each mutation
SECONDS = 5.0  # of this process, for all that is done with one file; seen: 0.08
MEBIBYTES = 8.0  # beyond what was there before, for files of 50 kB; seen: 0.8


def check(path: Path) -> bool:
    """Whether a file loads; all that is said about it fits that."""
    about, fits = describe(path), describe_lora(path, TARGETS)
    for said in (str(about), str(fits)):
        assert len(said) < 30_000 and all(c.isprintable() or c == "\n" for c in said), said
    try:
        file = read_lora(path, TARGETS)
        if not any(change.magnitude for change in file.layers.values()):  # those need a base model
            leaves = jax.tree.leaves(lora.attach(file, ml_dtypes.bfloat16)[0])
            assert all(np.isfinite(leaf).all() for leaf in leaves)
    except WeightsError as e:
        message = str(e)
        assert len(message) < 8000 and all(c.isprintable() or c == "\n" for c in message), message
        return False
    assert file.layers and about.loads and not fits.problems, (about, fits)
    return True


@pytest.mark.filterwarnings("error", "ignore::UserWarning")  # a file's oddities are told
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("files", FILES)
def test_damaged_files_end_in_an_answer(
    tmp_path: Path, mutation: Callable[[Random, Header, bytes], bytes], files: int
) -> None:
    path = tmp_path / "a.safetensors"
    for index in range(files):
        path.write_bytes(mutation(Random(f"{mutation.__name__} {index}"), *good(index)))
        start = time.process_time()
        measured = index % 10 == 0  # measuring is slow
        if measured:
            tracemalloc.start()
        try:
            check(path)
            peak = tracemalloc.get_traced_memory()[1] / 2**20
        except Exception as e:
            e.add_note(f"file {index}")
            raise
        finally:
            tracemalloc.stop()
        assert time.process_time() - start < SECONDS and peak < MEBIBYTES, (index, peak)


def test_the_files_are_good_before(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for index in range(len(GOOD)):
        path.write_bytes(packed(*good(index)))
        assert check(path), describe_lora(path, TARGETS)


def test_time_grows_with_the_file_alone(tmp_path: Path) -> None:
    """Names and patterns of which each has to be compared with each, long texts, and thousands of small tensors.

    Seen: 6 s for two thousand modules, a millisecond each with types checked, on a slow machine.
    """
    header, data = good(len(GOOD) - 1)
    settings = {"text_encoder.r": 2, "text_encoder.rank_pattern": {f"a.{i}": 2 for i in range(2_000)}}
    tags = {"1_a": {f"tag {i}": i for i in range(20_000)}}
    said = {"lora_adapter_metadata": json.dumps(settings), "ss_tag_frequency": json.dumps(tags)}
    tensors = tensors_of(header, data)
    many = {f"lora_unet_{'joint_blocks_1_' * 20}{i}.lora_down.weight": ("F32", (1, 1), bytes(4)) for i in range(2_000)}
    too_many = {"text_encoder.r": 2, "text_encoder.rank_pattern": {f"a.{i}": 2 for i in range(3_000)}}
    path = tmp_path / "a.safetensors"
    for content, loads in (
        (rebuilt({"__metadata__": said}, tensors), True),
        (rebuilt({"__metadata__": said}, {**tensors, **many}), False),
        (rebuilt({"__metadata__": {"lora_adapter_metadata": json.dumps(too_many)}}, tensors), False),
        (
            rebuilt(
                {"__metadata__": {}}, {**tensors, "lora_unet_" + "joint_blocks_1_" * 99_999: ("F32", (), bytes(4))}
            ),
            False,
        ),
    ):
        path.write_bytes(content)
        start = time.process_time()
        assert check(path) == loads
        assert time.process_time() - start < 3 * SECONDS
