"""How trainers and programs name layers and parts: every spelling finds its layer, whatever the kind of change.

Sources: OneTrainer 23df3832, modules/util/convert_lora_util.py, modules/model/StableDiffusion{XL,3}Model.py and
modules/modelSaver/mixin/LoRASaverMixin.py; ComfyUI, comfy_extras/nodes_lora_extract.py and comfy/lora.py; SimpleTuner,
whose LyCORIS files are those of lycoris.wrapper.create_lycoris; diffusers 0.42, loaders/peft.py save_lora_adapter and
utils/state_dict_utils.py. The last two packages write files here themselves.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusionXLPipeline
from lycoris import create_lycoris
from lycoris.kohya import create_network
from peft import LoraConfig
from safetensors.torch import save_file

from autolora_jax.config import CLIPTextConfig, MMDiTConfig, T5Config, UNetConfig
from autolora_jax.weights.inspect import describe
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.dialects import COMFY, KOHYA, KOHYA_DIFFUSERS, KOHYA_SD3, KOHYA_SGM, ORIGINAL, PEFT
from autolora_jax.weights.lora.files import read_lora, targets_of
from autolora_jax.weights.lora.kinds.full import Full
from autolora_jax.weights.lora.kinds.loha import Hadamard
from autolora_jax.weights.lora.kinds.lokr import Kronecker
from autolora_jax.weights.lora.kinds.low_rank import LowRank
from autolora_jax.weights.lora.names import Targets
from autolora_jax.weights.tables import torch_module
from tests.lora_reference import canonical, saved
from tests.lora_sd3_reference import CONFIG

Shape = tuple[int, ...]


def tree(layers: Mapping[str, Shape]) -> dict[str, Any]:
    """Parameter shapes of some layers."""
    root: dict[str, Any] = {}
    for path, kernel in layers.items():
        node = root
        for name in path.split("/"):
            node = node.setdefault(name, {})
        node["kernel"] = kernel
    return root


# A few layers of the published models: names depend on their configs alone.
BLOCK, RESNET = "down_blocks_1/attentions_0/transformer_blocks_0", "down_blocks_1/resnets_0"
LAYER = "text_model/encoder/layers_0"
TEXTS = {
    "text_encoder": (
        tree({f"{LAYER}/self_attn/q_proj": (768, 768), f"{LAYER}/mlp/fc1": (768, 3072)}),
        CLIPTextConfig(),
    ),
    "text_encoder_2": (tree({f"{LAYER}/self_attn/out_proj": (1280, 1280)}), CLIPTextConfig(hidden_size=1280)),
}
UNET = {
    f"{BLOCK}/attn1/to_q": (640, 640),
    f"{BLOCK}/attn1/to_out_0": (640, 640),
    f"{BLOCK}/ff/net_0/proj": (640, 5120),
    f"{RESNET}/conv1": (3, 3, 320, 640),
    f"{RESNET}/time_emb_proj": (1280, 640),
    "up_blocks_0/upsamplers_0/conv": (3, 3, 1280, 1280),
    "time_embedding/linear_1": (320, 1280),
    "conv_in": (3, 3, 4, 320),
}
MMDIT = {
    "transformer_blocks_0/attn/to_out_0": (1536, 1536),
    "transformer_blocks_0/attn/to_q": (1536, 1536),
    "transformer_blocks_0/ff/net_2": (6144, 1536),
    "context_embedder": (4096, 1536),
    "norm_out/linear": (1536, 3072),
}
T5 = {"encoder/block_0/layer_0/SelfAttention/q": (4096, 4096)}
SDXL: Targets = {"unet": (tree(UNET), UNetConfig()), **TEXTS}
SD3: Targets = {
    "transformer": (tree(MMDIT), MMDiTConfig()),
    **TEXTS,
    "text_encoder_3": (tree(T5), T5Config()),
}
SGM = {  # the UNet's layers by single files' names
    f"{BLOCK}/attn1/to_q": "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    f"{BLOCK}/attn1/to_out_0": "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0",
    f"{BLOCK}/ff/net_0/proj": "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj",
    f"{RESNET}/conv1": "input_blocks.4.0.in_layers.2",
    f"{RESNET}/time_emb_proj": "input_blocks.4.0.emb_layers.1",
    "up_blocks_0/upsamplers_0/conv": "output_blocks.2.2.conv",
    "time_embedding/linear_1": "time_embed.0",
    "conv_in": "input_blocks.0.0",
}
DIFFUSERS = {
    f"{BLOCK}/attn1/to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    f"{BLOCK}/attn1/to_out_0": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
    f"{BLOCK}/ff/net_0/proj": "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    f"{RESNET}/conv1": "down_blocks.1.resnets.0.conv1",
    f"{RESNET}/time_emb_proj": "down_blocks.1.resnets.0.time_emb_proj",
    "up_blocks_0/upsamplers_0/conv": "up_blocks.0.upsamplers.0.conv",
    "time_embedding/linear_1": "time_embedding.linear_1",
    "conv_in": "conv_in",
}
SD3_ORIGINAL = {  # without q, k and v, which are one there
    "transformer_blocks_0/attn/to_out_0": "joint_blocks.0.x_block.attn.proj",
    "transformer_blocks_0/ff/net_2": "joint_blocks.0.x_block.mlp.fc2",
    "context_embedder": "context_embedder",
    "norm_out/linear": "final_layer.adaLN_modulation.1",
}
SD3_DIFFUSERS = {
    "transformer_blocks_0/attn/to_out_0": "transformer_blocks.0.attn.to_out.0",
    "transformer_blocks_0/attn/to_q": "transformer_blocks.0.attn.to_q",
    "transformer_blocks_0/ff/net_2": "transformer_blocks.0.ff.net.2",
    "context_embedder": "context_embedder",
    "norm_out/linear": "norm_out.linear",
}
CLIP = {
    f"{LAYER}/self_attn/q_proj": "text_model.encoder.layers.0.self_attn.q_proj",
    f"{LAYER}/mlp/fc1": "text_model.encoder.layers.0.mlp.fc1",
    f"{LAYER}/self_attn/out_proj": "text_model.encoder.layers.0.self_attn.out_proj",
}
T5_NAMES = {"encoder/block_0/layer_0/SelfAttention/q": "encoder.block.0.layer.0.SelfAttention.q"}
# (who, model, component, prefix, separator, the layers' names, style in reports)
SPELLED = [
    ("sd-scripts, OneTrainer KOHYA", SDXL, "unet", "lora_unet_", "_", SGM, KOHYA_SGM),
    ("OneTrainer LEGACY", SDXL, "unet", "lora_unet_", "_", DIFFUSERS, KOHYA_DIFFUSERS),
    ("OneTrainer DIFFUSERS, INTERNAL", SDXL, "unet", "unet.", ".", DIFFUSERS, PEFT),
    ("OneTrainer ORIGINAL", SDXL, "unet", "", ".", SGM, ORIGINAL),
    ("OneTrainer COMFY, ComfyUI", SDXL, "unet", "diffusion_model.", ".", SGM, COMFY),
    ("SimpleTuner LyCORIS", SDXL, "unet", "lycoris_", "_", DIFFUSERS, "LyCORIS (diffusers block names)"),
    ("diffusers save_lora_adapter", SDXL, "unet", "", ".", DIFFUSERS, PEFT),
    ("PEFT", SDXL, "unet", "base_model.model.", ".", DIFFUSERS, PEFT),
    ("PEFT in diffusers", SDXL, "unet", "unet.base_model.model.", ".", DIFFUSERS, PEFT),
    ("sd-scripts", SD3, "transformer", "lora_unet_", "_", SD3_ORIGINAL, KOHYA_SD3),
    ("OneTrainer LEGACY", SD3, "transformer", "lora_transformer_", "_", SD3_DIFFUSERS, KOHYA_DIFFUSERS),
    ("OneTrainer ORIGINAL", SD3, "transformer", "", ".", SD3_ORIGINAL, ORIGINAL),
    ("OneTrainer COMFY, ComfyUI", SD3, "transformer", "diffusion_model.", ".", SD3_ORIGINAL, COMFY),
    ("SimpleTuner LyCORIS", SD3, "transformer", "lycoris_", "_", SD3_DIFFUSERS, "LyCORIS (diffusers block names)"),
    ("SimpleTuner", SD3, "transformer", "transformer.", ".", SD3_DIFFUSERS, PEFT),
    ("diffusers save_lora_adapter", SD3, "transformer", "", ".", SD3_DIFFUSERS, PEFT),
    ("PEFT", SD3, "transformer", "base_model.model.", ".", SD3_DIFFUSERS, PEFT),
    *(
        case
        for model in (SDXL, SD3)
        for component, number, comfy in (("text_encoder", 1, "clip_l"), ("text_encoder_2", 2, "clip_g"))
        for case in (
            ("sd-scripts, OneTrainer KOHYA", model, component, f"lora_te{number}_", "_", CLIP, KOHYA),
            ("OneTrainer DIFFUSERS", model, component, f"{component}.", ".", CLIP, PEFT),
            ("OneTrainer COMFY, ComfyUI", model, component, f"text_encoders.{comfy}.transformer.", ".", CLIP, COMFY),
        )
    ),
    ("sd-scripts, OneTrainer KOHYA", SD3, "text_encoder_3", "lora_te3_", "_", T5_NAMES, KOHYA),
    ("OneTrainer DIFFUSERS", SD3, "text_encoder_3", "text_encoder_3.", ".", T5_NAMES, PEFT),
    ("OneTrainer COMFY, ComfyUI", SD3, "text_encoder_3", "text_encoders.t5xxl.transformer.", ".", T5_NAMES, COMFY),
]


def parts(kind: str, kernel: Shape) -> dict[str, Shape]:
    """Endings and shapes of a kind of change, for a layer."""
    inputs, outputs, window = kernel[-2], kernel[-1], kernel[:-2]
    ones = tuple(1 for _ in window)
    low = {"down": (2, inputs, *window), "up": (outputs, 2, *ones)}
    hada = {
        f"hada_w{i}_{h}": s
        for i in (1, 2)
        for h, s in (("a", (outputs, 2)), ("b", (2, inputs * 9 ** (len(ones) // 2))))
    }
    return {
        "kohya": {"lora_down.weight": low["down"], "lora_up.weight": low["up"], "alpha": ()},
        "A and B": {"lora_A.weight": low["down"], "lora_B.weight": low["up"], "alpha": ()},
        "old diffusers": {"lora.down.weight": low["down"], "lora.up.weight": low["up"]},
        "LoHa": {**hada, "alpha": ()},
        "LoKr": {"lokr_w1": (4, 4), "lokr_w2": (outputs // 4, inputs // 4, *window), "alpha": ()},
        "diff": {"diff": (outputs, inputs, *window), "diff_b": (outputs,)},
        "DoRA": {"lora_A.weight": low["down"], "lora_B.weight": low["up"], "dora_scale": (1, inputs, *ones)},
    }[kind]


CLASSES = {"kohya": LowRank, "A and B": LowRank, "old diffusers": LowRank, "DoRA": LowRank}
CLASSES |= {"LoHa": Hadamard, "LoKr": Kronecker, "diff": Full}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("case", SPELLED, ids=lambda case: f"{case[0]} {case[2]} {case[3]}")
def test_every_spelling_finds_its_layer(tmp_path: Path, case: tuple[Any, ...], kind: str) -> None:
    _, targets, component, prefix, separator, names, style = case
    shapes, _ = targets[component]
    kernels = {path: at(shapes, path)["kernel"] for path in names if at(shapes, path)}
    tensors = {
        f"{prefix}{names[path].replace('.', separator)}.{ending}": np.ones(shape, np.float16)
        for path, kernel in kernels.items()
        for ending, shape in parts(kind, kernel).items()
    }
    path = saved(tmp_path / "a.safetensors", tensors)
    file = read_lora(path, targets)
    assert {layer.path for layer in file.layers} == kernels.keys()
    assert {layer.component for layer in file.layers} == {component}
    assert {type(change.matrix) for change in file.layers.values()} == {CLASSES[kind]}
    assert describe(path).loads  # known for a LoRA without being told
    about = describe_lora(path)
    assert not about.problems and about.modules == {component: len(kernels)}
    assert about.dialect.endswith(f", {style}")
    if component in ("unet", "transformer", "text_encoder_3"):
        assert about.family == ("SDXL" if targets is SDXL else "Stable Diffusion 3")


def at(shapes: Any, path: str) -> Any:
    for name in path.split("/"):
        shapes = shapes.get(name, {})
    return shapes


PROCESSORS = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora": ("unet", f"{BLOCK}/attn1/to_q"),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora": ("unet", f"{BLOCK}/attn1/to_out_0"),
    "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora": ("text_encoder", f"{LAYER}/self_attn/q_proj"),
    "text_encoder_2.text_model.encoder.layers.0.self_attn.to_out_lora": (
        "text_encoder_2",
        f"{LAYER}/self_attn/out_proj",
    ),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer": ("text_encoder", f"{LAYER}/mlp/fc1"),
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora": ("unet", f"{BLOCK}/attn1/to_q"),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_attention_processors_of_2023(tmp_path: Path, name: str) -> None:
    component, path = PROCESSORS[name]
    inputs, outputs = at(SDXL[component][0], path)["kernel"]
    tensors = {f"{name}.down.weight": np.ones((2, inputs)), f"{name}.up.weight": np.ones((outputs, 2))}
    [layer] = read_lora(saved(tmp_path / "a.safetensors", tensors), SDXL).layers
    assert (layer.component, layer.path) == (component, path)
    assert describe_lora(tmp_path / "a.safetensors").modules == {component: 1}


# ---- files that the trainers' packages write -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def targets(tiny_folder: Path) -> Targets:
    from autolora_jax.weights.checkpoint import open_checkpoint

    return targets_of(open_checkpoint(tiny_folder).networks)


def test_diffusers_save_lora_adapter(
    tiny_pipeline: StableDiffusionXLPipeline, targets: Targets, tmp_path: Path
) -> None:
    """Names and settings without any prefix; alpha / rank is the settings' alone."""
    unet = copy.deepcopy(tiny_pipeline.unet)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "conv1"], rank_pattern={"to_k": 2}))
    unet.save_lora_adapter(tmp_path)
    file = read_lora(tmp_path, targets)
    said = {name: module.scaling["default"] for name, module in unet.named_modules() if hasattr(module, "scaling")}
    assert {torch_module(layer.path): change.matrix.scale for layer, change in file.layers.items()} == said
    assert set(said.values()) == {2.0, 4.0}


# LyCORIS' own "full" names diffusers' time embedding twice.
PRESET = """
enable_conv = true
unet_target_module = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
unet_target_name = ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]
"""
# what is trained -> (arguments, kinds as the report calls them)
ALGORITHMS: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({}, "LoRA"),
    "dora": ({"dora_wd": True}, "DoRA"),
    "dora of inputs": ({"dora_wd": True, "wd_on_output": False}, "DoRA"),
    "tucker": ({"use_tucker": True}, "LoRA"),
    "loha": ({"algo": "loha"}, "LoHa (LyCORIS)"),
    "lokr": ({"algo": "lokr", "factor": 4}, "LoKr (LyCORIS)"),
    "lokr full": ({"algo": "lokr", "factor": 4, "full_matrix": True}, "LoKr (LyCORIS)"),
    "full": ({"algo": "full"}, "full difference (diff)"),
    "norms": ({"train_norm": True}, "LoRA + trained norms"),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_lycoris_for_kohya(
    tiny_pipeline: StableDiffusionXLPipeline, targets: Targets, tmp_path: Path, algorithm: str
) -> None:
    """The UNet and both text encoders: every module is found, under the name that LyCORIS gives it."""
    encoders = [tiny_pipeline.text_encoder, tiny_pipeline.text_encoder_2]
    (tmp_path / "preset.toml").write_text(PRESET)
    arguments, kinds = ALGORITHMS[algorithm]
    options = {**arguments, "preset": str(tmp_path / "preset.toml"), "warn_on_unmatched": False}
    network = create_network(1.0, 2, 1.0, None, encoders, tiny_pipeline.unet, **options)
    network.apply_to(encoders, tiny_pipeline.unet, True, True)
    try:
        save_file({name: x.detach().clone() for name, x in network.state_dict().items()}, tmp_path / "a.safetensors")
    finally:
        for module in network.loras:
            module.restore()
    file = read_lora(tmp_path / "a.safetensors", targets)
    known = {
        f"{prefix}_{name}".replace(".", "_"): (component, canonical(component, name))
        for component, prefix in (("unet", "lora_unet"), ("text_encoder", "lora_te1"), ("text_encoder_2", "lora_te2"))
        for name, _ in getattr(tiny_pipeline, component).named_modules()
    }
    wanted = {known[module.lora_name] for module in network.loras}
    assert {(layer.component, torch_module(layer.path)) for layer in file.layers} == wanted
    assert {component for component, _ in wanted} == {"unet", "text_encoder", "text_encoder_2"}
    assert file.dialect == f"{kinds}, {KOHYA_DIFFUSERS}"


@pytest.mark.parametrize("algorithm", ["lokr", "loha", "full"])
def test_lycoris_for_simple_tuner(tmp_path: Path, algorithm: str) -> None:
    """On SD3's transformer, q, k and v apart."""
    transformer = SD3Transformer2DModel(**CONFIG)
    network = create_lycoris(transformer, 1.0, linear_dim=2, linear_alpha=1, algo=algorithm, factor=4)
    network.apply_to()
    try:
        save_file({name: x.detach().clone() for name, x in network.state_dict().items()}, tmp_path / "a.safetensors")
    finally:
        for module in network.loras:
            module.restore()
    targets = targets_of({"transformer": MMDiTConfig.from_dict(CONFIG)})
    file = read_lora(tmp_path / "a.safetensors", targets)
    linear = {n for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert {torch_module(layer.path) for layer in file.layers} == linear
    assert len(file.layers) == len(network.loras)
