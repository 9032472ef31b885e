"""The Vendi score against its definition, the vendi-score package and what is known of it, and how sure it is."""

import warnings

import numpy as np
import pytest

from autolora_jax.evaluation import diversity
from autolora_jax.evaluation.diversity import conditional_vendi_score, vendi_of, vendi_score
from autolora_jax.evaluation.intervals import BLOCKS, jackknife_interval
from autolora_jax.evaluation.scores import Sample, numbered, sample_measure, tabulate, vendi_measure

EXACT = 1e-9  # a picture; float64, but eigenvalues of other matrices; seen 1e-13

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vendi_score import vendi


def by_definition(features: np.ndarray) -> float:
    """A matrix of cosines, pair by pair, and the entropy of its eigenvalues over n."""
    n = len(features)
    similar = np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in features] for a in features.astype(np.float64)])
    eigenvalues = np.linalg.eigvals(similar / n).real
    return float(np.exp(sum(-x * np.log(x) for x in eigenvalues if x > 1e-15)))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("n, d", [(1, 4), (5, 3), (5, 40), (30, 8), (8, 8)])
def test_it_is_its_definition_and_the_packages(n: int, d: int, rng: np.random.Generator):
    features = (rng.standard_normal((n, d)) + 0.5).astype(np.float32)
    found = vendi_score(features)
    assert abs(found - by_definition(features.astype(np.float64))) < EXACT * n
    assert abs(found - vendi.score_X(features.astype(np.float64))) < EXACT * n
    assert abs(found - vendi.score_dual(features.astype(np.float64))) < EXACT * n


def test_what_is_known_of_it(rng: np.random.Generator):
    one, basis = rng.standard_normal((1, 6)), np.eye(9)
    assert abs(vendi_score(one.repeat(50, axis=0)) - 1) < EXACT
    assert abs(vendi_score(basis * 7) - 9) < EXACT
    assert abs(vendi_score(np.concatenate([basis, basis])) - 9) < EXACT
    some = rng.standard_normal((12, 5))
    assert abs(vendi_score(some) - vendi_score(some[::-1] * 3)) < EXACT


def test_diversity_and_vendi_agree_about_the_extremes():
    alike, different = np.ones((5, 3)), np.eye(5)
    assert abs(diversity(alike)) < EXACT and abs(vendi_score(alike) - 1) < EXACT
    assert abs(diversity(different) - 1) < EXACT and abs(vendi_score(different) - 5) < EXACT


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match="need 1 or more, got 0"):
        vendi_score(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"pictures \[1\]"):
        vendi_score(np.array([[1.0, 0.0], [0.0, 0.0]]))


def test_the_jackknife_of_a_mean_is_the_normal_interval(rng: np.random.Generator):
    values = rng.standard_normal(40)
    found = jackknife_interval(lambda rows: float(values[rows].mean()), np.zeros(40, np.int64))
    half = 1.959964 * values.std(ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(found, [values.mean(), values.mean() - half, values.mean() + half], rtol=1e-6)


def test_blocks_are_left_out_of_many_pictures(rng: np.random.Generator):
    values, sizes = rng.standard_normal(220), []

    def mean(rows: np.ndarray) -> float:
        sizes.append(len(rows))
        return float(values[rows].mean())

    found = jackknife_interval(mean, np.zeros(220, np.int64))
    assert sizes == [220, *[215] * 20, *[216] * (BLOCKS - 20)]
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(220), rel=0.3)


@pytest.mark.parametrize("n, d", [(20, 6), (80, 24)])
def test_the_interval_is_as_wide_as_the_score_varies(n: int, d: int, rng: np.random.Generator):
    """Against the spread over 200 sets of fresh pictures; a bootstrap's interval would not even hold its own value."""

    def pictures() -> np.ndarray:
        return rng.standard_normal((n, d)) * np.linspace(2, 0.2, d) + 1

    scores = [vendi_score(pictures()) for _ in range(200)]
    groups = np.zeros(n, np.int64)
    found = [jackknife_interval(vendi_of(pictures()), groups, level=0.6827) for _ in range(20)]
    widths = [(interval.high - interval.low) / 2 for interval in found]
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(np.std(scores), rel=0.25)


def test_groups_are_averaged(rng: np.random.Generator):
    features, groups = rng.standard_normal((10, 4)), np.array([0, 1, 1, 0, 0, 1, 1, 1, 0, 0])
    found = vendi_measure(features, groups)(np.arange(10))["Vendi"]
    assert found.value == pytest.approx(np.mean([vendi_score(features[groups == g]) for g in (0, 1)]))
    assert found.low < found.value < found.high


def test_a_single_picture_has_no_interval():
    found = vendi_measure(np.ones((1, 3)), np.zeros(1, np.int64))(np.arange(1))["Vendi"]
    assert found.value == pytest.approx(1) and np.isnan(found.low) and np.isnan(found.high)
    with pytest.raises(ValueError, match="need some, 0 < level < 1"):
        jackknife_interval(lambda rows: 0.0, np.zeros(2, np.int64), level=1.0)


def test_a_table_has_a_row_a_group_and_one_for_all(rng: np.random.Generator):
    labels = [("b",), ("a",), ("b",), ("b",), ("a",)]
    features, scores = rng.standard_normal((5, 4)), np.array([1.0, 2.0, 3.0, np.nan, 4.0])
    groups = numbered(labels)
    sample = Sample(groups, {"PC": scores}, features)
    rows, overall = tabulate([sample_measure(sample), vendi_measure(features, groups)], labels)
    assert [(row.label, row.pictures) for row in rows] == [(("b",), 3), (("a",), 2)]
    assert (overall.label, overall.pictures) == ((), 5)
    assert list(overall.figures) == ["PC", "Div", "Div-PC", "Vendi"]
    b = [0, 2, 3]
    assert rows[0].figures["Div"].value == pytest.approx(diversity(features[b]))
    assert rows[0].figures["PC"].value == 2.0
    assert rows[0].figures["Vendi"].value == pytest.approx(vendi_score(features[b]))
    assert overall.figures["Div"].value == pytest.approx((diversity(features[b]) + diversity(features[[1, 4]])) / 2)
    with pytest.raises(ValueError, match="no pictures to measure"):
        tabulate([], [])


@pytest.mark.parametrize(("n", "d", "e"), [(12, 5, 3), (5, 12, 8)])
def test_the_conditional_score_is_that_of_the_joint_kernel_over_the_prompts(n: int, d: int, e: int):
    from vendi_score import vendi

    rng = np.random.default_rng(n)
    features, prompts = rng.standard_normal((n, d)), rng.standard_normal((n, e))
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, prompts)]
    pictures, told = (x @ x.T for x in units)
    wanted = vendi.score_K(pictures * told) / vendi.score_K(told)
    assert abs(conditional_vendi_score(features, prompts) - wanted) < EXACT * n


def test_what_prompts_explain_is_left_out():
    rng = np.random.default_rng(5)
    features = rng.standard_normal((12, 6))
    assert abs(conditional_vendi_score(features, np.ones((12, 2))) - vendi_score(features)) < EXACT * 12
    apart = np.eye(3).repeat(4, axis=0)  # prompts that have nothing in common: the groups' geometric mean
    groups = [vendi_score(features[first : first + 4]) for first in (0, 4, 8)]
    assert abs(conditional_vendi_score(features, apart) - np.prod(groups) ** (1 / 3)) < EXACT * 12
    assert abs(conditional_vendi_score(np.eye(3).repeat(4, axis=0), apart) - 1) < EXACT * 12
