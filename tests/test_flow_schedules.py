"""Schedules of flow-matching models against diffusers' schedulers, and their laws."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

from autolora_jax.config import ConfigError, SchedulerConfig
from autolora_jax.schedules import (
    Schedule,
    flow_training_sigmas,
    make_schedule,
    own_scheduler,
    shift_sigmas,
    solvers_for,
)
from tests.test_schedules import SHAPE, distance
from tests.test_schedules import run as run_table

FINAL = 3e-6  # of the largest |x|; seen: 7.4e-7
STEPS = (1, 2, 4, 28, 50)
TOKENS = 1600  # of a picture, for dynamic shifts
SD3 = SchedulerConfig(solver="flow_euler", prediction_type="flow_prediction")
FLOW = solvers_for(SD3)
FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
# Keys of its file.
EULER = {
    "shift 3": dict(shift=3.0),
    "shift 1": dict(),
    "shift 1.7": dict(shift=1.7),
    "shift 0.5": dict(shift=0.5),
    "500 timesteps": dict(shift=3.0, num_train_timesteps=500),
    "dynamic": dict(shift=3.0, use_dynamic_shifting=True),
    "dynamic, own ends": dict(
        use_dynamic_shifting=True, base_shift=0.3, max_shift=2.0, base_image_seq_len=64, max_image_seq_len=2048
    ),
    "dynamic, linear": dict(use_dynamic_shifting=True, time_shift_type="linear"),
    "terminal": dict(shift=3.0, shift_terminal=0.1),
    "dynamic, terminal": dict(use_dynamic_shifting=True, shift_terminal=0.02),
    "karras": dict(shift=3.0, use_karras_sigmas=True),
    "exponential": dict(shift=3.0, use_exponential_sigmas=True),
    "beta": dict(shift=3.0, use_beta_sigmas=True),
}
# Keys of DPMSolverMultistepScheduler's.
DPM = {
    "shift 3": dict(flow_shift=3.0),
    "shift 1": dict(),
    "shift 1.7": dict(flow_shift=1.7),
    "500 timesteps": dict(flow_shift=3.0, num_train_timesteps=500),
    "dynamic": dict(flow_shift=3.0, use_dynamic_shifting=True),
}
CASES = [
    *(pytest.param(FlowMatchEulerDiscreteScheduler(**raw), id=f"euler, {name}") for name, raw in EULER.items()),
    *(
        pytest.param(
            DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", **raw),
            id=f"dpmpp_2m, {name}",
        )
        for name, raw in DPM.items()
    ),
]
draw = np.random.default_rng(0)
MATRICES = (draw.standard_normal((2, 6, 6)) / 5).astype(np.float32)


def config_of(theirs, folder: Path) -> SchedulerConfig:
    """From the very file that diffusers writes."""
    theirs.save_pretrained(folder)
    return SchedulerConfig.from_file(folder / "scheduler_config.json")


def network(x, t):
    """A stand-in, linear in x and of another kind at every t; numpy or torch."""
    a, b = (torch.from_numpy(m).to(x.dtype) if isinstance(x, torch.Tensor) else m for m in MATRICES)
    return (a + (float(t) / 1000) * b) @ x


def run(table: Schedule, x: np.ndarray, network=network) -> np.ndarray:
    """The sampler's loop, in the dtype of x."""
    assert not table.fresh.any()
    return run_table(table, x, np.zeros((len(table.timestep), 1), x.dtype), x.dtype, network)


def set_timesteps(theirs, steps: int) -> None:
    """As SD3's pipeline does."""
    config = theirs.config
    mu = calculate_shift(
        TOKENS,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.16),
    )
    theirs.set_timesteps(steps, **({"mu": mu} if config.use_dynamic_shifting else {}))
    theirs.set_begin_index(0)


def run_diffusers(theirs, x: np.ndarray) -> np.ndarray:
    state = torch.from_numpy(x)
    for t in theirs.timesteps:
        state = theirs.step(network(state, t), t, state, return_dict=False)[0]
    return state.numpy()


def steps_of(config: SchedulerConfig) -> tuple[int, ...]:
    return STEPS[1:] if config.shift_terminal else STEPS


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("theirs", CASES)
def test_sigmas_and_timesteps_are_those_of_diffusers(theirs, tmp_path: Path):
    config = config_of(theirs, tmp_path)
    spaced = config.use_karras_sigmas or config.use_exponential_sigmas  # powers and logs differ between libraries
    for steps in steps_of(config):
        set_timesteps(theirs, steps)
        table = make_schedule(config, steps, image_seq_len=TOKENS)
        np.testing.assert_array_max_ulp(table.timestep, theirs.timesteps.float().numpy(), maxulp=int(spaced))
        sigma = theirs.sigmas.numpy()
        np.testing.assert_array_max_ulp(-table.denoised_from_prediction, sigma[:-1], maxulp=int(spaced))
        np.testing.assert_allclose(table.keep, sigma[1:].astype(float) / sigma[:-1], rtol=1e-7)


@pytest.mark.parametrize("theirs", CASES)
def test_run_matches_diffusers(theirs, tmp_path: Path):
    config = config_of(theirs, tmp_path)
    for steps in (*steps_of(config), 14, 15):  # DPM-Solver++ ends differently from 15 on, if not at σ = 0
        set_timesteps(theirs, steps)
        ours = run(make_schedule(config, steps, image_seq_len=TOKENS), noise(steps))
        assert distance(ours, run_diffusers(theirs, noise(steps))) < FINAL, steps


def test_published_numbers():
    """SD3 as diffusers and sd3-ref sample it."""
    table = make_schedule(SD3, 28)
    sigma = [*(-table.denoised_from_prediction), 0.0]
    np.testing.assert_allclose(sigma[:3], [1, 0.987381, 0.974108], atol=5e-7)
    np.testing.assert_allclose(sigma[-3:], [0.110906, 0.008929, 0], atol=5e-7)
    np.testing.assert_allclose(flow_training_sigmas(SD3)[[0, -1]], [0.002994, 1], atol=5e-7)
    assert table.initial_scale == 1 and (table.input_scale == 1).all()
    np.testing.assert_allclose(table.timestep, 1000 * np.array(sigma[:-1]), rtol=1e-6)


@pytest.mark.parametrize("model", ["sd3-medium", "sd3.5-medium", "sd3.5-large"])
def test_published_files_are_the_default_of_flows(facts: Path, model: str):
    [file] = (facts / "configs" / model).rglob("scheduler_config.json")
    assert SchedulerConfig.from_file(file) == SD3


def test_training_sigmas_are_bitwise_those_of_diffusers():
    for raw in EULER.values():
        ours = flow_training_sigmas(SchedulerConfig.from_dict({"_class_name": FLOW_EULER, **raw}))
        np.testing.assert_array_equal(ours[::-1], FlowMatchEulerDiscreteScheduler(**raw).sigmas.double())


def test_shifts_add_up():
    """As odds σ/(1−σ), which a shift multiplies."""
    sigma = np.linspace(0, 1, 11)
    np.testing.assert_allclose(shift_sigmas(shift_sigmas(sigma, 3.0), 2.0), shift_sigmas(sigma, 6.0), rtol=1e-12)
    np.testing.assert_array_equal(shift_sigmas(sigma, 1.0), sigma)


def test_the_multistep_solver_takes_the_sd3_shift_of_the_checkpoint():
    theirs = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    theirs.set_timesteps(28)
    table = make_schedule(SD3, 28, "flow_dpmpp_2m")
    np.testing.assert_array_equal(-table.denoised_from_prediction, theirs.sigmas[:-1])


# ---- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", FLOW)
def test_straight_flows_are_solved_exactly(scheduler: str):
    """A network that knows the picture sends every state there on a straight line, in any number of steps."""
    picture, x = np.random.default_rng(1).standard_normal((2, *SHAPE))
    for steps in (1, 3, 20):
        table = make_schedule(SD3, steps, scheduler)
        sigma = iter(-table.denoised_from_prediction.astype(np.float64))
        end = run(table, x, lambda x, t, sigma=sigma: (x - picture) / next(sigma))
        np.testing.assert_allclose(end, picture, atol=2e-6)  # seen: 4e-7


@pytest.mark.parametrize("scheduler", FLOW)
def test_steps_are_the_textbooks(scheduler: str):
    """x' = x + (σ' − σ)·v, and arXiv 2211.01095, Eq. after (4.2), written in λ = log((1−σ)/σ); both in float64."""
    for steps in STEPS:
        table = make_schedule(SD3, steps, scheduler)
        sigma = [*(-table.denoised_from_prediction.astype(np.float64)), 0.0]
        x = noise(steps).astype(np.float64)
        ours, before = run(table, x), None
        for i, (s, s_next) in enumerate(itertools.pairwise(sigma)):
            v = network(x, table.timestep[i])
            denoised = slope = x - s * v
            if scheduler.startswith("flow_euler"):
                x = x + (s_next - s) * v
                continue
            if i > 0 and s_next > 0:
                λ_before, λ, λ_next = (np.log((1 - at) / at) for at in (sigma[i - 1], s, s_next))
                r = (λ - λ_before) / (λ_next - λ)
                slope = denoised + (denoised - before) / (2 * r)
            h = np.inf if s_next == 0 else np.log((1 - s_next) / s_next) - np.log((1 - s) / s)
            x = s_next / s * x - (1 - s_next) * np.expm1(-h) * slope
            before = denoised
        assert distance(ours, x) < 1e-6  # float32 coefficients; seen: 1.6e-7


def test_the_multistep_solver_is_nearer_to_the_true_flow():
    """Which is known for pictures from N(0, 0.5²): x(σ) ∝ √((1−σ)²·0.5² + σ²)."""

    def error(scheduler: str, steps: int) -> float:
        table = make_schedule(SD3, steps, scheduler)
        sigma = -table.denoised_from_prediction.astype(np.float64)
        spread = np.hypot((1 - sigma) * 0.5, sigma)
        share = iter((1 - (1 - sigma) * 0.5**2 / spread**2) / sigma)  # of x that is velocity
        return abs(float(run(table, np.ones(1), lambda x, t: x * next(share))[0]) - 0.5 / spread[0])

    for steps in (20, 40, 80):
        assert error("flow_dpmpp_2m", steps) < error("flow_euler", steps) / 4  # seen: 4.7, 8.4, 5.4 times nearer


@pytest.mark.parametrize("scheduler", FLOW)
def test_one_program_serves_all_schedulers(scheduler: str):
    table = make_schedule(SD3, 7, scheduler)
    assert [a.shape for a in jax.tree.leaves(table)] == [(7,)] * 9 + [()]
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in jax.tree.leaves(table))


# ---- what a checkpoint's file asks for -------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", CASES)
def test_configs_are_files_again(theirs, tmp_path: Path):
    """A folder that we write reads as the same config, in diffusers as well."""
    config = config_of(theirs, tmp_path)
    assert SchedulerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    again = type(theirs).from_config(config.to_dict()).config
    assert all(again[key] == value for key, value in theirs.config.items() if not key.startswith("_"))


def test_default_scheduler_is_the_checkpoints_own():
    multistep = dict(_class_name="DPMSolverMultistepScheduler", use_flow_sigmas=True, prediction_type="flow_prediction")
    for raw, name in (
        (dict(_class_name=FLOW_EULER), "flow_euler"),
        (dict(_class_name=FLOW_EULER, use_karras_sigmas=True), "flow_euler_karras"),
        (dict(_class_name=FLOW_EULER, use_exponential_sigmas=True), "flow_euler_exponential"),
        (multistep, "flow_dpmpp_2m"),
    ):
        config = SchedulerConfig.from_dict(raw)
        assert own_scheduler(config) == name and config.shift == 1  # where a file is silent
        for own, named in zip(make_schedule(config, 8), make_schedule(config, 8, name), strict=True):
            np.testing.assert_array_equal(own, named)


def test_keys_of_other_classes_do_not_matter():
    """diffusers keeps them in the file when a pipeline is given another scheduler."""
    others = dict(beta_start=0.1, prediction_type="epsilon", final_sigmas_type="sigma_min", timestep_spacing="leading")
    raw = {"_class_name": FLOW_EULER, "shift": 3.0, "flow_shift": 7.0, "solver_order": 3, **others}
    assert SchedulerConfig.from_dict(raw) == SD3
    raw = {"_class_name": "DPMSolverMultistepScheduler", "shift": 7.0, "flow_shift": 3.0, "use_flow_sigmas": True}
    config = SchedulerConfig.from_dict({**raw, "prediction_type": "flow_prediction", "shift_terminal": 0.1})
    assert (config.solver, config.shift, config.shift_terminal) == ("flow_dpmpp_2m", 3.0, None)
    assert SchedulerConfig.from_dict({**raw, "use_flow_sigmas": False}).solver == "dpmpp_2m"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (dict(invert_sigmas=True), "invert_sigmas = True is not supported"),
        (dict(stochastic_sampling=True), "stochastic_sampling = True is not supported"),
        (dict(use_karras_sigmas=True, use_exponential_sigmas=True), "exclude each other"),
        (dict(shift="3"), "shift = '3' should be float"),
        (dict(shift=0.0), "should be above 0"),
        (dict(shift_terminal=1.0), "shift_terminal = 1.0 should be between"),
        (dict(use_dynamic_shifting=True, base_image_seq_len=4096), "should differ, but both are 4096"),
        (dict(some_new_key=2), "some_new_key = 2 is not known here"),
        (dict(use_flow_sigmas=True, prediction_type="epsilon"), "'epsilon' does not go with the solver flow_dpmpp_2m"),
        (dict(use_flow_sigmas=False, prediction_type="flow_prediction"), "does not go with the solver dpmpp_2m"),
        (dict(use_flow_sigmas="yes", prediction_type="flow_prediction"), "use_flow_sigmas = 'yes' is not supported"),
        (dict(use_flow_sigmas=True, use_karras_sigmas=True), "use_karras_sigmas and use_flow_sigmas exclude"),
        (dict(use_flow_sigmas=True, use_beta_sigmas=True), "use_beta_sigmas and use_flow_sigmas exclude"),
        (
            dict(use_flow_sigmas=True, final_sigmas_type="sigma_min"),
            "'sigma_min' is not supported with use_flow_sigmas",
        ),
    ],
)
def test_files_that_would_give_other_images_are_refused(raw: dict, message: str):
    name = "DPMSolverMultistepScheduler" if "use_flow_sigmas" in raw else FLOW_EULER
    with pytest.raises(ConfigError, match=message):
        SchedulerConfig.from_dict({"_class_name": name, **raw})


def test_a_solver_set_up_as_none_of_ours_can_be_replaced():
    raw = {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction", "flow_shift": 3.0}
    config = SchedulerConfig.from_dict({**raw, "use_flow_sigmas": True, "solver_order": 3})
    with pytest.raises(ValueError, match=r'"solver_order": 3.* which is no solver of ours; name another'):
        own_scheduler(config)
    assert len(make_schedule(config, 4, "flow_euler").timestep) == 4


DYNAMIC = dataclasses.replace(SD3, use_dynamic_shifting=True)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (SD3, dict(scheduler="euler"), f"'euler' is not for this checkpoint, .*use one of {', '.join(FLOW)}$"),
        (SD3, dict(scheduler="dpmpp_2m_karras"), "which predicts 'flow_prediction'"),
        (
            SchedulerConfig(),
            dict(scheduler="flow_euler"),
            "predicts 'epsilon'; use one of ddim, .*_karras, .*tcd$",
        ),
        (SD3, dict(scheduler="flow_eular"), "did you mean 'flow_euler'"),
        (SD3, dict(scheduler="dpmpp_2"), "did you mean 'flow_dpmpp_2m'"),
        (SD3, dict(timestep_spacing="trailing"), "timestep_spacing 'trailing' means nothing to a flow"),
        (SD3, dict(num_inference_steps=1001), "not 1001"),
        (DYNAMIC, dict(), "image_seq_len is needed: .*4096 for 1024x1024"),
        (
            dataclasses.replace(DYNAMIC, time_shift_type="cubic"),
            dict(image_seq_len=9),
            "there are exponential, linear",
        ),
        (dataclasses.replace(SD3, shift=1e9), dict(), "do not fall at every step; use fewer steps or a shift nearer 1"),
        (dataclasses.replace(SD3, shift_terminal=0.1), dict(num_inference_steps=1), "at least 2 to end at"),
        (dataclasses.replace(SD3, shift_terminal=0.1), dict(scheduler="flow_dpmpp_2m"), "use flow_euler"),
    ],
)
def test_errors_say_what_to_do(config: SchedulerConfig, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_schedule(config, **{"num_inference_steps": 28, **arguments})


def test_a_fixed_shift_does_not_ask_for_the_size():
    for config in (SD3, dataclasses.replace(DYNAMIC, base_shift=1.0, max_shift=1.0)):
        for one, other in zip(make_schedule(config, 8), make_schedule(config, 8, image_seq_len=64), strict=True):
            np.testing.assert_array_equal(one, other)
