"""Diversity against the paper's double sum, and intervals against what is known of them."""

import numpy as np
import pytest

from autolora_jax.evaluation import bootstrap_interval, diversity, diversity_statistic, mean_statistic
from autolora_jax.evaluation.intervals import resampled

EXACT = 1e-12  # float64 against float64; seen 2e-16


def double_sum(features: np.ndarray) -> float:
    """Eq. 8 of arXiv 2410.03941 as it is printed."""
    n = len(features)
    cosines = 0.0
    for i in range(n):
        for j in range(i + 1, n):
            a, b = features[i].astype(np.float64), features[j].astype(np.float64)
            cosines += a @ b / np.sqrt((a @ a) * (b @ b))
    return 1 - 2 / (n * (n - 1)) * cosines


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("n", [2, 3, 17])
@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_diversity_is_the_papers_double_sum(n: int, offset: float, rng: np.random.Generator):
    features = (rng.standard_normal((n, 5)) + offset).astype(np.float32)
    assert abs(diversity(features) - double_sum(features)) < EXACT


def test_diversity_does_not_depend_on_lengths_and_order(rng: np.random.Generator):
    features = rng.standard_normal((9, 4))
    longer = features * rng.uniform(0.1, 10, (9, 1))
    assert abs(diversity(features) - diversity(longer[::-1])) < EXACT


def test_diversity_of_equal_and_of_opposite_pictures():
    one = np.array([[1.0, 2.0, 2.0]])
    assert abs(diversity(one.repeat(1000, axis=0))) < EXACT  # float32 sums would be off by 1e-6 and more
    assert abs(diversity(np.concatenate([one, -one])) - 2) < EXACT


def test_prompts_are_averaged(rng: np.random.Generator):
    features, groups = rng.standard_normal((10, 4)), np.array([0, 1, 1, 0, 0, 2, 2, 1, 0, 2])
    wanted = np.mean([double_sum(features[groups == g]) for g in range(3)])
    assert abs(diversity_statistic(features, groups)(np.ones((1, 10)))[0] - wanted) < EXACT


def test_a_picture_drawn_twice_makes_no_pair_with_itself(rng: np.random.Generator):
    """Weights (2, 1, 1) stand for pictures a, a, b, c and the pairs ab, ab, ac, ac, bc."""
    features = rng.standard_normal((3, 4))
    ab, ac, bc = (double_sum(features[[i, j]]) for i, j in ((0, 1), (0, 2), (1, 2)))
    found = diversity_statistic(features, np.zeros(3, np.int64))(np.array([[2.0, 1.0, 1.0], [3.0, 0.0, 0.0]]))
    assert abs(found[0] - (2 * ab + 2 * ac + bc) / 5) < EXACT
    assert np.isnan(found[1])


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match="need 2 or more, got 1"):
        diversity(np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"pictures \[1\]"):
        diversity(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"pictures \[0\]"):
        diversity(np.array([[np.nan, 0.0], [1.0, 0.0]]))


def test_resampling_keeps_groups_and_is_repeatable():
    groups = np.array([0, 0, 0, 1, 1, 1, 1])
    counts = resampled(groups, 50, seed=3)
    assert np.array_equal(counts, resampled(groups, 50, seed=3))
    assert not np.array_equal(counts, resampled(groups, 50, seed=4))
    assert (counts[:, :3].sum(axis=1) == 3).all() and (counts[:, 3:].sum(axis=1) == 4).all()


def test_the_interval_of_a_mean_is_the_normal_one(rng: np.random.Generator):
    values = rng.standard_normal(400)
    interval = bootstrap_interval(mean_statistic(values), np.zeros(400, np.int64), resamples=4000)
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)  # seen 0.03
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_intervals_of_diversity_cover_it():
    """In 95 of 100 samples the interval should hold the diversity of the population; seen 94."""
    population = np.random.default_rng(1).gamma(0.5, size=(4000, 8))
    truth, hits = diversity(population), 0
    for sample in range(100):
        rows = np.random.default_rng((2, sample)).integers(4000, size=100)
        groups = np.zeros(100, np.int64)
        interval = bootstrap_interval(diversity_statistic(population[rows], groups), groups, resamples=300)
        hits += interval.low <= truth <= interval.high
    assert hits >= 88


def test_a_paired_difference_is_surer_than_its_parts(rng: np.random.Generator):
    base = rng.standard_normal(100)
    one, other = mean_statistic(base), mean_statistic(base + 0.1)
    groups = np.zeros(100, np.int64)
    difference = bootstrap_interval(lambda w: other(w) - one(w), groups)
    assert difference.low == pytest.approx(0.1) and difference.high == pytest.approx(0.1)


@pytest.mark.parametrize(("pictures", "sure"), [(2, False), (3, True)])
def test_two_pictures_are_too_few_for_an_interval(pictures: int, sure: bool, rng: np.random.Generator):
    """Half of their resamples have no pair, and all others the same one: an interval of no width, if it were one."""
    groups = np.zeros(pictures, np.int64)
    found = bootstrap_interval(diversity_statistic(rng.standard_normal((pictures, 4)), groups), groups)
    assert np.isfinite(found.value) and bool(np.isfinite([found.low, found.high]).all()) == sure


def test_means_leave_out_what_is_not_known():
    values = np.array([1.0, np.nan, 0.0])
    assert mean_statistic(values)(np.ones((1, 3)))[0] == 0.5
    assert np.isnan(mean_statistic(values)(np.array([[0.0, 3.0, 0.0]]))[0])


@pytest.mark.parametrize("settings", [{"level": 1.0}, {"resamples": 0}])
def test_bad_intervals_are_refused(settings: dict):
    with pytest.raises(ValueError, match="need some, 0 < level < 1, some"):
        bootstrap_interval(mean_statistic(np.ones(3)), np.zeros(3, np.int64), **settings)
