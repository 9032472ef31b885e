"""LoRAs for SD3 and SD3.5: all dialects against diffusers and against dense changes of the fused weights."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.numpy import load_file

from autolora_jax import lora
from autolora_jax.config import MMDiTConfig
from autolora_jax.lora import save_lora
from autolora_jax.models.networks import network_of
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.dialects import guess_family
from autolora_jax.weights.lora.export import DIALECTS, convert_lora
from autolora_jax.weights.lora.files import read_lora, targets_of
from autolora_jax.weights.lora.match import examine_modules, match_layers, raise_problems
from autolora_jax.weights.lora.names import Names, Targets
from autolora_jax.weights.published import SD3_MEDIUM, SD35_MEDIUM
from tests.conftest import ROOT
from tests.lora_reference import Change
from tests.lora_sd3_reference import (
    CONFIG,
    TEXT_PREFIX,
    Changes,
    fused_shapes,
    kohya_tensors,
    peft_file,
    random_change,
    random_changes,
    taken_apart,
    written,
)
from tests.parity import error
from tests.reference_sd3 import tiny_sd3
from tests.test_lora_files import key_list

PARITY = 1e-5  # of the maximum; seen: 3.7e-6, against the definition and diffusers alike
SCALE = 0.7
SHAPES = fused_shapes(CONFIG)
QKV = ("joint_blocks.0.x_block.attn.qkv", "joint_blocks.0.x_block.attn2.qkv", "joint_blocks.2.context_block.attn.qkv")
PROJ = "joint_blocks.0.x_block.attn.proj"

Outputs = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def targets() -> Targets:
    return targets_of({"transformer": MMDiTConfig.from_dict(CONFIG)})


class Both:
    """The tiny pipeline in torch and here, with the same inputs."""

    def __init__(self, pipe: StableDiffusion3Pipeline, folder: Path) -> None:
        checkpoint = open_checkpoint(folder)
        self.pipe, self.networks = pipe, checkpoint.networks
        self.targets = targets_of(checkpoint.networks)
        self.params = {component: checkpoint.load(component) for component in self.targets}
        g = torch.Generator().manual_seed(7)
        self.x = torch.randn(2, CONFIG["in_channels"], 8, 12, generator=g)
        self.t = torch.tensor([1000.0, 37.0])
        self.prompt = torch.randn(2, 7, CONFIG["joint_attention_dim"], generator=g)
        self.pooled = torch.randn(2, CONFIG["pooled_projection_dim"], generator=g)
        self.ids = torch.randint(0, 24, (2, 77), generator=g)
        # Compile time is most of these tests; optimised code would not be more exact.
        self.run = jax.jit(self._run, compiler_options={"xla_backend_optimization_level": 0})

    @torch.no_grad()
    def torch(self) -> Outputs:
        """The transformer's prediction, the text encoders' states and pooled vectors, as torch computes them now."""
        one, two = (
            encoder(self.ids, output_hidden_states=True)
            for encoder in (self.pipe.text_encoder, self.pipe.text_encoder_2)
        )
        velocity = self.pipe.transformer(self.x, self.prompt, self.pooled, self.t, return_dict=False)[0]
        found = {
            "transformer": velocity.permute(0, 2, 3, 1),
            "text_encoder": one.hidden_states[-2],
            "text_encoder_2": two.hidden_states[-2],
            "text_encoder_3": self.pipe.text_encoder_3(self.ids)[0],
            "pooled": torch.cat([one.text_embeds, two.text_embeds], dim=-1),
        }
        return {name: value.numpy().copy() for name, value in found.items()}

    def _run(self, params: dict[str, Any], tree: dict[str, Any]) -> dict[str, jax.Array]:
        delta = lora.at_scale(tree, jnp.float32([SCALE]))
        x, t, prompt, pooled, ids = (
            jnp.asarray(a.numpy())
            for a in (self.x.permute(0, 2, 3, 1), self.t, self.prompt, self.pooled, self.ids.int())
        )
        variables = {c: {"params": params[c], "lora": delta.get(c, {})} for c in params}
        apply = {c: network_of(self.networks[c]).apply for c in params}
        one, first = apply["text_encoder"](variables["text_encoder"], ids)
        two, second = apply["text_encoder_2"](variables["text_encoder_2"], ids)
        return {
            "transformer": apply["transformer"](variables["transformer"], x, t, prompt, pooled),
            "text_encoder": one[-2],
            "text_encoder_2": two[-2],
            "text_encoder_3": apply["text_encoder_3"](variables["text_encoder_3"], ids),
            "pooled": jnp.concatenate([first, second], axis=-1),
        }

    def load(self, path: Path) -> dict[str, Any]:
        return lora.attach(read_lora(path, self.targets))[0]

    def ours(self, path: Path) -> Outputs:
        return jax.device_get(self.run(self.params, self.load(path)))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("tiny") / "sd35"
    pipe = tiny_sd3(folder, "sd3.5")
    pipe.save_pretrained(folder)
    return Both(pipe, folder)


class Files:
    """One LoRA of every layer of all four networks, in kohya's dialect and in diffusers'."""

    def __init__(self, both: Both, folder: Path) -> None:
        self.fused = random_changes(SHAPES, 1)
        tensors = kohya_tensors(self.fused, "lora_unet_")
        layers = {"transformer": _as_layers(self.fused)}
        self.deltas = {"transformer": taken_apart({name: change.delta for name, change in self.fused.items()}, CONFIG)}
        for seed, (component, prefix) in enumerate(TEXT_PREFIX.items()):
            modules = {
                name: tuple(module.weight.shape)
                for name, module in getattr(both.pipe, component).named_modules()
                if isinstance(module, torch.nn.Linear)
            }
            layers[component] = random_changes(modules, 2 + seed)
            tensors |= kohya_tensors(layers[component], prefix)
            self.deltas[component] = {name: change.delta for name, change in layers[component].items()}
        self.kohya = written(folder / "kohya.safetensors", tensors)
        self.peft = written(folder / "peft.safetensors", *peft_file(layers))
        self.wanted = self._merged(both)

    def _merged(self, both: Both) -> Outputs:
        """What torch makes of its weights with the changes added."""
        kept = {component: getattr(both.pipe, component).state_dict() for component in self.deltas}
        kept = {component: {k: v.clone() for k, v in state.items()} for component, state in kept.items()}
        try:
            for component, deltas in self.deltas.items():
                state = dict(kept[component])
                for key in state:
                    name = key.removesuffix(".weight")
                    if name in deltas:
                        state[key] = (state[key].double() + SCALE * deltas[name]).float()
                getattr(both.pipe, component).load_state_dict(state)
            return both.torch()
        finally:
            for component, state in kept.items():
                getattr(both.pipe, component).load_state_dict(state)


def _as_layers(fused: Changes) -> Changes:
    """The changes of diffusers' layers that are those of the fused ones, with the same halves: found by their ΔW."""
    found: Changes = {}
    for name, change in fused.items():
        pieces = taken_apart({name: change.delta}, CONFIG)
        rows = change.up.shape[0] // len(pieces)
        for i, (module, delta) in enumerate(pieces.items()):
            up = change.up[i * rows : (i + 1) * rows]
            exchanged = Change(change.down, torch.cat(up.chunk(2)[::-1]), change.alpha)
            plain = Change(change.down, up, change.alpha)
            found[module] = plain if torch.equal(plain.delta, delta) else exchanged
            assert torch.equal(found[module].delta, delta)
    return found


@pytest.fixture(scope="module")
def files(both: Both, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(both, tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("dialect", ["kohya", "peft"])
def test_matches_the_definition(both: Both, files: Files, dialect: str) -> None:
    base, ours = both.torch(), both.ours(getattr(files, dialect))
    for name, theirs in files.wanted.items():
        assert error(theirs, base[name]) > 0.1, name  # large enough that getting it wrong would show
        assert error(ours[name], theirs) < PARITY, name


def test_matches_diffusers(both: Both, files: Files) -> None:
    """The file in its dialect; of text_encoder_3 it loads nothing."""
    ours = both.ours(files.peft)
    try:
        both.pipe.load_lora_weights(files.peft.parent, weight_name=files.peft.name, adapter_name="a")
        both.pipe.set_adapters(["a"], [SCALE])
        theirs = both.torch()
    finally:
        both.pipe.unload_lora_weights()
    for name in theirs.keys() - {"text_encoder_3"}:
        assert error(ours[name], theirs[name]) < PARITY, name


def test_report(both: Both, files: Files) -> None:
    """Three layers share a `down`, which the file has once."""
    _, report = lora.attach(read_lora(files.kohya, both.targets))
    parameters = sum(x.size for name, x in load_file(files.kohya).items() if not name.endswith("alpha"))
    assert report.parameters == parameters
    assert report.modules == {component: len(deltas) for component, deltas in files.deltas.items()}
    assert report.dialect == "LoRA, kohya (SD3 block names)"
    about = describe_lora(files.kohya)
    assert about.problems == () and about.family == "Stable Diffusion 3.5 Medium"
    assert about.modules["transformer"] == len(SHAPES) and "unet" not in about.modules


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("source", ["kohya", "peft"])
def test_converted_files_are_the_same_lora(both: Both, files: Files, tmp_path: Path, source: str, dialect: str) -> None:
    """Tensor for tensor: q, k and v that share `down` become one module again."""
    file = read_lora(getattr(files, source), both.targets)
    convert_lora(tmp_path / "a.safetensors", file, dialect, both.networks["transformer"])
    again, wanted = load_file(tmp_path / "a.safetensors"), load_file(getattr(files, dialect))
    assert again.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(again[name], tensor)
    converted = read_lora(tmp_path / "a.safetensors", both.targets)
    assert {k: v.matrix.scale for k, v in converted.layers.items()} == {
        k: v.matrix.scale for k, v in file.layers.items()
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_saved_trees_load_as_they_were(both: Both, tmp_path: Path, dialect: str) -> None:
    """With q, k and v of their own: as trained here or by diffusers, some of them absent."""
    state = both.pipe.transformer.state_dict()
    shapes = {k.removesuffix(".weight"): tuple(v.shape) for k, v in state.items() if v.ndim in (2, 4)}
    kept = {
        name: shape for name, shape in shapes.items() if not re.search(r"1\.attn\.(to_q|add_)|0\.attn2\.to_v", name)
    }
    path = written(tmp_path / "a.safetensors", *peft_file({"transformer": random_changes(kept, 9)}))
    trees = both.load(path)
    save_lora(tmp_path / "b.safetensors", trees, dialect, None, both.networks["transformer"])
    again = both.load(tmp_path / "b.safetensors")
    assert jax.tree.structure(again) == jax.tree.structure(trees)
    exact = 0.0 if dialect == "peft" else 2e-7  # layers of other ranks have the highest one's alpha there; seen 1.2e-7
    jax.tree.map(lambda *both: np.testing.assert_allclose(*both, rtol=exact), again, trees)


@pytest.mark.parametrize(
    "prefix, separator",
    [
        ("transformer.", "."),
        ("transformer.base_model.model.", "."),
        ("base_model.model.transformer.", "."),
        ("base_model.model.", "."),
        ("lora_transformer_", "_"),
    ],
)
def test_transformer_prefixes(tmp_path: Path, targets: Targets, prefix: str, separator: str) -> None:
    change = random_change((32, 32), 2, 2.0, 0)
    name = prefix + "transformer_blocks.0.attn.to_out.0".replace(".", separator)
    tensors = {f"{name}.lora_down.weight": change.down, f"{name}.lora_up.weight": change.up}
    path = written(tmp_path / "a.safetensors", tensors)
    [layer] = read_lora(path, targets).layers
    assert (layer.component, layer.path) == ("transformer", "transformer_blocks_0/attn/to_out_0")
    about = describe_lora(path, targets)
    assert about.family == "Stable Diffusion 3" and about.modules == {"transformer": 1}


# Every list of facts/lora that is SD3's: the model, and the layers it must change.
LOADED = {
    "kohya_sd3_lora.txt": (SD3_MEDIUM, 597),
    "kohya_sd3_lora_with_t5.txt": (SD3_MEDIUM, 765),
    "kohya_sd3_lora_emb_dims.txt": (SD3_MEDIUM, 341),
    "kohya_sd35_medium_lora.txt": (SD35_MEDIUM, 385),
    "REAL_pixel-art-medium-128-v0.1.txt": (SD3_MEDIUM, 96),
    "diffusers/sd3_old_default_targets.txt": (SD3_MEDIUM, 96),
    "diffusers/sd3_new_default_targets_with_te.txt": (SD3_MEDIUM, 367),
}


@pytest.fixture(scope="module")
def published() -> list[tuple[Any, Names]]:
    return [(networks, Names(targets_of(networks))) for networks in (SD3_MEDIUM, SD35_MEDIUM)]


@pytest.mark.parametrize("name", LOADED)
def test_key_list_matches(facts: Path, published: list[tuple[Any, Names]], name: str) -> None:
    networks, layers = LOADED[name]
    [known] = [known for other, known in published if other is networks]
    shapes = key_list(facts / "lora" / name)
    match = match_layers(examine_modules(shapes), shapes, known)
    assert match.problems.lines() == []
    assert len(match.layers) == layers
    assert sorted(key for parts in match.modules.values() for key in parts.values()) == sorted(shapes)
    assert match.family.startswith("Stable Diffusion 3")


@pytest.mark.parametrize(
    "name, words",
    [
        ("kohya_sdxl_lora.txt", "looks made for SDXL: use it with the model it was trained on"),
        ("REAL_pixel-art-xl-v1.1.txt", "looks made for SDXL"),
        ("diffusers/sdxl_peft.txt", "looks made for SDXL"),
        ("kohya_sd35_medium_lora.txt", "attn2_proj.*looks made for Stable Diffusion 3.5 Medium"),
    ],
)
def test_another_model_is_named(facts: Path, published: list[tuple[Any, Names]], name: str, words: str) -> None:
    """SD3's LoRAs on SDXL: see test_lora_files."""
    _, sd3_medium = published[0]
    with pytest.raises(WeightsError, match=words):
        shapes = key_list(facts / "lora" / name)
        raise_problems("file.safetensors", match_layers(examine_modules(shapes), shapes, sd3_medium))


def test_convert_program(
    both: Both, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a model that is named, and for the published one that a file fits."""
    both.pipe.save_pretrained(tmp_path / "model")
    name = "lora_unet_joint_blocks_0_x_block_attn2_qkv"
    down, up = torch.ones(1, 1536), torch.ones(4608, 1)
    medium = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    written(tmp_path / "medium.safetensors", medium)
    for source, options in ((files.kohya, ["--model", tmp_path / "model"]), (tmp_path / "medium.safetensors", [])):
        out = tmp_path / f"{source.stem}.peft.safetensors"
        monkeypatch.setattr(sys, "argv", [str(x) for x in ("lora.py", source, out, "--dialect", "peft", *options)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "convert" / "lora.py"), run_name="__main__")
        assert stopped.value.code == 0, capsys.readouterr().err
    assert load_file(tmp_path / "kohya.peft.safetensors").keys() == load_file(files.peft).keys()
    assert {key.rpartition(".lora")[0] for key in load_file(out)} == {
        f"transformer.transformer_blocks.0.attn2.to_{x}" for x in "qkv"
    }


@pytest.mark.parametrize(
    "key, width, family",
    [
        ("lora_unet_joint_blocks_3_context_block_attn_qkv.lora_down.weight", 2432, "Stable Diffusion 3.5 Large"),
        ("transformer.transformer_blocks.3.attn.to_q.lora_A.weight", 2432, "Stable Diffusion 3.5 Large"),
        ("transformer.transformer_blocks.3.attn.to_q.lora_A.weight", 1536, "Stable Diffusion 3"),
        ("lora_unet_joint_blocks_3_x_block_mlp_fc2.lora_down.weight", 6144, "Stable Diffusion 3"),
    ],
)
def test_families_of_sd3(key: str, width: int, family: str) -> None:
    assert guess_family({key: (4, width)}) == family


def test_a_layer_named_twice(tmp_path: Path, targets: Targets) -> None:
    tensors = kohya_tensors({QKV[0]: random_change((96, 32), 2, 1.0, 0)}, "lora_unet_")
    one = random_change((32, 32), 2, 1.0, 1)
    name = "transformer.transformer_blocks.0.attn.to_k"
    tensors |= {f"{name}.lora_A.weight": one.down, f"{name}.lora_B.weight": one.up}
    with pytest.raises(
        WeightsError, match=rf"1 layers named twice: lora_unet_joint_blocks_0_x_block_attn_qkv and {name}"
    ):
        read_lora(written(tmp_path / "a.safetensors", tensors), targets)


def test_a_piece_instead_of_the_whole(tmp_path: Path, targets: Targets) -> None:
    tensors = kohya_tensors({QKV[0]: random_change((32, 32), 2, 1.0, 0)}, "lora_unet_")
    with pytest.raises(WeightsError, match=r"up \[32, 2\], but the layer takes \[2, 32\] and \[96, 2\]"):
        read_lora(written(tmp_path / "a.safetensors", tensors), targets)


def test_kohyas_names_need_the_config(both: Both, files: Files, tmp_path: Path) -> None:
    """The last block is another than the others."""
    trees = both.load(files.peft)
    with pytest.raises(
        ValueError, match="MMDiTConfig, not from the UNetConfig given; pass the base model's denoiser_config"
    ):
        save_lora(tmp_path / "a.safetensors", trees, "kohya")
    save_lora(tmp_path / "a.safetensors", trees, "peft")
