"""The engine that takes names into trees: on hand-made tables, and on the real ones both ways."""

import numpy as np
import pytest

from autolora_jax.models.networks import shapes_of
from autolora_jax.weights import WeightsError
from autolora_jax.weights.published import SDXL_BASE as SDXL
from autolora_jax.weights.rules import (
    INVERSE,
    Rule,
    convert,
    examine,
    flat_shapes,
    hwio_to_oihw,
    oi11_to_io,
    oihw_to_hwio,
    plan,
    transposed,
    tree_path,
)
from autolora_jax.weights.tables import EXPORT, export, stages_for, torch_module, torch_name
from tests.checkpoint_files import COMPONENTS, key_list, networks_of, state_dict

TABLE = (
    Rule(r"(.*)\.weight", r"\1.kernel", ndim=4, move=oihw_to_hwio),
    Rule(r"(.*)\.weight", r"\1.kernel", ndim=2, move=transposed),
    Rule(r"(.*)\.bias", r"\1.bias", ndim=1),
    Rule(r"ids", drop="a buffer"),
)
TREE = {"conv": {"kernel": (3, 3, 2, 5), "bias": (5,)}, "net_0": {"kernel": (4, 6)}}


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (5, 2, 3, 3), "conv.bias": (5,), "net.0.weight": (6, 4), "ids": (7,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_every_tensor_lands_rearranged_in_its_place():
    given = tensors()
    tree = convert(given, (TABLE,), TREE)
    np.testing.assert_array_equal(tree["conv"]["kernel"], given["conv.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(tree["conv"]["bias"], given["conv.bias"])
    np.testing.assert_array_equal(tree["net_0"]["kernel"], given["net.0.weight"].T)
    assert set(tree) == set(TREE)


def test_one_error_lists_everything_that_is_wrong():
    given = tensors()
    given["stray.scale"] = np.zeros(1)
    given["other.bias"] = np.zeros(3)  # taken by a rule, but the tree has no such place
    given["conv.weight"] = np.zeros((5, 2, 1, 1))
    del given["conv.bias"]
    with pytest.raises(WeightsError) as e:
        convert(given, (TABLE,), TREE, "file.safetensors")
    message = str(e.value)
    assert message.startswith("file.safetensors does not fit this network:")
    assert "2 tensors that no rule takes: stray.scale [1], other.bias [3]" in message
    assert "1 tensor missing: conv/bias [5]" in message
    assert "conv.weight [5, 2, 1, 1], as conv/kernel [1, 1, 2, 5], where [3, 3, 2, 5] is expected" in message


def test_a_name_that_two_rules_take_is_an_error():
    table = (*TABLE, Rule(r"net\..*", r"net_0.kernel"))
    with pytest.raises(WeightsError, match=r"1 tensor that several rules take: net\.0\.weight \(by .*and net"):
        convert(tensors(), (table,), TREE)


def test_a_place_filled_twice_is_an_error():
    rename = (Rule(r"old\.bias", "conv.bias"),)
    given = {**tensors(), "old.bias": np.zeros(5)}
    with pytest.raises(WeightsError, match=r"1 tensor for one place: conv\.bias and old\.bias for conv/bias"):
        convert(given, (rename, TABLE), TREE)


def test_long_lists_are_shortened_with_a_count():
    given = {**tensors(), **{f"stray{i}": np.zeros(1) for i in range(1000)}}
    with pytest.raises(WeightsError, match=r"1000 tensors that no rule takes: .*… and 994 more") as e:
        convert(given, (TABLE,), TREE)
    assert len(str(e.value)) < 500


def test_one_tensor_can_fill_several_places():
    cut = (Rule(r"qkv\.weight", ("q.weight", "k.weight", "v.weight")),)
    tree = {name: {"kernel": (4, 2)} for name in "qkv"}
    qkv = np.arange(24, dtype=np.float32).reshape(6, 4)
    result = convert({"qkv.weight": qkv}, (cut, TABLE), tree)
    for i, name in enumerate("qkv"):
        np.testing.assert_array_equal(result[name]["kernel"], qkv[2 * i : 2 * i + 2].T)
    with pytest.raises(WeightsError, match="fall into 3 equal parts"):
        convert({"qkv.weight": qkv[:5]}, (cut, TABLE), tree)


def test_a_convolution_is_no_dense_layer_unless_it_is_one_pixel_wide():
    table = (Rule(r"(.*)\.weight", r"\1.kernel", move=oi11_to_io),)
    weight = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)
    np.testing.assert_array_equal(
        convert({"a.weight": weight}, (table,), {"a": {"kernel": (3, 2)}})["a"]["kernel"], weight[:, :, 0, 0].T
    )
    with pytest.raises(WeightsError, match=r"1 tensor of another shape: a\.weight \[2, 3, 3, 3\] \(oi11_to_io"):
        convert({"a.weight": np.zeros((2, 3, 3, 3))}, (table,), {"a": {"kernel": (3, 2)}})


def test_planning_needs_no_data():
    shapes = {"conv.weight": (5 << 20, 2 << 20, 3, 3), "ids": (7,)}  # 2.5e14 numbers
    tree = {"conv": {"kernel": (3, 3, 2 << 20, 5 << 20)}}
    [step] = plan(shapes, (TABLE,), tree, "huge")
    assert (step.source, step.name) == ("conv.weight", "conv/kernel")
    assert examine(shapes, (TABLE,), tree).dropped == {"ids": "a buffer"}


def test_a_rule_has_a_target_or_a_reason():
    for bad in ({"to": ()}, {"to": "a", "drop": "b"}):
        with pytest.raises(ValueError, match="either a target or a reason"):
            Rule("x", **bad)


@pytest.mark.parametrize(("move", "back"), [*INVERSE.items()])
def test_moves_have_inverses(move, back):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5) if "hw" in move.__name__ else (2, 3))
    np.testing.assert_array_equal(back(move(x)), x)
    assert INVERSE[INVERSE[move]] is move
    assert INVERSE[oihw_to_hwio] is hwio_to_oihw


def test_export_undoes_every_row_that_rearranges():
    moves = {rule.move for rule in EXPORT if rule.move}
    assert {INVERSE[m] for m in moves} == {oihw_to_hwio, transposed}


@pytest.mark.parametrize("component", COMPONENTS)
def test_exported_trees_are_what_torch_saved(tiny_folder, component):
    config = networks_of(tiny_folder)[component]
    original = state_dict(tiny_folder, component)
    params = convert(original, stages_for(config), shapes_of(config))
    back = export(params)
    assert back.keys() == original.keys()
    for name, value in original.items():
        assert back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], value)


@pytest.mark.parametrize("component", COMPONENTS)
def test_names_go_there_and_back(facts, component):
    published = key_list(facts / "keys" / "sdxl-base-1.0" / f"{component}.txt")
    leaves = flat_shapes(shapes_of(SDXL[component]))
    assert {torch_name(path, len(shape)) for path, shape in leaves.items()} == published.keys()
    for path in leaves:
        module = path.rpartition("/")[0]
        assert tree_path(torch_module(module) + ".x") == module + "/x"
