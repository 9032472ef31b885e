"""LyCORIS' kinds on SD3's fused q, k, v, and on modules whose halves are exchanged: what LyCORIS itself computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from safetensors.numpy import save_file

from autolora_jax import lora
from autolora_jax.config import MMDiTConfig
from autolora_jax.models.layers import Dense
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.lora.files import read_lora, targets_of
from autolora_jax.weights.lora.kinds.full import Full
from autolora_jax.weights.lora.kinds.loha import Hadamard
from autolora_jax.weights.lora.kinds.lokr import Kronecker
from autolora_jax.weights.lora.kinds.low_rank import LowRank
from autolora_jax.weights.lora.names import Targets
from tests import lycoris_reference
from tests.lora_sd3_reference import CONFIG
from tests.lycoris_reference import applied, tensors_of, trained
from tests.parity import error, normal

TOLERANCE = 1e-5  # of the maximum; seen: 3.8e-7
SCALES = (1.0, 0.6, -0.5)
WIDTH = 32
ATTN = "transformer_blocks_0/attn"
# module in kohya's layout -> its layers in order, and whether its outputs' halves stand there in the other order
QKV = ("lora_unet_joint_blocks_0_x_block_attn_qkv", [f"{ATTN}/to_{x}" for x in "qkv"], False)
TEXT_QKV = ("lora_unet_joint_blocks_0_context_block_attn_qkv", [f"{ATTN}/add_{x}_proj" for x in "qkv"], False)
FINAL = ("lora_unet_final_layer_adaLN_modulation_1", ["norm_out/linear"], True)
LAST = (
    "lora_unet_joint_blocks_2_context_block_adaLN_modulation_1",
    ["transformer_blocks_2/norm1_context/linear"],
    True,
)
Module = tuple[str, list[str], bool]

# LoKr by the rows of its left factor: q, k and v have whole ones of 3, parts of those of 4 and 8.
LOKR = {f"lokr {rows}": {"factor": rows} for rows in (3, 4, 8)}
LOKR |= {"lokr 4 both": {"factor": 4, "decompose_both": True}, "lokr 3 full": {"factor": 3, "full_matrix": True}}
CLASSES: Mapping[str, type] = {
    **{"locon": LowRank, "loha": Hadamard, "full": Full, "dora": LowRank, "loha dora": Hadamard, "lokr dora": Full},
    **{kind: Kronecker if "3" in kind else Full for kind in LOKR},
}


@pytest.fixture(scope="module")
def targets() -> Targets:
    return targets_of({"transformer": MMDiTConfig.from_dict(CONFIG)})


@pytest.fixture(autouse=True)
def more_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = lycoris_reference.KINDS["lokr"]
    more = {kind: (made, arguments) for kind, arguments in LOKR.items()}
    monkeypatch.setattr(lycoris_reference, "KINDS", {**lycoris_reference.KINDS, **more})


def fused_layer(outputs: int) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, outputs)


def written(folder: Path, module: Any) -> Path:
    save_file(tensors_of(module), folder / "a.safetensors")
    return folder / "a.safetensors"


@pytest.mark.parametrize(
    "place, kind",
    [
        *((QKV, kind) for kind in CLASSES),
        *((TEXT_QKV, kind) for kind in ("loha", "lokr 3", "lokr 8", "dora")),
        *((place, kind) for place in (FINAL, LAST) for kind in (*CLASSES, "dora of inputs")),
    ],
    ids=lambda x: x if isinstance(x, str) else x[1][0],
)
def test_layers_compute_what_the_fused_one_does(targets: Targets, tmp_path: Path, place: Module, kind: str) -> None:
    """LyCORIS trains the fused layer; the layers' outputs, one after another, are its."""
    name, paths, exchanged = place
    fused = fused_layer((len(paths) + exchanged) * WIDTH)
    module = trained(kind, name, fused, seed=1)
    file = read_lora(written(tmp_path, module), targets)
    assert [layer.path for layer in file.layers] == paths
    if not exchanged:
        assert {type(change.matrix) for change in file.layers.values()} == {CLASSES[kind]}
    kernels = np.split(fused.weight.detach().numpy(), len(paths))
    biases = np.split(fused.bias.detach().numpy(), len(paths))
    params = {
        path: {"kernel": halves(kernel, exchanged).T, "bias": halves(bias, exchanged)}
        for path, kernel, bias in zip(paths, kernels, biases, strict=True)
    }
    base = {"transformer": traverse_util.unflatten_dict({tuple(p.split("/")): v for p, v in params.items()})}
    tree = lora.attach(file, base=base)[0]["transformer"]
    x = normal(0, 3, 5, WIDTH)
    for scale in SCALES:
        ours = []
        for path in paths:
            leaf = traverse_util.flatten_dict(tree, is_leaf=lambda _, node: lora.is_leaf(node))[tuple(path.split("/"))]
            delta = lora.at_scale({"x": leaf}, jnp.float32([scale]))["x"]
            y = Dense(fused.out_features // len(paths)).apply({"params": params[path], "lora": delta}, jnp.asarray(x))
            ours.append(halves(np.asarray(y), exchanged))
        with torch.no_grad(), applied(module, scale):
            theirs = fused(torch.from_numpy(x))
        assert error(np.concatenate(ours, axis=-1), theirs) < TOLERANCE
        with torch.no_grad():
            assert error(np.asarray(fused(torch.from_numpy(x))), theirs) > 0.05  # a change worth looking at


def halves(x: np.ndarray, exchanged: bool) -> np.ndarray:
    """Outputs as the other layout has them: rows of a weight, entries of a bias, features of an output."""
    if not exchanged:
        return x
    axis = 0 if x.ndim == 2 else -1
    return np.concatenate(np.split(x, 2, axis=axis)[::-1], axis=axis)


@pytest.mark.parametrize("place", [QKV, TEXT_QKV], ids=["image", "text"])
def test_dora_over_inputs_of_the_fused_layer_is_refused(targets: Targets, tmp_path: Path, place: Module) -> None:
    """Its norms are of columns of all three together."""
    name, paths, _ = place
    path = written(tmp_path, trained("dora of inputs", name, fused_layer(len(paths) * WIDTH), seed=1))
    with pytest.raises(WeightsError, match="magnitudes over the inputs of several layers at once") as caught:
        read_lora(path, targets)
    assert name in str(caught.value) and str(path) in str(caught.value)
