"""Means, products and paired differences with their intervals, against the plain computation and what is known."""

import numpy as np
import pytest

from autolora_jax.evaluation import bootstrap_interval, diversity, mean_statistic
from autolora_jax.evaluation import intervals as sureness
from autolora_jax.evaluation.scores import Sample, intervals, paired_differences, pairs

EXACT = 1e-12  # float64 against float64; seen 4e-16
GROUPS = np.repeat(np.arange(4), 25)


def sample(seed: int = 0, shift: float = 0.0) -> Sample:
    """100 pictures of 4 prompts; `shift` is what their scores are higher by."""
    rng = np.random.default_rng(seed)
    scores = {"PC": rng.integers(0, 6, 100) + shift, "SA": rng.integers(0, 6, 100).astype(float)}
    return Sample(GROUPS, scores, np.random.default_rng(seed + 1).standard_normal((100, 8)) + 1)


def test_products_are_diversity_times_mean():
    """As in Table 2: diversity is the mean over prompts, a score's mean is over all pictures."""
    one = sample()
    found = intervals(one, resamples=200)
    spread = np.mean([diversity(one.features[group == GROUPS]) for group in range(4)])
    assert [*found] == ["PC", "SA", "Div", "Div-PC", "Div-SA"]
    for name in ("PC", "SA"):
        assert abs(found[name].value - one.scores[name].mean()) < EXACT
        assert abs(found[f"Div-{name}"].value - spread * one.scores[name].mean()) < EXACT
    assert abs(found["Div"].value - spread) < EXACT
    assert all(low < value < high for value, low, high in found.values())


def test_a_product_takes_both_factors_from_one_resample():
    one = sample()
    of = one.statistics()
    weights = sureness.resampled(GROUPS, 50, seed=2)
    np.testing.assert_array_equal(of["Div-PC"](weights), of["Div"](weights) * of["PC"](weights))
    wanted = bootstrap_interval(lambda weights: of["Div"](weights) * of["PC"](weights), GROUPS, resamples=100)
    assert intervals(one, resamples=100)["Div-PC"] == wanted


def test_without_features_there_is_no_diversity():
    assert [*intervals(Sample(GROUPS, sample().scores), resamples=10)] == ["PC", "SA"]


def test_pictures_without_a_score_count_for_diversity_alone():
    one = sample()
    scores = {"PC": np.where(np.arange(100) < 10, np.nan, one.scores["PC"])}
    found = intervals(Sample(GROUPS, scores, one.features), resamples=10)
    assert abs(found["PC"].value - one.scores["PC"][10:].mean()) < EXACT
    assert found["Div"] == intervals(one, resamples=10)["Div"]


def test_the_diversity_of_a_kind_is_how_often_two_pictures_differ_in_it():
    kinds = {"place": np.random.default_rng(4).integers(0, 3, 100), "sky": np.zeros(100, np.int64)}
    found = intervals(Sample(GROUPS, {}, kinds=kinds), resamples=50)
    differ = [
        (kinds["place"][group == GROUPS][:, None] != kinds["place"][group == GROUPS]).sum() / (25 * 24)
        for group in range(4)
    ]
    assert [*found] == ["Div place", "Div sky"]
    assert abs(found["Div place"].value - np.mean(differ)) < EXACT and found["Div sky"].value == 0
    first, second = (Sample(GROUPS, {}, kinds={"place": each}) for each in (kinds["sky"], kinds["place"]))
    assert paired_differences(first, second, resamples=50)["Div place"] == found["Div place"]


def test_a_score_that_nobody_has_has_no_mean():
    found = intervals(Sample(GROUPS, {"PC": np.full(100, np.nan)}), resamples=10)
    assert np.isnan(found["PC"]).all()


def test_pairs_are_compared_within():
    """What all pairs differ by is known exactly, however much the pairs differ from each other."""
    found = paired_differences(sample(), sample(shift=0.25), resamples=200)
    np.testing.assert_allclose(found["PC"], 0.25, atol=EXACT)
    np.testing.assert_allclose([found["SA"], found["Div"]], 0, atol=EXACT)
    assert found["Div-PC"].low > 0
    apart = intervals(sample(shift=0.25), resamples=200)["PC"]
    assert apart.low < intervals(sample(), resamples=200)["PC"].value + 0.25 < apart.high


def test_who_lacks_a_score_is_left_out_of_both():
    first, second = sample(), sample(shift=1.0)
    first.scores["PC"][3] = second.scores["PC"][7] = np.nan
    first.scores["PC"][7], second.scores["PC"][3] = 100.0, -100.0
    np.testing.assert_allclose(paired_differences(first, second, resamples=50)["PC"], 1.0, atol=EXACT)


def test_only_what_both_have_is_compared():
    other = Sample(GROUPS, {"PC": sample().scores["PC"], "CPS": np.ones(100)})
    assert [*paired_differences(sample(), other, resamples=10)] == ["PC"]


def test_sets_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="row by row they should be of the same group"):
        paired_differences(sample(), sample().rows(np.arange(99)))


def test_pairs_are_found_by_prompt_and_seed():
    first = [("a cat", 1), ("a cat", 2), ("a dog", 1)]
    one, other = pairs(first, [("a dog", 1), ("a cat", 3), ("a cat", 1)])
    assert one.tolist() == [0, 2] and other.tolist() == [2, 0]
    taken = sample().rows(other)
    assert len(taken.groups) == 2 and taken.scores["PC"][1] == sample().scores["PC"][0]
    with pytest.raises(ValueError, match=r"\('a cat', 1\) occurs twice"):
        pairs([*first, first[0]], first)
    with pytest.raises(ValueError, match="no prompt and seed in common"):
        pairs(first, [("a bird", 1)])


def test_intervals_of_many_pictures_need_little_memory(monkeypatch: pytest.MonkeyPatch):
    """Resamples are taken a part at a time; of one group they are the same ones."""
    values, groups = np.random.default_rng(0).standard_normal(1000), np.zeros(1000, np.int64)
    whole = bootstrap_interval(mean_statistic(values), groups, resamples=30)
    shapes: list[tuple[int, ...]] = []

    def seen(weights: np.ndarray) -> np.ndarray:
        shapes.append(weights.shape)
        return mean_statistic(values)(weights)

    monkeypatch.setattr(sureness, "AT_ONCE", 7000)
    np.testing.assert_allclose(bootstrap_interval(seen, groups, resamples=30), whole, rtol=0, atol=EXACT)
    assert shapes == [(1, 1000), *[(7, 1000)] * 4, (2, 1000)]


def test_pictures_that_are_alone_have_no_interval():
    """One of each prompt: every resample is the same, and says nothing."""
    for groups in (np.zeros(1, np.int64), np.arange(5)):
        found = bootstrap_interval(mean_statistic(np.arange(1.0, len(groups) + 1)), groups)
        assert found.value == (len(groups) + 1) / 2 and np.isnan(found.low) and np.isnan(found.high)
    assert bootstrap_interval(mean_statistic(np.ones(4)), np.array([0, 0, 1, 2])).low == 1.0
