"""Stand-ins for files that are not on this machine, so that a job can be planned before anything is downloaded.

What a published model is made of is known by its name, and a plan needs no more than that. Keys of pictures come from
what files hold, so a plan with stand-ins can't tell which of them are drawn already.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from autolora_jax.batch.sources import File, Model, Sources, digest
from autolora_jax.config import SchedulerConfig
from autolora_jax.demo import builtin
from autolora_jax.models.networks import Networks
from autolora_jax.settings import ModelConfig
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.families import SD3, SDXL, Family
from autolora_jax.weights.hub import cached_copy, is_hub_id, split_hub_id
from autolora_jax.weights.published import SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM, SDXL_BASE


class Published(NamedTuple):
    """What a checkpoint of the hub is, without looking."""

    family: Family
    networks: Networks
    scheduler: SchedulerConfig


_FLOW = SchedulerConfig(solver="flow_euler", prediction_type="flow_prediction")
PUBLISHED: Mapping[str, Published] = {
    SDXL.repository: Published(SDXL, SDXL_BASE, SchedulerConfig()),
    SD3.repository: Published(SD3, SD3_MEDIUM, _FLOW),
    "stabilityai/stable-diffusion-3.5-medium": Published(SD3, SD35_MEDIUM, _FLOW),
    "stabilityai/stable-diffusion-3.5-large": Published(SD3, SD35_LARGE, _FLOW),
}


class Standins(Sources):
    """Sources that never ask the hub for a published model or a LoRA. unseen: the stand-ins, and why each is one."""

    def __init__(self) -> None:
        super().__init__()
        self.unseen: dict[str, str] = {}

    def model(self, config: ModelConfig) -> Model:
        """The model of a config: from this machine or the hub's cache; else a published one by its name."""
        source = config.source or ""
        if source not in PUBLISHED or Path(source).exists():
            return super().model(config)
        if copy := cached_copy(source):
            try:
                found = super().model(dataclasses.replace(config, source=str(copy)))
            except WeightsError:
                pass  # not all of it is there
            else:
                return dataclasses.replace(found, config=config, name=Path(source).name)
        self.unseen[source] = "not on this machine: planned as the published model"
        family, networks, scheduler = PUBLISHED[source]
        if config.text_encoder_3 is None:
            networks = {name: network for name, network in networks.items() if name != "text_encoder_3"}
        return Model(config, Path(source).name, digest(source), family, networks, scheduler)

    def lora(self, source: str) -> File:
        """A LoRA of this machine or the hub's cache; else one that is known by its name alone."""
        return self._there(source) or self._unseen(source) if _absent(source) else super().lora(source)

    def embedding(self, source: str) -> File:
        """An embedding, as a LoRA."""
        return self._unseen(source) if _absent(source) else super().embedding(source)

    def _there(self, source: str) -> File | None:
        """A LoRA from the hub's cache."""
        repository, name = split_hub_id(source) if is_hub_id(source) else ("", None)
        copy = cached_copy(repository) if repository else None
        try:
            return super().lora(str(copy / name if name else copy))._replace(source=source) if copy else None
        except WeightsError:
            return None

    def _unseen(self, source: str) -> File:
        self.unseen[source] = "not on this machine"
        return File(source, Path(source).name.removesuffix(".safetensors"), digest(source), digest(source)[:12])


def _absent(source: str) -> bool:
    return not Path(source).exists() and builtin(source) is None
