"""How far a cell's pictures are from the reference's of the same prompt and noise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autolora_jax.batch import Job, Settings
from autolora_jax.config import ConfigError
from autolora_jax.experiments.distances import feature_distances, pixel_distances, reference_pairs
from autolora_jax.experiments.drawn import Drawn, DrawnPictures
from autolora_jax.experiments.experiment import Cell, Experiment
from autolora_jax.settings import ModelConfig

JOB = Job(prompts=("a", "b"), seeds=[0, 1], settings=Settings(model=ModelConfig("builtin")))


def experiment(**more: Any) -> Experiment:
    cells = (Cell("exact", 30.0, {}), Cell("exact", 8.0, {}), Cell("cheap", None, {}))
    return Experiment("near", "Near", JOB, cells, **more)


def drawn(folder: Path, pictures: dict[str, np.ndarray], cells: list[dict[tuple[int, int], str]]) -> Drawn:
    for key, pixels in pictures.items():
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{key}.png")
    return Drawn(cells, DrawnPictures(folder, [{"key": key, "file": f"{key}.png"} for key in pictures]), {})


def test_pictures_are_compared_with_those_of_the_same_noise(tmp_path: Path):
    flat = {key: np.full((8, 8, 3), level) for key, level in {"e0": 10, "e1": 20, "f0": 13, "c1": 12}.items()}
    cells = [{(0, 0): "e0", (0, 1): "e1"}, {(0, 0): "f0", (0, 1): "lost"}, {(0, 1): "c1", (1, 0): "e0"}]
    there = drawn(tmp_path, flat, cells)
    assert reference_pairs(experiment(), there) == [{}, {}, {}]
    pairs = reference_pairs(experiment(reference=("exact", 30.0)), there)
    assert pairs == [{}, {(0, 0): ("f0", "e0")}, {(0, 1): ("c1", "e1")}]
    of = [pair for cell in pairs for pair in cell.values()]
    assert pixel_distances(there.pictures, of) == {("f0", "e0"): 3.0, ("c1", "e1"): 8.0}


def test_what_can_not_be_compared_has_no_distance(tmp_path: Path):
    there = drawn(tmp_path, {"a": np.zeros((8, 8, 3)), "b": np.zeros((9, 8, 3)), "c": np.zeros((8, 8, 3))}, [])
    (tmp_path / "c.png").write_bytes(b"no picture")
    assert np.isnan([*pixel_distances(there.pictures, [("a", "b"), ("a", "c")]).values()]).all()


def test_features_are_compared_by_direction():
    one = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], np.float32)
    other = np.array([[3.0, 0.0], [1.0, -1.0], [1.0, 0.0]], np.float32)
    found = feature_distances(one, other)
    assert found[:2].tolist() == pytest.approx([0.0, 1.0], abs=1e-12) and np.isnan(found[2])


def test_a_reference_is_a_cell():
    with pytest.raises(ConfigError, match="no cell is the reference"):
        experiment(reference=("exact", 29.0))
