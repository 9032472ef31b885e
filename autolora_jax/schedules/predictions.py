"""What the network's output says about the picture."""

from collections.abc import Callable

import numpy as np

from autolora_jax.schedules.grid import Numbers


def _from_epsilon(signal: Numbers, noise: Numbers) -> tuple[Numbers, Numbers]:
    if signal.min() == 0:
        raise ValueError(
            "prediction_type 'epsilon' says nothing about the picture at the timestep of pure noise that "
            "rescale_betas_zero_snr makes; use 'leading' spacing, which starts below it"
        )
    return 1 / signal, -noise / signal


def _from_velocity(signal: Numbers, noise: Numbers) -> tuple[Numbers, Numbers]:
    """v = (signal·ε − noise·x0)/√(signal² + noise²). Source: arXiv 2202.00512, Appendix D."""
    norm = np.hypot(signal, noise)
    return signal / norm**2, -noise / norm


def _from_sample(signal: Numbers, noise: Numbers) -> tuple[Numbers, Numbers]:
    return np.zeros_like(signal), np.ones_like(signal)


def _from_flow(signal: Numbers, noise: Numbers) -> tuple[Numbers, Numbers]:
    """v = ε − x0, on a grid with signal = 1 − noise. Source: arXiv 2403.03206, Eq. 13."""
    return np.ones_like(signal), -noise


# What the network predicts -> (a, b) with x0 = a·x + b·prediction.
PREDICTIONS: dict[str, Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]] = {
    "epsilon": _from_epsilon,
    "v_prediction": _from_velocity,
    "sample": _from_sample,
    "flow_prediction": _from_flow,
}
