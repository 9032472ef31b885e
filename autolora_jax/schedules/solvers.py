"""Which solvers there are, by name, and which of them a checkpoint can be sampled with."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from autolora_jax.config import SchedulerConfig
from autolora_jax.schedules import diffusion, flow
from autolora_jax.schedules.grid import Grid, exponential_sigmas, karras_sigmas
from autolora_jax.schedules.steps import Steps, ancestral, first_order, multistep


class Solver(NamedTuple):
    """What a scheduler's name stands for. flow: for models that predict flow, and no others."""

    grid: Callable[[SchedulerConfig, int], Grid]
    step: Callable[[Grid], Steps]
    flow: bool = False


# diffusers' scheduler classes under short names. Other spacings of sigmas exist where diffusers has them.
SOLVERS: dict[str, Solver] = {
    "ddim": Solver(diffusion.ddim_grid, first_order),
    "euler": Solver(diffusion.euler_grid, first_order),
    "euler_karras": Solver(partial(diffusion.euler_grid, karras=True), first_order),
    "euler_ancestral": Solver(diffusion.euler_ancestral_grid, ancestral),
    "dpmpp_2m": Solver(diffusion.dpm_grid, multistep),
    "dpmpp_2m_karras": Solver(partial(diffusion.dpm_grid, karras=True), multistep),
    "flow_euler": Solver(flow.flow_euler_grid, first_order, flow=True),
    "flow_euler_karras": Solver(partial(flow.flow_euler_grid, respace=karras_sigmas), first_order, flow=True),
    "flow_euler_exponential": Solver(partial(flow.flow_euler_grid, respace=exponential_sigmas), first_order, flow=True),
    "flow_dpmpp_2m": Solver(flow.flow_dpm_grid, multistep, flow=True),
}


def solvers_for(config: SchedulerConfig) -> dict[str, Solver]:
    """The rows of SOLVERS that fit what a checkpoint predicts."""
    return {name: solver for name, solver in SOLVERS.items() if solver.flow == config.flow}


def own_scheduler(config: SchedulerConfig) -> str:
    """The key of SOLVERS that a checkpoint's file asks for."""
    asked = {"karras": config.use_karras_sigmas, "exponential": config.use_exponential_sigmas}
    names = [f"{config.solver}_{spacing}" for spacing, wanted in asked.items() if wanted]
    return next((name for name in names if name in SOLVERS), config.solver)
