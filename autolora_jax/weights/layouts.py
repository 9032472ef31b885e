"""How single files are laid out, a row per family: where each component's tensors are and what they are called."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from autolora_jax.config import JsonConfig, SchedulerConfig
from autolora_jax.models.networks import Networks
from autolora_jax.weights import ldm, sd3_layout
from autolora_jax.weights.families import SD3, SDXL, Family
from autolora_jax.weights.files import TensorInfo
from autolora_jax.weights.published import SDXL_BASE
from autolora_jax.weights.rules import Default, Rule, Stage

Tensors = Mapping[str, TensorInfo]


class Layout(NamedTuple):
    """One family's single files."""

    family: Family
    sign: str  # pattern of a tensor's name that only this layout has
    prefixes: Mapping[str, str]  # component -> how its tensors' names begin
    # Components that files of this layout may leave out -> names of files that hold one alone, the preferred one first.
    separate: Mapping[str, Sequence[str]]
    extras: Sequence[Rule]  # tensors of no component
    # (component, its config, the canonical names of its tensors) -> stages from the layout's names to those
    stages: Callable[[str, JsonConfig, Iterable[str]], Sequence[Stage]]
    # (component, its config) -> leaves that files of this layout may lack
    defaults: Callable[[str, JsonConfig], Mapping[str, Default]]
    # Configs of the published model that the tensors of a file (its name) look like. Raises WeightsError for none.
    networks: Callable[[Tensors, str], Networks]
    scheduler: Callable[[Tensors, Mapping[str, str]], SchedulerConfig]  # of the tensors and the file's header


def _sdxl_scheduler(tensors: Tensors, metadata: Mapping[str, str]) -> SchedulerConfig:
    """SDXL's, unless the file says that it was trained on v-prediction: by a mark, or in its modelspec header.

    Source: ComfyUI's supported_models.py (v_pred, ztsnr), Stability-AI/ModelSpec.
    """
    v = "v_pred" in tensors or metadata.get("modelspec.prediction_type", "").lower().startswith("v")
    return SchedulerConfig(
        prediction_type="v_prediction" if v else "epsilon", rescale_betas_zero_snr="ztsnr" in tensors
    )


LAYOUTS = (
    Layout(
        family=SDXL,
        sign=r"conditioner\.embedders\..*",
        prefixes=ldm.PREFIXES,
        separate={},
        extras=ldm.EXTRAS,
        stages=ldm.stages_for,
        defaults=lambda component, config: {},
        networks=lambda tensors, where: SDXL_BASE,
        scheduler=_sdxl_scheduler,
    ),
    Layout(
        family=SD3,
        sign=r"model\.diffusion_model\.joint_blocks\..*",
        prefixes=sd3_layout.PREFIXES,
        separate=sd3_layout.SEPARATE,
        extras=sd3_layout.EXTRAS,
        stages=sd3_layout.stages_for,
        defaults=sd3_layout.defaults_for,
        networks=sd3_layout.networks_for,
        scheduler=lambda tensors, metadata: SchedulerConfig(solver="flow_euler", prediction_type="flow_prediction"),
    ),
)
