"""Schedules against diffusers' schedulers, and their laws."""

import dataclasses
import inspect
import itertools
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from autolora_jax.config import SchedulerConfig
from autolora_jax.schedules import (
    PREDICTIONS,
    SOLVERS,
    SPACINGS,
    Schedule,
    alphas_cumprod,
    make_schedule,
    own_scheduler,
    own_spacing,
    solvers_for,
)
from autolora_jax.schedules.grid import RESPACED

FINAL = 5e-6  # of the largest |x|; seen: 1.6e-6
SHAPE = (1, 4, 6, 5)
SDXL = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    prediction_type="epsilon",
    timestep_spacing="leading",
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=False,
)
# Of diffusion models; those of flows have their own tests in test_flow_schedules.py.
DIFFUSION = solvers_for(SchedulerConfig())
CLASSES = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "dpmpp_2m_sde": partial(DPMSolverMultistepScheduler.from_config, algorithm_type="sde-dpmsolver++"),
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
}
VE = ["euler", *(f"euler_{end}" for end in RESPACED)]
NOISY = {"euler_ancestral", "dpmpp_2m_sde", "lcm", "tcd"}
DISTILLED = {"lcm", "tcd"}  # whose timesteps are their own, whatever a file's spacing
FILES_SPACINGS = sorted(SPACINGS.keys() - {"distilled"})


def ours_and_theirs(scheduler: str, **changes) -> tuple[SchedulerConfig, object]:
    """One configuration for both."""
    raw = {**SDXL, **changes}
    name = base_of(scheduler)
    config = SchedulerConfig(**{k: v for k, v in raw.items() if k != "clip_sample"}, solver=name)
    make = getattr(CLASSES[name], "from_config", CLASSES[name])
    spaced = {f"use{scheduler.removeprefix(name)}_sigmas": True} if name != scheduler else {}
    return config, make(raw, **spaced)


def base_of(scheduler: str) -> str:
    """A solver's name without that of a spacing of sigmas."""
    name, _, end = scheduler.rpartition("_")
    return name if end in RESPACED else scheduler


def network(x, t):
    """An analytic stand-in, nonlinear in x and t; numpy or torch."""
    library = torch if isinstance(x, torch.Tensor) else np
    return 0.3 * x + 0.5 * library.tanh(2 * x + float(t) / 300) - 0.2 * library.sin(3 * x)


def run(table: Schedule, noise: np.ndarray, step_noise: np.ndarray, dtype=np.float32, network=network) -> np.ndarray:
    """The loop that `Schedule` documents."""
    x = (table.initial_scale * noise).astype(dtype)
    before = earlier = np.zeros_like(x)
    for i in range(len(table.timestep)):
        prediction = network(table.input_scale[i] * x, table.timestep[i])
        denoised = table.denoised_from_x[i] * x + table.denoised_from_prediction[i] * prediction
        x = table.keep[i] * x + table.toward[i] * denoised + table.previous[i] * before + table.earlier[i] * earlier
        x = x + table.fresh[i] * step_noise[i]
        before, earlier = denoised, before
    assert x.dtype == dtype
    return x


def run_diffusers(scheduler, steps: int, noise: np.ndarray, generator: torch.Generator) -> np.ndarray:
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # or it looks for its place by timestep, and skips a step where two round alike
    x = torch.from_numpy(noise) * scheduler.init_noise_sigma
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if "generator" in takes else {}
    for t in scheduler.timesteps:
        prediction = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(prediction, t, x, return_dict=False, **extra)[0]
    return x.numpy()


def both(scheduler: str, steps: int, **changes) -> tuple[np.ndarray, np.ndarray]:
    """Final x of our table and of diffusers, from the same noise."""
    config, theirs = ours_and_theirs(scheduler, **changes)
    draw = torch.Generator().manual_seed(steps)
    noise = torch.randn(SHAPE, generator=draw)
    state = draw.get_state()
    fresh = torch.stack([torch.randn(SHAPE, generator=draw) for _ in range(steps)])
    ours = run(make_schedule(config, steps, scheduler), noise.numpy(), fresh.numpy())
    return ours, run_diffusers(theirs, steps, noise.numpy(), draw.set_state(state))


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# Each with all that diffusers takes.
RUNS = set(itertools.product(DIFFUSION, PREDICTIONS.keys() - {"flow_prediction"})) - {("euler_ancestral", "sample")}


@pytest.mark.parametrize("spacing", FILES_SPACINGS)
@pytest.mark.parametrize(("scheduler", "prediction"), sorted(RUNS))
def test_run_matches_diffusers(scheduler: str, prediction: str, spacing: str):
    for steps in (6, 14, 15, 20, 30):  # DPM-Solver++ ends differently from 15 on
        ours, theirs = both(scheduler, steps, timestep_spacing=spacing, prediction_type=prediction)
        assert distance(ours, theirs) < FINAL, steps


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
@pytest.mark.parametrize(("scheduler", "spacing"), itertools.product(DIFFUSION, FILES_SPACINGS))
def test_grid_matches_diffusers(scheduler: str, spacing: str, beta_schedule: str):
    for steps, offset in itertools.product((6, 20, 30), (0, 1)):
        changes = dict(timestep_spacing=spacing, beta_schedule=beta_schedule, steps_offset=offset)
        config, theirs = ours_and_theirs(scheduler, **changes)
        theirs.set_timesteps(steps)
        table = make_schedule(config, steps, scheduler)
        np.testing.assert_allclose(table.timestep, theirs.timesteps, rtol=1e-6)
        np.testing.assert_allclose(table.initial_scale, theirs.init_noise_sigma, rtol=1e-6)
        solver, own = SOLVERS[scheduler], own_spacing(config, scheduler)
        config = dataclasses.replace(config, timestep_spacing=own)
        grid = solver.grid(config, steps, **({"eta": solver.eta} if solver.eta else {}))
        if scheduler in ("ddim", *DISTILLED):
            alpha_bar = theirs.alphas_cumprod[theirs.timesteps]
            np.testing.assert_allclose(grid.signal**2, alpha_bar, rtol=1e-6)
            np.testing.assert_allclose(grid.noise**2, 1 - alpha_bar, rtol=1e-6)
        else:
            np.testing.assert_allclose(grid.noise / grid.signal, theirs.sigmas[:-1], rtol=1e-6)
            np.testing.assert_allclose(grid.next_noise / grid.next_signal, theirs.sigmas[1:], rtol=1e-6)


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
def test_training_schedule_is_bitwise_that_of_diffusers(beta_schedule: str):
    config, theirs = ours_and_theirs("ddim", beta_schedule=beta_schedule)
    assert np.array_equal(alphas_cumprod(config), theirs.alphas_cumprod.double())


def test_published_numbers():
    """SDXL base 1.0 as diffusers samples it; the defaults of SchedulerConfig."""
    twenty, thirty, fifty = (make_schedule(SchedulerConfig(), n) for n in (20, 30, 50))
    assert twenty.timestep.tolist() == [*range(951, 0, -50)]
    assert thirty.timestep[0] == 958 and fifty.timestep[0] == 981
    for table, sigma in ((twenty, 11.028336), (thirty, 11.476851), (fifty, 13.120416)):
        np.testing.assert_allclose(np.sqrt(1 / table.input_scale[0] ** 2 - 1), sigma, rtol=1e-6)
    np.testing.assert_allclose(twenty.denoised_from_prediction[-1], -0.041314, rtol=2e-5)
    np.testing.assert_allclose([twenty.initial_scale, fifty.initial_scale], [11.073581, 13.158469], rtol=1e-6)
    np.testing.assert_allclose(alphas_cumprod(SchedulerConfig())[[0, 999]], [0.99914998, 0.00466010], atol=5e-9)


def test_published_file_is_the_default(facts: Path):
    [file] = (facts / "configs" / "sdxl-base-1.0").rglob("scheduler_config.json")
    assert SchedulerConfig.from_file(file) == SchedulerConfig()
    theirs = EulerDiscreteScheduler.from_config(json.loads(file.read_text()))
    theirs.set_timesteps(28)
    np.testing.assert_allclose(make_schedule(SchedulerConfig(), 28).timestep, theirs.timesteps)


def test_ddim_is_algorithm_2():
    """arXiv 2410.03941, Algorithm 2, with the √ᾱ_t that its print shortens to α_t, and ᾱ_0 for the last step."""
    steps, alpha_bar = 30, alphas_cumprod(SchedulerConfig())
    noise = np.random.default_rng(0).standard_normal(SHAPE)
    x = noise
    for t in range(29 * 33 + 1, 0, -33):
        now, then = alpha_bar[t], alpha_bar[max(t - 33, 0)]
        e = network(x, t)
        x0 = (x - np.sqrt(1 - now) * e) / np.sqrt(now)
        x = np.sqrt(then) * x0 + np.sqrt(1 - then) * e
    table = make_schedule(SchedulerConfig(), steps, "ddim")
    ours = run(table, noise, np.zeros((steps, 1)), np.float64)
    assert distance(ours, x) < 5e-7  # float32 coefficients; seen: 1.2e-7
    assert table.initial_scale == 1


@pytest.mark.parametrize("scheduler", [s for s in DIFFUSION if s not in ("ddim", *DISTILLED)])
def test_solvers_are_exact_where_the_picture_is_known(scheduler: str):
    """A network that always knows x0 makes every path straight (in σ): all solvers end in x0, whatever the steps."""
    x0, noise = np.random.default_rng(0).standard_normal((2, *SHAPE))
    for steps in (1, 3, 20):
        table = make_schedule(SchedulerConfig(), steps, scheduler)
        x = table.initial_scale * noise
        for i in range(steps):
            seen = table.toward[i] + table.previous[i] + table.earlier[i]
            x = table.keep[i] * x + seen * x0 + table.fresh[i] * noise
        np.testing.assert_allclose(x, x0, atol=2e-6)


@pytest.mark.parametrize("spacing", FILES_SPACINGS)
@pytest.mark.parametrize("scheduler", [s for s in DIFFUSION if s not in VE])
def test_zero_snr_run_matches_diffusers(scheduler: str, spacing: str):
    for steps in (6, 20, 30):
        changes = dict(timestep_spacing=spacing, prediction_type="v_prediction", rescale_betas_zero_snr=True)
        ours, theirs = both(scheduler, steps, **changes)
        assert distance(ours, theirs) < 2e-5  # seen: 5.3e-6; torch's float32 √ᾱ depends on its vector library


@pytest.mark.parametrize("spacing", FILES_SPACINGS)
@pytest.mark.parametrize("scheduler", VE)
def test_zero_snr_euler_matches_float64(scheduler: str, spacing: str):
    """diffusers' x + (σ' − σ)·d loses three digits at σ = 4096, so its sigmas are run in float64 here."""
    changes = dict(timestep_spacing=spacing, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    for steps in (6, 20, 30):
        ours, theirs = both(scheduler, steps, **changes)
        assert distance(ours, theirs) < 2e-4  # seen: 3.6e-5
        reference = ours_and_theirs(scheduler, **changes)[1]
        reference.set_timesteps(steps)
        sigma = reference.sigmas.double().numpy()
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(steps)).numpy()
        x = noise.astype(np.float64) * float(reference.init_noise_sigma)
        for t, s, s_next in zip(reference.timesteps.tolist(), sigma, sigma[1:], strict=False):
            v = network(x / np.sqrt(s**2 + 1), t)
            x0 = x / (s**2 + 1) - v * s / np.sqrt(s**2 + 1)
            x = x + (s_next - s) * (x - x0) / s
        assert distance(ours, x) < FINAL, steps


@pytest.mark.parametrize("scheduler", [s for s in DIFFUSION if s not in ("ddim", "euler_ancestral", *DISTILLED)])
def test_final_sigma_min_matches_diffusers(scheduler: str):
    for steps in (6, 14, 15, 20):
        ours, theirs = both(scheduler, steps, final_sigmas_type="sigma_min")
        assert distance(ours, theirs) < FINAL, steps


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8, 1.0])
def test_tcd_has_the_noise_of_its_eta(eta: float, monkeypatch: pytest.MonkeyPatch):
    config, theirs = ours_and_theirs("tcd")
    noise = torch.randn(SHAPE, generator=(draw := torch.Generator().manual_seed(0)))
    state = draw.get_state()
    fresh = torch.stack([torch.randn(SHAPE, generator=draw) for _ in range(4)]).numpy()
    monkeypatch.setattr(theirs, "step", partial(theirs.step, eta=eta))
    reference = run_diffusers(theirs, 4, noise.numpy(), draw.set_state(state))
    table = make_schedule(config, 4, "tcd", eta=eta)
    assert distance(run(table, noise.numpy(), fresh), reference) < FINAL
    assert table.fresh.any() == (eta > 0)


def test_lcm_takes_other_timesteps_if_told_so():
    """Those that DMD2 was distilled at: its model card gives them to diffusers' LCMScheduler one by one."""
    config, theirs = ours_and_theirs("lcm")
    table = make_schedule(config, 4, timestep_spacing="trailing")
    dmd2 = [999, 749, 499, 249]
    assert table.timestep.tolist() == dmd2
    noise = torch.randn(SHAPE, generator=(draw := torch.Generator().manual_seed(0)))
    state = draw.get_state()
    fresh = torch.stack([torch.randn(SHAPE, generator=draw) for _ in range(4)]).numpy()
    draw.set_state(state)
    theirs.set_timesteps(timesteps=dmd2)
    x = noise
    for t in theirs.timesteps:
        x = theirs.step(network(x, t), t, x, generator=draw, return_dict=False)[0]
    assert distance(run(table, noise.numpy(), fresh), x.numpy()) < FINAL


@pytest.mark.parametrize("scheduler", DIFFUSION)
def test_a_folder_that_diffusers_writes_names_its_solver(scheduler: str, tmp_path: Path):
    # TCD's silent keys are its class's own.
    theirs = TCDScheduler(original_inference_steps=25) if scheduler == "tcd" else ours_and_theirs(scheduler)[1]
    theirs.save_pretrained(tmp_path)
    config = SchedulerConfig.from_file(tmp_path / "scheduler_config.json")
    assert own_scheduler(config) == scheduler and SchedulerConfig.from_dict(config.to_dict()) == config
    again = type(theirs).from_config(config.to_dict())
    for each in (theirs, again):
        each.set_timesteps(8)
    np.testing.assert_allclose(make_schedule(config, 8).timestep, theirs.timesteps, rtol=1e-6)
    np.testing.assert_array_equal(again.timesteps, theirs.timesteps)


def test_default_scheduler_is_the_checkpoints_own():
    for config, name in (
        (SchedulerConfig(solver="ddim"), "ddim"),
        (SchedulerConfig(solver="dpmpp_2m", use_karras_sigmas=True), "dpmpp_2m_karras"),
        (SchedulerConfig(solver="euler_ancestral", use_karras_sigmas=True), "euler_ancestral"),  # as diffusers
    ):
        assert_same(make_schedule(config, 8), make_schedule(config, 8, name))
    config = SchedulerConfig(timestep_spacing="trailing")
    assert_same(make_schedule(config, 8), make_schedule(SchedulerConfig(), 8, timestep_spacing="trailing"))


def assert_same(a: Schedule, b: Schedule):
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("scheduler", DIFFUSION)
def test_one_program_serves_all_schedulers(scheduler: str):
    table = make_schedule(SchedulerConfig(), 7, scheduler)
    assert [a.shape for a in jax.tree.leaves(table)] == [(7,)] * 9 + [()]
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in jax.tree.leaves(table))
    assert table.fresh.any() == (base_of(scheduler) in NOISY)


def test_trailing_has_no_extra_step():
    """Where diffusers' arange ends a rounding error above 0 and adds a step at t = −1."""
    config, theirs = ours_and_theirs("euler", timestep_spacing="trailing")
    theirs.set_timesteps(61)
    assert len(theirs.timesteps) == 62
    np.testing.assert_array_equal(make_schedule(config, 61).timestep, theirs.timesteps[:61])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_inference_steps=0), "between 1 and the 1000 training timesteps, not 0"),
        (dict(num_inference_steps=-3), "not -3"),
        (dict(num_inference_steps=1001), "not 1001"),
        (dict(num_inference_steps=1000), "'leading' spacing and steps_offset 1 .*use fewer steps"),
        (dict(num_inference_steps=1000, scheduler="dpmpp_2m"), "use fewer steps"),
        (dict(scheduler="dpmp_2m"), "did you mean 'dpmpp_2m'"),
        (dict(scheduler="euler_ancestral_karras"), "did you mean 'euler_ancestral'"),
        (dict(scheduler="xyz"), "there are ddim, euler"),
        (dict(timestep_spacing="trailling"), "did you mean 'trailing'"),
        (dict(num_inference_steps=60, scheduler="lcm"), "num_inference_steps = 60 should be at most 50: 'distilled'"),
        (dict(eta=0.5), "eta = 0.5 means nothing to the scheduler 'euler', only to tcd"),
        (dict(config=dict(prediction_type="v")), "prediction_type = 'v' is not known"),
        (dict(config=dict(beta_schedule="cosine")), "beta_schedule = 'cosine' is not known"),
        (dict(config=dict(final_sigmas_type="none")), "there are zero, sigma_min"),
        (
            dict(config=dict(rescale_betas_zero_snr=True), scheduler="ddim", timestep_spacing="trailing"),
            "use 'leading' spacing",
        ),
    ],
)
def test_errors_say_what_to_do(arguments: dict, message: str):
    config = dataclasses.replace(SchedulerConfig(), **arguments.pop("config", {}))
    with pytest.raises(ValueError, match=message):
        make_schedule(config, **{"num_inference_steps": 20, **arguments})
