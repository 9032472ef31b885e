"""Kinds that turn or stretch a layer's weight, as PEFT, OneTrainer and LyCORIS train them: equal to their layers."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from lycoris.modules.diag_oft import DiagOFTModule
from peft import BOFTConfig, IA3Config, OFTConfig
from peft.tuners.boft import layer as boft
from peft.tuners.ia3 import layer as ia3
from peft.tuners.oft import layer as oft

from autolora_jax import lora
from autolora_jax.models.layers import SAME_3X3, Conv, Dense
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.export import convert_lora
from autolora_jax.weights.lora.files import LoraFile, read_lora
from autolora_jax.weights.lora.peft import PeftSettings
from tests.lora_reference import CONV_MODULE, UNET_MODULE, saved, tiny_networks, tiny_targets
from tests.parity import channels_first, error, normal

TOLERANCE = 1e-5  # of the maximum; seen: 6.9e-7
AGAIN = 2e-5  # a change that was written and read again: Cayley's inverse, in float32; seen: 3e-6
LINEAR, CONV = UNET_MODULE, CONV_MODULE
WIDER = "lora_unet_input_blocks_3_0_in_layers_2"
SIZES = {LINEAR: (64, 64), CONV: (32, 32), WIDER: (32, 64)}
SCALES = (1.0, 0.0, -0.5, 0.6)


def layer_of(module: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(*SIZES[module]) if module == LINEAR else torch.nn.Conv2d(*SIZES[module], 3, padding=1)


def as_peft(made: Any, config: Any, module: str, **more: Any) -> tuple[torch.nn.Module, Mapping[str, np.ndarray]]:
    """A layer with an adapter that does something, and its tensors as a file's."""
    layer = made(layer_of(module), "default", config=config, **more)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, parameter in layer.named_parameters():
        if "base_layer" not in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
            parts = [part for part in name.split(".") if part != "default"]
            tensors[".".join([module, *parts])] = parameter.detach().numpy().copy()
    return layer.eval(), tensors


def opened(folder: Path, tensors: Mapping[str, np.ndarray]) -> LoraFile:
    return read_lora(saved(folder / "a.safetensors", dict(tensors)), tiny_targets())


def check(file: LoraFile, module: str, theirs: Any, base: Any = None) -> None:
    """Our layer with the file equals theirs at scale 1, and goes there in a straight line."""
    base = base or layer_of(module)
    x = normal(2, 3, 5, 64) if module == LINEAR else normal(2, 3, 6, 8, 32)
    weight = base.weight.detach().numpy()
    kernel = weight.T if module == LINEAR else weight.transpose(2, 3, 1, 0)
    params = {"kernel": kernel, "bias": base.bias.detach().numpy()}
    [layer] = file.layers
    parts = [layer.component, *layer.path.split("/")]
    tree: Any = lora.attach(file, base=functools.reduce(lambda node, name: {name: node}, reversed(parts), params))[0]
    for part in parts:
        tree = tree[part]
    ours = Dense(64) if module == LINEAR else Conv(SIZES[module][1], 3, 1, SAME_3X3)
    given = torch.from_numpy(x) if module == LINEAR else channels_first(x)
    with torch.no_grad():
        start, end = base(given), theirs(given)
    assert (end - start).abs().max() > 0.05 * start.abs().max()  # a change that is worth looking at
    for scale in SCALES:
        delta = lora.at_scale({"x": tree}, jnp.float32([scale]))["x"]
        found = ours.apply({"params": params, "lora": delta}, jnp.asarray(x))
        assert error(found, start + scale * (end - start)) < TOLERANCE, scale


def written_again(folder: Path, file: LoraFile) -> LoraFile:
    convert_lora(folder / "b.safetensors", file, "kohya", tiny_networks()["unet"])
    again = read_lora(folder / "b.safetensors", tiny_targets())
    for layer, change in file.layers.items():
        base = normal(8, *layer.kernel)
        assert error(again.layers[layer].matrix.on(base), change.matrix.on(base)) < AGAIN
    return again


@pytest.mark.parametrize("module", (LINEAR, WIDER), ids=("linear", "convolution"))
@pytest.mark.parametrize("of_inputs", (False, True), ids=("outputs", "inputs"))
def test_ia3(tmp_path: Path, module: str, of_inputs: bool) -> None:
    """Of outputs it stretches the bias, too."""
    made = ia3.Linear if module == LINEAR else ia3.Conv2d
    theirs, tensors = as_peft(made, IA3Config(), module, is_feedforward=of_inputs)
    file = opened(tmp_path, tensors)
    check(file, module, theirs)
    written_again(tmp_path, file)


class BlockDiagonal:
    """PEFT's extension for CUDA, without which it knows one factor only: [m n b b] -> [m n·b n·b]."""

    @staticmethod
    def apply(blocks: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.block_diag(*factor) for factor in blocks])


@pytest.mark.parametrize("module", (LINEAR, CONV), ids=("linear", "convolution"))
@pytest.mark.parametrize("factors", (1, 3))
def test_boft(tmp_path: Path, module: str, factors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft, "FastBlockDiag", BlockDiagonal)
    config = BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=factors)
    theirs, tensors = as_peft(boft.Linear if module == LINEAR else boft.Conv2d, config, module)
    assert tensors[f"{module}.boft_R"].shape[0] == factors
    file = opened(tmp_path, tensors)
    check(file, module, theirs)
    written_again(tmp_path, file)


@pytest.mark.parametrize("shared", (False, True), ids=("blocks", "shared"))
def test_oft_v2_of_a_matrix(tmp_path: Path, shared: bool) -> None:
    config = OFTConfig(oft_block_size=16, r=0, block_share=shared, use_cayley_neumann=True)
    theirs, tensors = as_peft(oft.Linear, config, LINEAR, r=0)
    file = opened(tmp_path, tensors)
    check(file, LINEAR, theirs)
    [same] = (tensor for name, tensor in tensors.items() if "oft_R" in name)
    [again] = written_again(tmp_path, file).layers.values()
    assert np.array_equal(again.matrix.corners, same)


def test_oft_v2_of_a_convolution_turns_its_filters(tmp_path: Path) -> None:
    """OneTrainer's OFTModule.forward: the flat filters, by the blocks' transpose; PEFT's class makes them."""
    config = OFTConfig(oft_block_size=32, r=0, use_cayley_neumann=True)
    rotation = oft.OFTRotationModule(9, 32 * 31 // 2, 32, 288)
    rotation.weight.data = torch.from_numpy(0.1 * normal(3, 9, 32 * 31 // 2))
    base, theirs = layer_of(CONV), layer_of(CONV)
    theirs.weight.data = (base.weight.flatten(1) @ rotation.get_weight()).reshape(base.weight.shape).detach()
    tensors = {f"{CONV}.oft_R.weight": rotation.weight.detach().numpy()}
    check(opened(tmp_path, tensors), CONV, theirs)
    # its "scaled" form holds larger numbers, and says so by a tensor's presence
    entries = np.float32(config.oft_block_size * 31 // 2)
    scaled = {f"{CONV}.oft_R.weight": tensors[f"{CONV}.oft_R.weight"] * entries**0.5}
    check(opened(tmp_path, {**scaled, f"{CONV}.oft_R.scaled_oft": np.array(1.0, np.float32)}), CONV, theirs)


@pytest.mark.parametrize("module", (LINEAR, CONV), ids=("linear", "convolution"))
def test_oft_with_a_rescaling(tmp_path: Path, module: str) -> None:
    """At scale 1 it is LyCORIS's, whose other scales leave the rescaling whole; here scale 0 is the base model."""
    base = layer_of(module)
    name = module.replace(".", "_")
    trained = DiagOFTModule(name, base, 1.0, lora_dim=8, rescaled=True)
    trained.oft_blocks.data += 0.1 * torch.from_numpy(normal(4, *trained.oft_blocks.shape))
    trained.rescale.data += 0.2 * torch.from_numpy(normal(5, *trained.rescale.shape))
    tensors = {f"{module}.{part}": x.detach().numpy() for part, x in trained.state_dict().items()}
    theirs = layer_of(module)
    theirs.weight.data = trained.make_weight().detach()
    file = opened(tmp_path, tensors)
    check(file, module, theirs)
    written_again(tmp_path, file)


@pytest.mark.parametrize(
    "parts, said",
    (
        ({"oft_blocks": (8, 8, 8), "rescale": (32, 1)}, r"rescaling \[32, 1\].*64"),
        ({"oft_blocks": (7, 8, 8)}, r"blocks \[7, 8, 8\], which do not turn 64 outputs"),
        ({"oft_R.weight": (8, 27)}, r"corners \[8, 27\].*64 inputs"),
        ({"oft_R.weight": (3, 28)}, r"corners \[3, 28\].*64 inputs"),
        ({"boft_R": (2, 7, 8, 8), "boft_s": (64, 1)}, r"butterflies \[2, 7, 8, 8\].*64 inputs"),
        ({"boft_R": (5, 8, 8, 8), "boft_s": (64, 1)}, r"butterflies \[5, 8, 8, 8\].*64 inputs"),
        ({"boft_R": (1, 8, 8, 8), "boft_s": (32, 1)}, r"rescaling \[32, 1\].*64"),
        ({"boft_R": (1, 8, 8, 8)}, "without their boft_s"),
        ({"oft_blocks": (3, 8, 8, 8)}, "LyCORIS's BOFT.*autolora extract"),
        ({"ia3_l": (1, 32)}, "neither one per output nor one per input"),
    ),
)
def test_what_does_not_fit_is_refused(tmp_path: Path, parts: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        opened(tmp_path, {f"{LINEAR}.{part}": np.ones(shape, np.float32) for part, shape in parts.items()})


def test_factors_of_which_nobody_can_tell_whose_they_are_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="as many inputs as outputs"):
        opened(tmp_path, {f"{CONV}.ia3_l": np.ones((1, 32, 1, 1), np.float32)})


@pytest.mark.parametrize("config", (IA3Config(feedforward_modules=["net.2"]), BOFTConfig(boft_n_butterfly_factor=2)))
def test_folders_of_peft_say_nothing_else_of_them(config: Any) -> None:
    PeftSettings.from_dict({**config.to_dict(), "peft_type": str(config.peft_type.value)})
    with pytest.raises(WeightsError, match="bias = 'all'"):
        PeftSettings.from_dict({**config.to_dict(), "bias": "all"})


def test_what_is_refused_is_told_by_its_own_name(tmp_path: Path) -> None:
    about = describe_lora(
        saved(tmp_path / "a.safetensors", {f"{LINEAR}.oft_blocks": np.ones((3, 8, 8, 8), np.float32)})
    )
    assert about.dialect.startswith("LyCORIS's BOFT") and [*about.kinds] == ["LyCORIS's BOFT (butterflies of blocks)"]
