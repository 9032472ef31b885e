"""Measuring sets of pictures: how varied they are, how well they fit their prompts, and how sure a figure is.

Of a folder of pictures:

    encoder = open_encoder("dinov2-giant", data_mesh())  # evaluation.encoders, sharding
    found = collect(Pictures("out"), [encoder], cache=Path("out/.autolora"))  # evaluation.features, evaluation.pictures
    print(diversity(found.features["dinov2-giant"]))
"""

from autolora_jax.evaluation.diversity import diversity, diversity_statistic, vendi_score
from autolora_jax.evaluation.intervals import Interval, bootstrap_interval, mean_statistic

__all__ = ["Interval", "bootstrap_interval", "diversity", "diversity_statistic", "mean_statistic", "vendi_score"]
