"""A job: which pictures are wanted, and in which form. What they are drawn from is looked at when it is planned.

    prompts × settings × seeds,    settings = all combinations of each grid's values

A grid is a table like {"guidance": [CFG(5.0), AutoLoRA()], "lora_scale": [0.4, 0.8], "sampler.steps": [20, 30]}, with
the names that `--set` knows. Several grids stand one after the other: that also says what no product can, a list.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from autolora_jax import overrides
from autolora_jax.batch.formats import FORMATS
from autolora_jax.config import ConfigError
from autolora_jax.presets import Lora, PictureConfig, Seeds

Grid = Mapping[str, Any]  # name of a setting -> list of its values
AnySeeds = Seeds | range | str  # (1, 5, 9), range(512), "0-511", "1,5,9-12"


class Prompt(NamedTuple):
    """What to draw, and what this prompt has of its own; None: as the job says."""

    text: str
    negative: str | None = None
    seeds: AnySeeds | None = None
    id: str | None = None  # the user's name of it; part of the manifest, not of what is drawn


@dataclasses.dataclass(frozen=True)
class Settings(PictureConfig):
    """How pictures are drawn. Raises ConfigError for values that can't be meant."""

    lora_scale: float | None = None  # of every LoRA, instead of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = self.rule()
        for field in dataclasses.fields(rule):
            if isinstance(value := getattr(rule, field.name), tuple):
                raise ConfigError(
                    f"guidance.{field.name} = {value} should be one number: several are an axis of the job's grid, "
                    f"{{'guidance.{field.name}': {list(value)}}}"
                )

    def scales(self) -> tuple[float, ...]:
        """The strength of each LoRA."""
        return tuple(float(lora.scale if self.lora_scale is None else self.lora_scale) for lora in self.loras)


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """In which form pictures are written.

    format: "png", "webp", "jpeg", "latent" (float32 in safetensors), or "features": what `autolora evaluate` measures,
    float32 in safetensors, and no picture. quality: of webp and jpeg, 1 to 100.
    features: the model, as evaluation.encoders.open_encoder knows it: dinov2-giant, clip, builtin, a folder, a hub id.
    shard_size: about how many pictures a tar file holds, as WebDataset reads them; None: every picture is a file.
    """

    format: str = "png"
    quality: int = 90
    features: str = "dinov2-giant"
    shard_size: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"output.format = {self.format!r} is not known: there are {', '.join(FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"output.quality = {self.quality} should be between 1 and 100")
        if self.shard_size is not None and self.shard_size < 1:
            raise ConfigError(f"output.shard_size = {self.shard_size} should be at least 1, or none for single files")

    @property
    def suffix(self) -> str:
        """Of the pictures' files."""
        return FORMATS[self.format].suffix


@dataclasses.dataclass(frozen=True)
class Job:
    """Pictures of every prompt with all settings and seeds. Raises ConfigError for values that can't be meant.

    prompts: texts or Prompts; those of `prompt_file` (.txt, .jsonl, .csv, .parquet; a path or a URL) follow them.
    negative_prompt: None: what the checkpoint's own pipeline means by none.
    seeds: of prompts that have none of their own.
    grid: a table of settings to combine, or several tables; see this file's head.
    batch_size: pictures per device at once.
    """

    prompts: Sequence[str | Prompt] = ()
    prompt_file: str | None = None
    negative_prompt: str | None = ""
    seeds: AnySeeds = (0,)
    settings: Settings = Settings()
    grid: Grid | Sequence[Grid] = ()
    output: OutputConfig = OutputConfig()
    batch_size: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            raise ConfigError(f"prompts = {self.prompts!r} should be several: ({self.prompts!r},) is one of them")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "seeds", read_seeds(self.seeds, "seeds"))
        grids: tuple[Grid, ...] = (self.grid,) if isinstance(self.grid, Mapping) else tuple(self.grid)
        object.__setattr__(self, "grid", grids)
        for name, values in ((name, values) for grid in grids for name, values in grid.items()):
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(f"grid: {name} = {values!r} should be a list of one or more values")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size} should be at least 1")

    def all_settings(self) -> list[Settings]:
        """The settings of each picture of a prompt and seed. Raises ConfigError for names and values that can't be."""
        return [overrides.override(self.settings, changes) for grid in self.grid or ({},) for changes in _product(grid)]


def read_seeds(value: Any, name: str) -> Seeds:
    """Seeds from a text, a number or several. Raises ConfigError."""
    if isinstance(value, str):
        return overrides.read(value, Seeds, name)
    try:
        seeds = (int(value),) if isinstance(value, int) else tuple(map(int, value))
    except (TypeError, ValueError):
        seeds = ()
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63:
        raise ConfigError(f"{name} = {value!r} should be one or more whole numbers from 0 to 2^63 - 1")
    return seeds


def _product(grid: Any) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, map(_value, values), strict=True))


def _value(value: Any) -> Any:
    """A value as `override` takes it: several texts in a list, several of anything else in a tuple."""
    if isinstance(value, Lora):
        return (value,)
    if not isinstance(value, list | tuple):
        return value
    if any(isinstance(part, Lora) for part in value):
        return tuple(Lora.parse(part) if isinstance(part, str) else part for part in value)
    return list(value) if value and all(isinstance(part, str) for part in value) else tuple(value)
