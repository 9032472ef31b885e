"""LoRAs by name: strengths over the steps, on and off, unloaded, block weights; and diffusers' names of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline
from flax import traverse_util

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline
from autolora_jax import lora as loras
from autolora_jax.pictures import parameters
from autolora_jax.settings import Lora
from tests.lora_reference import COMPONENTS, random_lora
from tests.lora_runs import TOLERANCE, Both, assert_close, errors
from tests.parity import error

FINAL = 2e-5  # of the largest latent; seen: 1.9e-6
CALL = {"seeds": [3], "height": 64, "width": 64, "num_inference_steps": 4, "output_type": "latent"}
RULE = AutoLoRA(1.5, 2.0, 3.0)
# A block's factor, one layer's, a group's; and of the text encoders.
BLOCKS = {"unet": {"down": 0.5, "up": {"block_0": [0.2, 0.7]}, "attn2": 0.4, "resnets": 0.0}, "text_encoder": 0.3}


@pytest.fixture(scope="module")
def folder(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("control")
    theirs = StableDiffusionXLPipeline.from_pretrained(small_folder)
    random_lora(theirs, seed=3, convolutions=True).save(folder / "ink.safetensors", "peft")
    random_lora(theirs, seed=4).save(folder / "wash.safetensors", "peft")
    mixed(theirs, folder / "mixed.safetensors")
    return folder


def mixed(theirs: StableDiffusionXLPipeline, path: Path) -> None:
    """Every kind of LyCORIS in turn."""
    from safetensors.numpy import save_file

    from tests.lycoris_reference import KINDS, names_of, tensors_of, trained

    tensors: dict[str, np.ndarray] = {}
    kinds = [kind for kind in KINDS if kind != "norm"]
    layers = {name: layer for c in COMPONENTS for name, layer in names_of(theirs, c).items()}
    for i, (name, layer) in enumerate(layers.items()):
        is_norm = type(layer).__name__.endswith("Norm")
        tensors |= tensors_of(trained("norm" if is_norm else kinds[i % len(kinds)], name, layer, i, strength=0.3))
    save_file(tensors, path)


@pytest.fixture(scope="module")
def loaded(small_folder: Path) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])


@pytest.fixture
def pipe(loaded: AutoLoRAPipeline, folder: Path) -> Iterator[AutoLoRAPipeline]:
    loaded.load_lora(folder / "ink.safetensors", 0.8)
    loaded.load_lora(folder / "wash.safetensors", 0.5, name="soft")
    yield loaded
    loaded.unload_lora()


def draw(pipe: AutoLoRAPipeline, **changes: Any) -> np.ndarray:
    return pipe("a cat", **{"guidance": RULE, **CALL, **changes}).images


# ---- strengths over the steps ----------------------------------------------------------------------------------------


def test_a_strength_may_be_of_the_progress(pipe: AutoLoRAPipeline):
    by_step = np.array([[[0.8, 1.0], [0.8, 0.75], [0.8, 0.5], [0.8, 0.25]]], np.float32)
    wanted, one = draw(pipe, lora_scale=by_step), draw(pipe)
    assert error(one, wanted) > 1e-3
    for scale in ([1.0, 0.25], [1.0, 0.75, 0.5, 0.25], lambda progress: 1 - 0.75 * progress, np.linspace(1, 0.25, 9)):
        pipe.set_lora("soft", scale=scale)
        assert error(draw(pipe), wanted) < 1e-6
    settings = pipe("a cat", guidance=CFG(2.0), **CALL).settings[0]
    assert settings["lora_scales"] == [pytest.approx(0.8), pytest.approx([1.0, 0.75, 0.5, 0.25])]
    pipe.set_lora("soft", scale=0.5)
    np.testing.assert_array_equal(draw(pipe), one)


def test_a_step_by_step_strength_goes_with_one_of_the_call(pipe: AutoLoRAPipeline):
    """lora_scale is of the LoRAs that make the tuned model; the accelerator's schedule stays."""
    pipe.set_lora("soft", scale=[1.0, 0.0], role="all")
    over = np.linspace(1, 0, 4)
    by_step = np.stack([np.full(4, 0.3), over], axis=-1)[None]
    np.testing.assert_array_equal(draw(pipe, lora_scale=0.3), draw(pipe, lora_scale=by_step))


@pytest.mark.parametrize("scale", ["much", [0.5, np.nan], lambda progress: None, np.inf])
def test_a_strength_that_is_none_is_told(pipe: AutoLoRAPipeline, scale: Any):
    with pytest.raises(ValueError, match=r"the scale of the LoRA soft is .*: need a finite number, several over the"):
        pipe.set_lora("soft", scale=scale)


# ---- by name ---------------------------------------------------------------------------------------------------------


def test_what_is_off_or_gone_acts_nowhere(pipe: AutoLoRAPipeline, folder: Path):
    alone, both = draw(pipe, lora_scale=[[0.8, 0.0]]), draw(pipe)
    pipe.set_lora("soft", enabled=False)
    np.testing.assert_array_equal(draw(pipe), alone)
    np.testing.assert_array_equal(draw(pipe, lora_scale=[[0.8, 0.5]]), alone)
    assert pipe("a cat", **CALL).settings[0]["loras"] == ["ink"] and pipe.get_active_adapters() == ["ink"]
    pipe.enable_lora()
    np.testing.assert_array_equal(draw(pipe), both)
    pipe.unload_lora("soft")
    assert error(draw(pipe), alone) < 1e-6 and [each.name for each in pipe.loras] == ["ink"]
    pipe.disable_lora()
    with pytest.raises(ValueError, match="compares a tuned model with its base"):
        draw(pipe)
    pipe.enable_lora()
    pipe.load_lora(folder / "wash.safetensors", 0.5)
    pipe.unload_lora("ink")  # the first: numbers of those behind it move
    assert error(draw(pipe), both) > 1e-3


def test_names_are_unique(pipe: AutoLoRAPipeline, folder: Path):
    with pytest.raises(ValueError, match="a LoRA 'soft' is loaded already"):
        pipe.load_lora(folder / "wash.safetensors", name="soft")
    pipe.load_lora(folder / "ink.safetensors")
    assert [each.name for each in pipe.loras] == ["ink", "soft", "ink_2"]
    for call in (pipe.unload_lora, pipe.set_lora, pipe.set_adapters, pipe.delete_adapters):
        with pytest.raises(ValueError, match="no LoRA 'inc' is loaded; there are ink, soft, ink_2"):
            call("inc")


def test_diffusers_names_do_as_there(pipe: AutoLoRAPipeline):
    pipe.set_adapters(["soft", "ink"], adapter_weights=[0.9, 0.2])
    np.testing.assert_array_equal(draw(pipe), draw(pipe, lora_scale=[[0.2, 0.9]]))
    pipe.set_adapters("soft")
    assert (pipe.get_active_adapters(), pipe.loras[1].scale) == (["soft"], 1.0)
    with pytest.raises(ValueError, match="adapter_weights are 1 for 2 adapter_names"):
        pipe.set_adapters(["soft", "ink"], [0.9])
    pipe.delete_adapters(["soft"])
    assert [each.name for each in pipe.loras] == ["ink"]


def test_words_go_with_their_lora(loaded: AutoLoRAPipeline, folder: Path):
    from autolora_jax.text import Word

    for name in ("ink", "wash"):
        report = loaded.load_lora(folder / f"{name}.safetensors")
        vectors = {
            encoder: np.ones((1, e.config.hidden_size), np.float32) for encoder, e in loaded.text.encoders.items()
        }
        loaded.text.set_words([*loaded.text.words, Word(f"<{name}>", vectors, report.path, len(loaded.loras) - 1)])
    loaded.unload_lora("ink")
    assert [(word.name, word.lora) for word in loaded.text.words] == [("<wash>", 0)]
    loaded.unload_lora()
    assert not list(loaded.text.words)


def test_nothing_compiles(pipe: AutoLoRAPipeline, count_compilations: Callable[[], Any]):
    draw(pipe)
    with count_compilations() as compiled:
        pipe.set_lora("soft", scale=[0.1, 0.9], role="all")
        draw(pipe)
        pipe.set_lora("soft", blocks=BLOCKS)
        draw(pipe)
        pipe.set_lora("ink", enabled=False, role="base")
        draw(pipe, guidance=CFG(2.0))
    assert compiled == []


# ---- block weights ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tiny_pipeline: StableDiffusionXLPipeline, tiny_folder: Path) -> Both:
    """Of three levels: two of its blocks on the way up have attention."""
    return Both(tiny_pipeline, tiny_folder)


def test_block_weights_are_diffusers(both: Both, tiny_pipeline: StableDiffusionXLPipeline, tmp_path: Path):
    path = random_lora(tiny_pipeline, seed=2).save(tmp_path / "a.safetensors", "peft")
    tree, params = both.load(path), both.params
    levels = {"unet": {"down": 0.3, "mid": 0.6, "up": {"block_0": 0.8, "block_1": [0.2, 0.4, 0.9][: layers_of(both)]}}}
    weights = {**levels, "text_encoder": 0.5, "text_encoder_2": 0.25}
    factors = loras.read_blocks(weights, params)
    ours = {name: loras.weighted(part, factors[name]) for name, part in tree.items()}
    both.pipe.load_lora_weights(str(path), adapter_name="a")
    try:
        both.pipe.set_adapters("a", weights)
        theirs = both.torch()
    finally:
        both.pipe.unload_lora_weights()
    assert_close(both.ours(ours, [1.0]), theirs, TOLERANCE)
    assert max(errors(both.ours(tree, [1.0]), theirs).values()) > 0.01


def layers_of(both: Both) -> int:
    return len(both.pipe.unet.up_blocks[1].attentions)


def factor_of(path: str) -> float:
    """BLOCKS, once more: of a layer's path in our trees."""
    component, *layer = path.split("/")
    inside = "/".join(layer)
    if component != "unet":
        return {"text_encoder": 0.3}.get(component, 1.0)
    factor = 0.5 if inside.startswith("down_blocks") else 1.0
    if inside.startswith("up_blocks_0/attentions") or inside.startswith("up_blocks_0/resnets"):
        factor *= (0.2, 0.7)[int(layer[1][-1])]
    factor *= 0.4 if "attn2" in layer else 1.0
    return factor * (0.0 if any(word.startswith("resnets_") for word in layer) else 1.0)


@pytest.mark.parametrize("file", ["ink", "mixed"])
def test_block_weights_equal_weights_merged_by_hand(small_folder: Path, folder: Path, file: str):
    """Layer by layer, W + scale · factor · ΔW, of every kind; whole guided runs with the text encoders."""
    pipe, by_hand, base = (
        AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1]) for _ in range(3)
    )
    pipe.load_lora(folder / f"{file}.safetensors", 0.8, blocks=BLOCKS)
    merged: dict[float, Any] = {}
    trees, params = pipe.loras[0].trees, {name: base.params[name] for name in COMPONENTS}
    flat = traverse_util.flatten_dict(params, sep="/")
    for path in flat:
        factor = factor_of(path)
        if factor not in merged:
            whole = loras.merge_into(params, trees, np.float32([0.8 * factor]))
            merged[factor] = traverse_util.flatten_dict(whole, sep="/")
        flat[path] = merged[factor][path]
    changed = traverse_util.unflatten_dict(flat, sep="/")
    by_hand.text.params = {**by_hand.text.params, **{name: changed[name] for name in COMPONENTS[1:]}}
    by_hand.engine.model = by_hand.engine.model._replace(params=changed["unet"])
    ours = draw(pipe, guidance=CFG(3.0))
    assert error(ours, draw(by_hand, guidance=CFG(3.0))) < FINAL
    pipe.set_lora(file, blocks={})
    assert error(draw(pipe, guidance=CFG(3.0)), ours) > 1e-3


def test_a_name_is_of_whole_words():
    """SD3 has twenty-four blocks: the second's name begins that of the eleventh."""
    blocks = {f"transformer_blocks_{i}": {"attn": {"to_q": {"kernel": 0}}} for i in (1, 10)}
    factors = loras.read_blocks({"transformer": {"transformer_blocks.1": 0.5}}, {"transformer": blocks})
    leaf = {"down": np.ones((2, 1), np.float32), "up": np.ones((1, 2), np.float32), "owner": np.zeros(1, np.int32)}
    tree = {name: {"attn": {"to_q": leaf}} for name in blocks}
    ups = [layer["attn"]["to_q"]["up"][0, 0] for layer in loras.weighted(tree, factors["transformer"]).values()]
    assert ups == [0.5, 1.0]


def test_block_weights_are_told(pipe: AutoLoRAPipeline):
    pipe.set_lora("soft", blocks={"unet": {"mid": 0.5}})
    settings = pipe("a cat", **CALL).settings[0]
    assert settings["lora_blocks"] == ["", "unet.mid_block=0.5"] and "block weights" in str(pipe)
    parameters(settings)


SDXL = {
    "conv_in": {},
    "down_blocks_0": {"resnets_0": {}, "resnets_1": {}, "downsamplers_0": {}},
    **{f"down_blocks_{b}": {"resnets_0": {}, "attentions_0": {}, "resnets_1": {}, "attentions_1": {}} for b in (1, 2)},
    "mid_block": {"resnets_0": {}},
    **{f"up_blocks_{b}": {f"{h}_{i}": {} for h in ("resnets", "attentions") for i in range(3)} for b in (0, 1)},
    "up_blocks_2": {f"resnets_{i}": {} for i in range(3)},
}


def sdxl_networks() -> dict[str, Any]:
    kernels = {"/".join([*path, "kernel"]): 0 for path in _leaves(SDXL)}
    return {"unet": traverse_util.unflatten_dict(kernels, sep="/"), "text_encoder": {"a": {"kernel": 0}}}


def test_dots_lead_inside_and_what_is_spelled_is_read():
    networks = sdxl_networks()
    factors = loras.read_blocks({"up.block_0": 0.5, "unet.mid": 0, "text_encoder": 0.25}, networks)
    assert factors == {"unet": {"up_blocks.0": 0.5, "mid_block": 0}, "text_encoder": {"": 0.25}}
    spelled = loras.spelled(factors)
    assert spelled == "unet.up_blocks.0=0.5,unet.mid_block=0,text_encoder=0.25"
    assert loras.read_blocks(Lora("a", blocks=spelled).block_weights or {}, networks) == factors


def test_lists_are_of_a1111s_blocks():
    networks = sdxl_networks()
    twelve = loras.read_blocks([0.1, *range(1, 12)], networks)
    assert twelve["text_encoder"] == {"": 0.1}
    unet = twelve["unet"]
    assert (unet["down_blocks.1.attentions.0"], unet["down_blocks.2.attentions.1"], unet["mid_block"]) == (1, 4, 5)
    assert (unet["up_blocks.0.attentions.0"], unet["up_blocks.1.resnets.2"]) == (6, 11)
    assert unet["conv_in"] == unet["up_blocks.2.resnets.0"] == 0
    twenty = loras.read_blocks(range(20), networks)["unet"]
    assert (twenty["conv_in"], twenty["down_blocks.0.downsamplers"], twenty["down_blocks.1.attentions.0"]) == (1, 4, 5)
    assert (twenty["mid_block"], twenty["up_blocks.0.resnets.0"], twenty["up_blocks.2.resnets.2"]) == (10, 11, 19)


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in tree.items():
        yield from _leaves(inner, (*path, name)) if inner else [(*path, name)]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"nett": 0.5}, "block weights name 'nett', of which unet has no layer; parts are unet, text_encoder, "),
        ({"text_encoder.mid": 0.5}, "block weights name 'mid_block', of which text_encoder has no layer"),
        ({"unet": {"dwn": 0.5}}, "block weights name 'dwn', of which unet has no layer"),
        ({"unet": {"up": {"block_0": [1, 2, 3]}}}, "'up_blocks.0' are 3 numbers; it has 2"),
        ({"unet": {"up": "much"}}, "'up_blocks': 'much' should be a finite number"),
        ({"unet": {"up": float("nan")}}, "should be a finite number"),
        ([1.0] * 17, "a list of 17 block weights: lists are of 12 or 20 numbers"),
    ],
)
def test_block_weights_that_fit_nothing_are_told(pipe: AutoLoRAPipeline, blocks: Any, message: str):
    with pytest.raises(ValueError, match=message):
        pipe.set_lora("soft", blocks=blocks)
