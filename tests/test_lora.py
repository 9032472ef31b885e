"""The delta tree: our networks with a LoRA equal torch with W + scale · (alpha / rank) · up @ down in its weights."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autolora_jax import lora
from autolora_jax.lora import save_lora
from autolora_jax.weights.lora.export import convert_lora
from autolora_jax.weights.lora.files import read_lora
from tests.lora_reference import COMPONENTS, DIALECTS, RandomLora, merged, random_lora
from tests.lora_runs import Both, Outputs, Tree, assert_changed, assert_close

ZERO = 1e-6  # seen: 0


def random_file(both: Both, seed: int, path: Path, dialect: str = "kohya_sgm", **options: Any) -> RandomLora:
    """A LoRA with convolutions, saved; where the dialect has no alpha tensors they go into the header."""
    made = random_lora(both.pipe, seed, convolutions=True, **options)
    header = None if DIALECTS[dialect][2] or options.get("alphas", ()) is None else made.peft_metadata()
    made.save(path, dialect, header)
    return made


@contextlib.contextmanager
def diffusers_lora(both: Both, path: Path, scale: float) -> Iterator[None]:
    """The torch pipeline with a LoRA file as diffusers loads it."""
    try:
        both.pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="a")
        both.pipe.set_adapters(["a"], [scale])
        yield
    finally:
        both.pipe.unload_lora_weights()


class Pair(NamedTuple):
    """Two LoRAs of other dialects, ranks and components, and what torch makes of them at two pairs of scales."""

    stacked: Tree
    trees: list[Tree]
    scales: list[tuple[float, float]]
    wanted: list[Outputs]


@pytest.fixture(scope="module")
def pair(both: Both, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    first = random_lora(both.pipe, 1, convolutions=True)
    second = random_lora(both.pipe, 2, ranks=(5, 1), components=("unet", "text_encoder_2"))
    trees = [
        both.load(first.save(folder / "a.safetensors", "kohya_diffusers")),
        both.load(second.save(folder / "b.safetensors", "peft", second.peft_metadata())),
    ]
    scales, wanted = [(0.6, -0.4), (0.0, 0.9)], []
    for one, two in scales:
        with merged(both.pipe, (first, one), (second, two)):
            wanted.append(both.torch())
    return Pair(lora.stack(trees), trees, scales, wanted)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_matches_the_definition(both: Both, tmp_path: Path, dialect: str) -> None:
    random = random_file(both, 1, tmp_path / "a.safetensors", dialect)
    tree = both.load(tmp_path / "a.safetensors")
    base = both.torch()
    for scale in (0.7, -1.0):
        with merged(both.pipe, (random, scale)):
            want = both.torch()
        assert_changed(want, base)
        assert_close(both.ours(tree, [scale]), want)


@pytest.mark.parametrize(
    "dialect, alphas", [("kohya_sgm", (3.0,)), ("kohya_diffusers", (3.0,)), ("peft", None), ("diffusers", None)]
)
def test_matches_diffusers(both: Both, tmp_path: Path, dialect: str, alphas: tuple[float, ...] | None) -> None:
    """Where diffusers is exact: one alpha for all modules, or none (it gives all projections of a layer one alpha)."""
    random_file(both, 5, tmp_path / "a.safetensors", dialect, alphas=alphas)
    base = both.torch()
    with diffusers_lora(both, tmp_path / "a.safetensors", 0.8):
        want = both.torch()
    assert_changed(want, base)
    assert_close(both.ours(both.load(tmp_path / "a.safetensors"), [0.8]), want)


def test_scale_zero_is_the_base(both: Both, tmp_path: Path, pair: Pair) -> None:
    random_file(both, 1, tmp_path / "a.safetensors")
    base = both.ours({}, [])
    assert_close(both.ours(both.load(tmp_path / "a.safetensors"), [0.0]), base, ZERO)
    assert_close(both.ours(pair.stacked, [[0.0, 0.0], [0.0, 0.0]]), base, ZERO)


def test_two_stacked_loras(both: Both, pair: Pair) -> None:
    for scales, want in zip(pair.scales, pair.wanted, strict=True):
        assert_close(both.ours(pair.stacked, scales), want)


def test_scales_per_image(both: Both, pair: Pair) -> None:
    """Each image has both its scales: the low-rank path, which never builds a kernel, equals merged weights."""
    mixed = {name: np.stack([pair.wanted[0][name][0], pair.wanted[1][name][1]]) for name in pair.wanted[0]}
    assert_close(both.ours(pair.stacked, pair.scales), mixed)


def test_merged_weights_equal_the_delta(both: Both, pair: Pair) -> None:
    params = lora.merge_into(both.params, pair.stacked, np.float32(pair.scales[0]))
    got = jax.device_get(both.run(params, {}, jnp.zeros(0)))
    assert_close(got, pair.wanted[0])
    assert params["unet"]["conv_norm_out"]["scale"] is both.params["unet"]["conv_norm_out"]["scale"]  # shared


def test_owners_follow_the_order(pair: Pair) -> None:
    """A LoRA keeps its index where another has nothing, and the order of stacking changes no sum."""
    one, two = (tree["unet"]["mid_block"]["attentions_0"]["proj_in"] for tree in pair.trees)
    for order in ([0, 1], [1, 0]):
        stacked = lora.stack([pair.trees[i] for i in order])
        leaf = stacked["unet"]["mid_block"]["attentions_0"]["proj_in"]
        ranks = [(one, two)[i]["up"].shape[0] for i in order]
        np.testing.assert_array_equal(leaf["owner"], np.repeat([0, 1], ranks))
        scaled = lora.at_scale({"x": leaf}, np.float32([(2.0, 3.0)[i] for i in order]))["x"]
        want = 2 * one["down"] @ one["up"] + 3 * two["down"] @ two["up"]
        np.testing.assert_allclose(scaled["down"] @ scaled["up"], want, rtol=1e-4, atol=1e-5)
        only_first = stacked["text_encoder"]["text_model"]["encoder"]["layers_0"]["mlp"]["fc1"]["owner"]
        assert set(only_first.tolist()) == {order.index(0)}


def test_other_scales_compile_nothing(both: Both, pair: Pair) -> None:
    both.ours(pair.stacked, [0.1, 0.2])
    before = both.run._cache_size()
    both.ours(pair.stacked, [0.9, -0.5])
    assert both.run._cache_size() == before


def test_at_scale_inside_a_scan(both: Both, tmp_path: Path) -> None:
    tree = lora.stack([both.load(random_lora(both.pipe, 1).save(tmp_path / "a.safetensors", "kohya_sgm"))])[
        "text_encoder"
    ]
    leaf = tree["text_model"]["encoder"]["layers_0"]["mlp"]["fc1"]

    @jax.jit
    def steps(scales: jax.Array) -> jax.Array:
        def step(carry: None, scale: jax.Array) -> tuple[None, jax.Array]:
            scaled = lora.at_scale(tree, scale)["text_model"]["encoder"]["layers_0"]["mlp"]["fc1"]
            return carry, scaled["down"] @ scaled["up"]

        return jax.lax.scan(step, None, scales)[1]

    got = steps(jnp.float32([[0.0], [1.0], [2.0]]))
    product = leaf["down"] @ leaf["up"]
    np.testing.assert_allclose(got, np.stack([0 * product, product, 2 * product]), rtol=1e-5, atol=1e-6)


def test_nothing_loaded_is_an_empty_collection() -> None:
    assert lora.at_scale({}, np.zeros(1, np.float32)) == {}
    assert lora.at_scale(None, np.zeros((2, 1), np.float32)) == {}
    assert lora.stack([]) == {} and lora.stack([{}, None]) == {}


def test_bfloat16_folds_alpha_in_float32(both: Both, tmp_path: Path) -> None:
    path = random_lora(both.pipe, 1, alphas=(3.0,), ranks=(7,)).save(tmp_path / "a.safetensors", "kohya_sgm")
    exact = both.load(path)
    rounded, _ = lora.attach(read_lora(path, both.targets), dtype=jnp.bfloat16)
    jax.tree.map(lambda e, r: np.testing.assert_array_equal(e.astype(r.dtype), r), exact, rounded)
    leaf = lora.at_scale(lora.stack([rounded]), jnp.float32([0.3]))["unet"]["mid_block"]["attentions_0"]["proj_in"]
    down = rounded["unet"]["mid_block"]["attentions_0"]["proj_in"]["down"]
    assert leaf["down"].dtype == leaf["up"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(leaf["down"], (down.astype(np.float32) * np.float32(0.3)).astype(jnp.bfloat16))


@pytest.mark.parametrize("dialect", ["kohya", "peft"])
def test_saved_trees_load_as_they_were(both: Both, tmp_path: Path, dialect: str) -> None:
    trees = both.load(random_lora(both.pipe, 1, convolutions=True).save(tmp_path / "a.safetensors", "kohya_sgm"))
    save_lora(tmp_path / "b.safetensors", trees, dialect, {"modelspec.title": "mine"}, both.networks["unet"])
    again, report = lora.attach(read_lora(tmp_path / "b.safetensors", both.targets))
    assert jax.tree.structure(again) == jax.tree.structure(trees)
    exact = 0.0 if dialect == "peft" else 2e-7  # layers of other ranks have the highest one's alpha there; seen 1.2e-7
    jax.tree.map(lambda *both: np.testing.assert_allclose(*both, rtol=exact), again, trees)
    assert report.training["title"] == "mine"
    with pytest.raises(ValueError, match="several stacked LoRAs"):
        save_lora(
            tmp_path / "c.safetensors", lora.stack([trees, trees]), dialect, denoiser_config=both.networks["unet"]
        )


def test_diffusers_reads_what_we_save(both: Both, tmp_path: Path) -> None:
    """alpha = rank there, which diffusers reads right when all ranks are equal."""
    random = random_file(both, 6, tmp_path / "a.safetensors", ranks=(4,))
    save_lora(tmp_path / "b.safetensors", both.load(tmp_path / "a.safetensors"), "kohya", None, both.networks["unet"])
    with merged(both.pipe, (random, 0.8)):
        want = both.torch()
    with diffusers_lora(both, tmp_path / "b.safetensors", 0.8):
        assert_close(both.torch(), want)


def test_diffusers_reads_what_we_convert(both: Both, tmp_path: Path) -> None:
    """From kohya, whose differing alphas diffusers mixes up, to PEFT's header, whose it does not."""
    random = random_file(both, 6, tmp_path / "a.safetensors")
    file = read_lora(tmp_path / "a.safetensors", both.targets)
    convert_lora(tmp_path / "b.safetensors", file, "peft", both.networks["unet"])
    with merged(both.pipe, (random, 0.8)):
        want = both.torch()
    with diffusers_lora(both, tmp_path / "b.safetensors", 0.8):
        assert_close(both.torch(), want)


def test_report(both: Both, tmp_path: Path) -> None:
    random = random_lora(both.pipe, 1, ranks=(2,), alphas=(1.0,))
    path = random.save(tmp_path / "mine.safetensors", "kohya_sgm", {"modelspec.trigger_phrase": "pixel art"})
    _, report = lora.attach(read_lora(path, both.targets))
    counts = {c: sum(component == c for component, _ in random.changes) for c in COMPONENTS}
    assert report.modules == counts
    assert report.ranks == {2: len(random.changes)} and report.alphas == {1.0: len(random.changes)}
    assert report.parameters == sum(x.down.numel() + x.up.numel() for x in random.changes.values())
    assert report.trigger_words == ("pixel art",) and report.name == "mine"
    for words in ("mine.safetensors", "kohya (sgm block names)", f"{counts['unet']} in unet", "pixel art"):
        assert words in str(report)


def test_merge_into_another_model_is_refused(both: Both, tmp_path: Path) -> None:
    tree = both.load(random_lora(both.pipe, 1).save(tmp_path / "a.safetensors", "kohya_sgm"))
    with pytest.raises(ValueError, match="the delta changes"):
        lora.merge_into(both.params["text_encoder"], tree["unet"], np.ones(1, np.float32))
