"""Measuring sets of pictures: how varied they are, and how sure a figure is."""

from autolora_jax.evaluation.bootstrap import Interval, bootstrap_interval, mean_statistic
from autolora_jax.evaluation.diversity import diversity, diversity_statistic

__all__ = ["Interval", "bootstrap_interval", "diversity", "diversity_statistic", "mean_statistic"]
