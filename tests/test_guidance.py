"""The branch table against the paper's equations, written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autolora_jax.forms import Forms
from autolora_jax.forms import guided as with_their_shares
from autolora_jax.guidance import COLUMNS, KINDS, SHARES, combine, evaluations, plan, rescale
from autolora_jax.run import calls as calls_of
from autolora_jax.run import paired
from autolora_jax.settings.rules import (
    BASE_NEG,
    BASE_POS,
    CFG,
    EVERY,
    LORA_NEG,
    LORA_POS,
    SKIP_POS,
    WEAK_NEG,
    AutoGuidance,
    AutoLoRA,
    Branch,
    NoGuidance,
    PersonalizationGuidance,
    Rule,
    Skip,
    to_dict,
)


def dense(rules: Rule | list[Rule], n: int, steps: int) -> np.ndarray:
    """[n steps columns], put together from the calls that a sampler makes."""
    p = plan(rules, n, steps)
    table = np.zeros((n, steps, len(COLUMNS)))
    for k in range(steps):
        calls = calls_of(p, k, k + 1)
        for c in range(calls.made[0]):
            for i, column in enumerate(calls.columns[0, c]):
                assert KINDS[calls.kinds[0, c]] == COLUMNS[column].weights
                table[:, k, column] += calls.coefficients[:, 0, c, i, 0]
    return table


def predictions(seed: int = 0) -> dict[Branch, np.ndarray]:
    values = np.random.default_rng(seed).normal(size=(len(COLUMNS), 6, 5, 4)).astype(np.float32)
    return dict(zip(COLUMNS, values, strict=True))


def guided(rule: Rule) -> np.ndarray:
    """ê [6 5 4] of one image by the branch table."""
    stacked = np.stack([*predictions().values()])[:, None]
    return np.asarray(combine(jnp.array(stacked), jnp.array(dense(rule, 1, 3)[:, 0], jnp.float32)))[0]


e = predictions()


def cfg(negative: Branch, positive: Branch, w: float) -> np.ndarray:
    return e[negative] + w * (e[positive] - e[negative])


EQUATIONS = {
    "lora alone": (NoGuidance(), e[LORA_POS]),
    "eq 4": (CFG(6.0), cfg(LORA_NEG, LORA_POS, 6.0)),
    "eq 5": (AutoGuidance(2.5), e[BASE_POS] + 2.5 * (e[LORA_POS] - e[BASE_POS])),
    "eq 6": (AutoLoRA(1.5, 1.0, 1.0), e[BASE_POS] + 1.5 * (e[LORA_POS] - e[BASE_POS])),
    "eq 7": (
        AutoLoRA(1.5, 4.0, 6.0),
        cfg(BASE_NEG, BASE_POS, 4.0) + 1.5 * (cfg(LORA_NEG, LORA_POS, 6.0) - cfg(BASE_NEG, BASE_POS, 4.0)),
    ),
    "personalization": (PersonalizationGuidance(4.0, 0.3), e[WEAK_NEG] + 4.0 * (e[LORA_POS] - e[WEAK_NEG])),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_rules_equal_the_papers_equations(name: str):
    rule, expected = EQUATIONS[name]
    np.testing.assert_allclose(guided(rule), expected, atol=5e-6)  # seen 2e-6: values up to 20, float32


@pytest.mark.parametrize("rule", [rule for rule, _ in EQUATIONS.values()])
def test_coefficients_sum_to_one(rule: Rule):
    np.testing.assert_allclose(dense(rule, 2, 5).sum(-1), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "branches"),
    [
        (NoGuidance(), (LORA_POS,)),
        (CFG(1.0), (LORA_POS,)),
        (CFG(5.0), (LORA_NEG, LORA_POS)),
        (AutoLoRA(1.0, 5.0, 5.0), (LORA_NEG, LORA_POS)),
        (AutoLoRA(0.0, 5.0, 5.0), (BASE_NEG, BASE_POS)),
        (AutoLoRA(1.5, 1.0, 1.0), (BASE_POS, LORA_POS)),
        (AutoLoRA().filled(5.0), (BASE_NEG, BASE_POS, LORA_NEG, LORA_POS)),
        (PersonalizationGuidance().filled(5.0), (WEAK_NEG, LORA_POS)),
    ],
)
def test_neutral_values_drop_branches(rule: Rule, branches: tuple[Branch, ...]):
    assert [s.branches for s in plan(rule, 2, 7).segments] == [branches]


def test_interval_splits_the_run_and_keeps_cfg_outside():
    p = plan(AutoLoRA(1.5, 5.0, 4.0, start=0.25, stop=0.75), 1, 8)
    four, two = (BASE_NEG, BASE_POS, LORA_NEG, LORA_POS), (LORA_NEG, LORA_POS)
    assert [tuple(s) for s in p.segments] == [(2, two), (4, four), (2, two)]
    np.testing.assert_allclose(calls_of(p, 0, 1).coefficients[0, 0, 0, :, 0], [-3.0, 4.0])
    assert evaluations(p.segments) == 2 * 2 + 4 * 4 + 2 * 2
    assert [tuple(s) for s in plan(CFG(5.0, start=0.5), 1, 4).segments] == [(2, (LORA_POS,)), (2, two)]
    assert [s.branches for s in plan(AutoLoRA(start=0.4, stop=0.4).filled(5.0), 1, 8).segments] == [two]


@pytest.mark.parametrize(
    ("rule", "counts", "prompts"),
    [
        (AutoLoRA(1.5, 5.0, 4.0, start=0.25, stop=0.75), [1, 1, 2, 2, 2, 2, 1, 1], 2),  # pairs of prompts
        (AutoLoRA(1.5, 1.0, 4.0), [3] * 8, 1),  # the base model reads one prompt: nothing is evaluated beside the table
        (PersonalizationGuidance(4.0), [2] * 8, 1),
    ],
)
def test_calls_evaluate_what_the_table_uses_and_no_more(rule: Rule, counts: list[int], prompts: int):
    p = plan(rule, 2, 8)
    calls = calls_of(p, 0, 8)
    assert calls.made.tolist() == counts and calls.columns.shape[-1] == prompts
    assert calls.made.sum() * prompts == evaluations(p.segments)


def exact(rule: Rule) -> Rule:
    """It, evaluated and active at every step."""
    every = {name: 1 for name in EVERY if hasattr(rule, name)}
    return dataclasses.replace(rule, **every, start=0.0, stop=1.0)


REFRESHED = {  # rule -> evaluations of each of 8 steps
    AutoLoRA(1.5, 4.0, 6.0, refresh_base=3): [4, 2, 2, 4, 2, 2, 4, 2],
    AutoLoRA(1.5, 4.0, 6.0, refresh_uncond=3): [4] * 8,  # the base model is not without it
    AutoLoRA(1.5, 4.0, 6.0, refresh_base=4, refresh_uncond=2): [4, 1, 2, 1, 4, 1, 2, 1],
    AutoLoRA(1.5, 4.0, 6.0, refresh_base=3, refresh_uncond=3, start=0.25, stop=0.75): [2, 1, 4, 1, 1, 4, 2, 1],
    AutoLoRA(1.5, 1.0, 1.0, refresh_base=4): [2, 1, 1, 1, 2, 1, 1, 1],
    AutoLoRA(1.0, 4.0, 6.0, refresh_base=2, refresh_uncond=8): [2, 1, 1, 1, 1, 1, 1, 1],  # γ = 1: no base
    CFG(4.0, refresh_uncond=2): [2, 1, 2, 1, 2, 1, 2, 1],
    AutoGuidance(2.0, refresh_base=8): [2, 1, 1, 1, 1, 1, 1, 1],
    PersonalizationGuidance(4.0, 0.3, refresh_uncond=5): [2, 1, 1, 1, 1, 2, 1, 1],
}


@pytest.mark.parametrize("rule", REFRESHED)
def test_what_is_refreshed_is_evaluated_so_often_and_kept_in_between(rule: Rule):
    """If predictions do not change from step to step, nothing is lost."""
    p = plan(rule, 2, 8)
    assert p.active.sum(axis=1).tolist() == REFRESHED[rule]
    assert evaluations(p.segments) == sum(REFRESHED[rule])
    e, kept = np.stack([*predictions().values()]), 0
    for k in range(8):
        sums = np.einsum("bhwc,sb->shwc", e, p.table[1, k])
        kept = p.held[1, k][:, None, None, None] * kept + sums[1:]
        holds = rule if int(rule.start * 8) <= k < int(rule.stop * 8) else rule.outside()
        np.testing.assert_allclose(sums[0] + kept.sum(0), guided(exact(holds)), atol=2e-5)  # seen 7e-6


def test_pictures_of_a_batch_are_refreshed_each_in_its_own_time():
    p = plan(AutoLoRA(1.5, 2.0, 2.0, refresh_base=[1, 2, 3]), 3, 6)
    assert (p.active.sum(axis=1) == 4).all()  # all pay for the first
    assert p.held[..., 1].tolist() == [[0] * 6, [0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 1]] and not p.held[..., 0].any()


def test_what_is_not_refreshed_is_one_sum_and_said_as_ever():
    p = plan([AutoLoRA(1.5, 2.0, 2.0), CFG(2.0, refresh_uncond=1)], 2, 3)
    assert not p.table[:, :, 1:].any() and not p.held.any()
    assert to_dict(CFG(2.0, refresh_uncond=1)) == {"rule": "cfg", "w": 2.0, "start": 0.0, "stop": 1.0}
    assert to_dict(CFG(2.0, refresh_uncond=3))["refresh_uncond"] == 3


def test_a_batch_mixes_values_and_rules():
    table = dense(AutoLoRA(gamma=[1.0, 1.5, 2.0], w1=3.0, w2=[2.0, 4.0, 6.0]), 3, 2)
    for i, (g, w2) in enumerate([(1.0, 2.0), (1.5, 4.0), (2.0, 6.0)]):
        np.testing.assert_allclose(table[i], dense(AutoLoRA(g, 3.0, w2), 1, 2)[0])
    rules = [rule.filled(7.0) for rule in (NoGuidance(), CFG(5.0), AutoLoRA(), PersonalizationGuidance())]
    np.testing.assert_allclose(dense(rules, 4, 3), np.concatenate([dense(r, 1, 3) for r in rules]))


def test_open_scales_are_filled_with_what_is_usual():
    assert AutoLoRA(2.0, w2=1.0).filled(7.0) == AutoLoRA(2.0, 7.0, 1.0)
    assert (CFG().filled(5.0), CFG(3.0).filled(5.0)) == (CFG(5.0), CFG(3.0))
    assert AutoGuidance().filled(9.0) == AutoGuidance(1.5)  # no scale of CFG


def test_rescale_equals_diffusers():
    import torch
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

    g, r = (np.random.default_rng(i).normal(size=(2, 6, 5, 4)).astype(np.float32) * 3 for i in range(2))
    ours = rescale(jnp.array(g), jnp.array(r), jnp.array([0.0, 0.7]))
    np.testing.assert_allclose(ours[0], g[0], rtol=1e-6)
    theirs = rescale_noise_cfg(torch.tensor(g), torch.tensor(r), guidance_rescale=0.7).numpy()
    np.testing.assert_allclose(ours[1], theirs[1], rtol=2e-6)
    assert not rescale(jnp.zeros_like(g), jnp.array(r), jnp.array([0.0, 0.7])).any()  # theirs: not finite


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_shares(*arrays: np.ndarray | Forms) -> np.ndarray:
    """forms.guided of numpy's arrays."""
    return np.asarray(with_their_shares(*jax.tree.map(jnp.asarray, arrays)))


def test_forms_that_are_off_change_nothing():
    e, shares = pictures(2, 6, 5, 4), pictures(2, SHARES, 6, 5, 4, seed=1)
    off = Forms(*(np.full((2, SHARES), usual, np.float32) for usual in Forms()))
    shares[1] = 0  # and neither does guidance that adds nothing
    found = with_shares(
        e, shares, off._replace(gain=np.float32([[4, 0.5], [0, 0]])), pictures(2, 6, 5, 4, seed=2), -2.0
    )
    np.testing.assert_allclose(found[0], (e + shares.sum(1))[0], rtol=1e-6)
    assert (found[1] == e[1]).all()


@pytest.mark.parametrize(("eta", "norm"), [(0.0, 0.0), (0.3, 5.0), (1.0, 2.0)])
def test_projection_equals_diffusers(eta: float, norm: float):
    """APG's update of denoised pictures, as in its paper; a second share is projected onto what has the first."""
    import torch
    from diffusers.guiders.adaptive_projected_guidance import normalized_guidance

    w, gamma, factor = 4.0, 1.5, np.float32(-1.7)
    noisy, conditional, without, base = (pictures(1, 6, 5, 4, seed=i) for i in range(4))
    gains = np.float32([[w - 1, gamma - 1]])

    def theirs(with_it: np.ndarray, without: np.ndarray, gain: float) -> np.ndarray:
        told = (torch.tensor(with_it), torch.tensor(without), gain, None, eta, norm, True)
        return normalized_guidance(*told).numpy()

    picture, away, away_base = (noisy + factor * e for e in (conditional, without, base))
    tuned = theirs(picture, away, w - 1)
    expected = theirs(tuned, away_base, gamma - 1)
    shares = np.stack([(w - 1) * (conditional - without), (gamma - 1) * ((tuned - noisy) / factor - base)], 1)
    forms = Forms(gains, gains * norm if norm else np.full_like(gains, np.inf), gains * 0 + eta, gains * 0)
    found = noisy + factor * with_shares(conditional, shares, forms, noisy, factor)
    np.testing.assert_allclose(found, expected, atol=2e-5)  # seen 4e-6


def test_zero_star_equals_diffusers():
    import torch
    from diffusers import ClassifierFreeZeroStarGuidance

    w, (conditional, without) = 4.0, (pictures(2, 6, 5, 4, seed=i) + 1 for i in range(2))
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=w, zero_init_steps=0)
    guider.set_state(step=0, num_inference_steps=4, timestep=0)
    theirs = guider.forward(torch.tensor(conditional), torch.tensor(without)).pred.numpy()
    gains, nothing = np.float32([[w - 1, 0]] * 2), np.zeros((2, 6, 5, 4), np.float32)
    forms = Forms(gains, np.full_like(gains, np.inf), np.ones_like(gains), np.ones_like(gains))
    shares = np.stack([(w - 1) * (conditional - without), nothing], 1)
    found = with_shares(conditional, shares, forms, nothing, np.float32(1))
    np.testing.assert_allclose(found, theirs, atol=2e-5)  # seen 4e-6


def test_first_steps_of_zero_equal_diffusers_and_evaluate_nothing():
    import torch
    from diffusers import ClassifierFreeZeroStarGuidance

    e = pictures(len(COLUMNS), 1, 6, 5, 4) + 1
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=2, start=0.2, stop=0.9)
    p = plan(CFG(4.0, zero_star=1.0, zero_init_steps=2, start=0.2, stop=0.9), 1, 10)
    assert p.active.sum(axis=1).tolist() == [0, 0, 2, 2, 2, 2, 2, 2, 2, 1] and evaluations(p.segments) == 15
    negative, positive = (torch.tensor(e[COLUMNS.index(branch)]) for branch in (LORA_NEG, LORA_POS))
    for k in range(10):
        guider.set_state(step=k, num_inference_steps=10, timestep=0)
        sums = np.einsum("kbhwc,bsk->bshwc", e, p.table[:, k])
        forms = Forms(*(numbers[:, k] for numbers in p.forms))
        found = with_shares(sums[:, 0], sums[:, 1:], forms, np.zeros_like(e[0]), np.float32(1))
        np.testing.assert_allclose(found, guider.forward(positive, negative).pred.numpy(), atol=2e-5)  # seen 5e-6


def test_steps_of_zero_are_an_images_own_and_come_before_what_is_refreshed():
    rules = [AutoLoRA(1.5, 2.0, 2.0, zero_init_steps=z, refresh_base=3) for z in (1, 4)]
    assert plan(rules[0], 1, 6).active.sum(axis=1).tolist() == [0, 4, 2, 2, 4, 2]
    p = plan(rules, 2, 6, reference=True)
    assert p.table.any(axis=(2, 3)).tolist() == [[False, *[True] * 5], [*[False] * 4, True, True]]
    assert p.held[1].any(axis=1).tolist() == [*[False] * 5, True] and not p.active[0].any()
    assert to_dict(rules[0])["zero_init_steps"] == 1 and "zero_init_steps" not in to_dict(CFG(2.0))


@pytest.mark.parametrize(
    ("rule", "both"), [(CFG(2.0, zero_init_steps=2), True), (AutoGuidance(zero_init_steps=2), False)]
)
def test_steps_of_zero_are_taken_by_the_program_of_those_that_follow(rule: Rule, both: bool):
    assert paired(plan(rule, 1, 4)).tolist() == [both] * 4
    assert calls_of(plan(rule, 1, 4), 0, 4).made.tolist() == [0, 0, *[1 if both else 2] * 2]


def test_skipped_layers_are_a_branch_that_is_added_to_any_rule():
    skip = Skip([2.8, 0.0], 0.1, 0.4)
    rules = [AutoLoRA(1.5, 2.0, 3.0, apg_eta=0.0), CFG(3.0, zero_init_steps=2)]
    p, without = plan(rules, 2, 10, skip=skip), plan(rules, 2, 10)
    added = p.table[:, :, -1]
    assert [*p.active[:, COLUMNS.index(SKIP_POS)]] == [k in (2, 3) for k in range(10)]  # 1 < k < 4
    assert (p.active[:, :-1] == without.active[:, :-1]).all() and (p.table[:, :, :-1] == without.table).all()
    assert added[0, 2, COLUMNS.index(LORA_POS)] == np.float32(2.8) and not added[1].any()
    np.testing.assert_allclose(added.sum(axis=-1), 0)
    assert evaluations(p.segments) == evaluations(without.segments) + 2
    skip = skip._replace(scale=1.0)
    assert not plan(CFG(3.0, zero_init_steps=4), 1, 10, skip=skip).active[:, -1].any()
    # Two of the same weights are a pair, whichever they are: here LoRA,+ with and without layers.
    alone, cfg = (paired(plan(rule, 1, 10, skip=skip)) for rule in (NoGuidance(), CFG(3.0)))
    assert [*np.flatnonzero(alone)] == [*np.flatnonzero(~cfg)] == [2, 3]


def test_forms_are_planned_by_image_and_share():
    p = plan([AutoLoRA(1.5, 2.0, 3.0, apg_eta=0.0, apg_norm=4.0, apg_momentum=-0.5), CFG(3.0)], 2, 3)
    assert p.forms.gain[0, 0].tolist() == [2.0, 0.5] and p.forms.longest[0, 0].tolist() == [8.0, 2.0]
    assert p.momentum[0].tolist() == [[0, 0], [-0.5, -0.5], [-0.5, -0.5]] and not p.held.any()
    assert (p.forms.parallel[0] == 0).all() and (p.forms.parallel[1] == 1).all() and (p.forms.fitted == 0).all()
    assert np.isinf(p.forms.longest[1]).all() and not p.table[1, :, 1:].any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AutoLoRA(start=0.6, stop=0.5), "start=0.6"),
        (lambda: CFG(stop=1.5), "fractions"),
        (lambda: CFG(float("nan")), "finite"),
        (lambda: CFG(refresh_uncond=0), "refresh_uncond=0: need a whole number"),
        (lambda: AutoLoRA(refresh_base=(1, 2.5)), "whole number"),
        (lambda: CFG(zero_init_steps=-1), "zero_init_steps=-1: need a whole number of steps; 0 changes nothing"),
        (lambda: plan(CFG(2.0, zero_init_steps=4), 1, 4), "zero_init_steps=4 of 4 steps leaves none"),
        (lambda: plan(CFG([1.0, 2.0]), 3, 4), "2 values for 3 images"),
        (lambda: plan([CFG(), CFG()], 3, 4), "2 rules for 3 images"),
        (lambda: plan(AutoLoRA(w1=3.0), 1, 4), " is open; a pipeline fills in"),
    ],
)
def test_bad_values_are_refused(make, words: str):
    with pytest.raises(ValueError, match=words):
        make()
