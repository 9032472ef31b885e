"""A kind of LoRA is one file and one row: one that nobody trains is read, acts, is told of and is written again."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autolora_jax import lora
from autolora_jax.models.layers import Dense
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import open_tensors
from autolora_jax.weights.lora import kinds
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.export import convert_lora
from autolora_jax.weights.lora.files import LoraFile, read_lora
from autolora_jax.weights.lora.kinds.kind import Change, Kind, Sizes
from autolora_jax.weights.lora.kinds.matrix import Matrix, Numbers, Shapes, Tensors, Written, wide
from tests.lora_reference import CONV_MODULE, UNET_MODULE, halves, saved, tiny_networks, tiny_targets
from tests.parity import error, normal

# ---- the kind's file -------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outer(Matrix):
    """alpha · row ⊗ column³."""

    row: Numbers  # [in]
    column: Numbers  # [out]

    @property
    def kernel(self) -> Numbers:
        return wide(self.row)[:, None] * (wide(self.column) ** 3 * self.scale)[None]

    @property
    def rank(self) -> int:
        return 1

    def tensors(self) -> Written:
        return {"outer_row": self.row, "outer_column": self.column, "alpha": self.said_alpha}


def misfit(shapes: Shapes, kernel: tuple[int, ...]) -> str | None:
    found = (*shapes["row"], *shapes["column"])
    return f"row and column of {list(found)}, but the layer takes {list(kernel)}" if found != kernel else None


def read(tensors: Tensors, kernel: tuple[int, ...], alpha: float | None) -> Change:
    return Change(Outer(tensors["row"], tensors["column"], alpha=alpha))


OUTER = Kind(
    "outer product",
    parts={"row": "outer_row", "column": "outer_col(umn)?"},
    needs=(("row", "column"),),
    misfit=misfit,
    read=read,
    sizes=lambda shapes: Sizes(rank=1, factors="row ⊗ column"),
)

# ---- what the library makes of it ------------------------------------------------------------------------------------

LAYER = 4e-7  # of the maximum, against the definition in float64; seen: 1.4e-7
ALPHA, OUT, IN = 0.75, 64, 64
ROW, COLUMN, BIAS = normal(0, IN), normal(1, OUT), normal(2, OUT)
TENSORS = {
    f"{UNET_MODULE}.outer_row": ROW,
    f"{UNET_MODULE}.outer_column": COLUMN,
    f"{UNET_MODULE}.alpha": np.array(ALPHA, np.float32),
    f"{UNET_MODULE}.diff_b": BIAS,
}
DELTA = ALPHA * np.outer(ROW.astype(np.float64), COLUMN.astype(np.float64) ** 3)
KERNEL = normal(3, IN, OUT)
BASE = {"kernel": KERNEL, "bias": np.zeros(OUT, np.float32)}
PATH = "down_blocks_1/attentions_0/proj_in"


@pytest.fixture(autouse=True)
def a_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "KINDS", (OUTER, *kinds.KINDS))


def opened(folder: Path, tensors: dict[str, np.ndarray] = TENSORS) -> LoraFile:
    return read_lora(saved(folder / "a.safetensors", tensors), tiny_targets())


def leaf_of(file: LoraFile, **more: Any) -> dict[str, Any]:
    node: Any = lora.attach(file, **more)[0]["unet"]
    for name in PATH.split("/"):
        node = node[name]
    return dict(node)


def applied(leaf: dict[str, Any], scales: Any, x: np.ndarray) -> np.ndarray:
    delta = lora.at_scale({"x": leaf}, jnp.float32(scales))["x"]
    return np.asarray(jax.jit(Dense(OUT).apply)({"params": BASE, "lora": delta}, x))


def test_a_layer_computes_what_it_means(tmp_path: Path) -> None:
    leaf, x = leaf_of(opened(tmp_path)), normal(4, 3, 200, IN)
    wanted = [x.astype(np.float64) @ (KERNEL + s * DELTA) + s * BIAS for s in (1.0, -0.5, 0.0)]
    for scale, want in zip((1.0, -0.5, 0.0), wanted, strict=True):
        assert error(applied(leaf, [scale], x), want) < LAYER
    per_image = applied(leaf, [[1.0], [-0.5], [0.0]], x)
    assert error(per_image, np.stack([want[i] for i, want in enumerate(wanted)])) < LAYER
    merged = lora.merge_into({"x": BASE}, {"x": leaf}, np.float32([0.5]))["x"]
    assert error(merged["kernel"], KERNEL + 0.5 * DELTA) < LAYER


def test_it_is_stacked_with_another_and_becomes_a_dora(tmp_path: Path) -> None:
    x, low = normal(4, 3, 200, IN), {k: v.astype(np.float32) for k, v in halves(UNET_MODULE, OUT, IN).items()}
    down, up = (half.astype(np.float64) for half in low.values())
    stacked = lora.stack([{"x": leaf_of(opened(tmp_path))}, {"x": leaf_of(opened(tmp_path, low))}])["x"]
    want = x @ (KERNEL + 0.5 * DELTA + 2 * (up @ down).T) + 0.5 * BIAS
    assert error(applied(stacked, [0.5, 2.0], x), want) < LAYER

    magnitudes = 1 + normal(5, OUT, 1) ** 2
    dora = {**TENSORS, f"{UNET_MODULE}.dora_scale": magnitudes}
    network = {"down_blocks_1": {"attentions_0": {"proj_in": BASE}}}
    leaf = leaf_of(opened(tmp_path, dora), base={"unet": network})
    changed = KERNEL + DELTA
    want = x @ (changed * (magnitudes[:, 0] / np.linalg.norm(changed, axis=0))) + BIAS
    assert error(applied(leaf, [1.0], x), want) < LAYER


def test_it_is_told_of(tmp_path: Path) -> None:
    assert opened(tmp_path).dialect == "outer product, kohya (sgm block names)"
    about = describe_lora(tmp_path / "a.safetensors", tiny_targets())
    [line] = [text for heading, text in about.rows() if heading == "holds"]
    assert line == "outer product: 1 module; rank 1; alpha 0.75; factors row ⊗ column" and not about.problems
    half = {name: tensor for name, tensor in TENSORS.items() if not name.endswith("outer_row")}
    with pytest.raises(WeightsError, match=r"1 outer product modules without their row: .*damaged"):
        opened(tmp_path, half)
    with pytest.raises(WeightsError, match=r"row and column of \[64, 64\], but the layer takes \[3, 3, 32, 32\]"):
        opened(tmp_path, {name.replace(UNET_MODULE, CONV_MODULE): tensor for name, tensor in TENSORS.items()})


def test_it_is_written_again_and_turned_into_others(tmp_path: Path) -> None:
    file, config = opened(tmp_path), tiny_networks()["unet"]
    convert_lora(tmp_path / "b.safetensors", file, "kohya", config)
    with open_tensors(tmp_path / "b.safetensors") as again:
        assert again.tensors.keys() == TENSORS.keys()
        assert all(np.array_equal(again.read(name).squeeze(), tensor) for name, tensor in TENSORS.items())
    trees = lora.attach(file)[0]
    lora.save_lora(tmp_path / "c.safetensors", trees, "kohya", None, config)
    resized, fits = lora.resize(trees, lora.Truncation(rank=1))
    lora.save_lora(tmp_path / "d.safetensors", resized, "peft", None, config)
    convert_lora(tmp_path / "e.safetensors", file, "peft", config)
    assert fits.ranks == {1: 1} and fits.error < LAYER
    for name, kind in {"b": "outer product", "c": "outer product", "d": "LoRA", "e": "LoRA"}.items():
        read = read_lora(tmp_path / f"{name}.safetensors", tiny_targets())
        [change] = read.layers.values()
        assert read.dialect.startswith(kind) and change.matrix is not None and change.matrix.rank == 1
        assert error(change.matrix.kernel, DELTA) < LAYER and error(change.bias, BIAS) < LAYER
