"""A job: which pictures are wanted, and in which form. What they are drawn from is looked at when it is planned.

    prompts × settings × seeds,    settings = all combinations of each grid's values

A grid is a table like {"guidance": [CFG(5.0), AutoLoRA()], "lora_scale": [0.4, 0.8], "num_inference_steps": [20, 30]},
with the names that `--set` knows. Several grids stand one after the other: that also says what no product can, a list.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from autolora_jax.config import ConfigError
from autolora_jax.settings.changes import flatten, override, to_json, to_text
from autolora_jax.settings.fields import Checked, Table, setting
from autolora_jax.settings.pictures import OUTPUT, Many, PictureConfig, negative_setting
from autolora_jax.settings.values import Lora, Seeds, Strength

JOB = "Job"  # panel of --help
Grid = Mapping[str, Any]  # name of a setting -> list of its values
AnySeeds = Seeds | range | str  # (1, 5, 9), range(512), "0-511", "1,5,9-12"


class Prompt(NamedTuple):
    """What to draw, and what this prompt has of its own; None: as the job says."""

    text: str
    negative: str | None = None
    seeds: AnySeeds | None = None
    id: str | None = None  # the user's name of it; part of the manifest, not of what is drawn
    image: str | None = None  # path or URL of a picture that is changed; its size is the pictures' where none is given
    mask: str | None = None  # of the same size: white where it is drawn anew
    embeds: str | None = None  # path or URL of embeddings (.safetensors) that are told instead; text is then a caption


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(PictureConfig):
    """How a job's pictures are drawn: one value of each, as several are an axis of its grid."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = self.rule()
        for field in dataclasses.fields(rule):
            if isinstance(value := getattr(rule, field.name), tuple):
                raise ConfigError(
                    f"guidance.{field.name} = {value} should be one number: several are an axis of the job's grid, "
                    f"{{'guidance.{field.name}': {list(value)}}}"
                )

    def scales(self) -> tuple[Strength, ...]:
        """The strength of each LoRA."""
        shared: Any = self.lora_scale
        return tuple(lora.scale if shared is None or lora.role != "tuned" else float(shared) for lora in self.loras)


@dataclasses.dataclass(frozen=True)
class OutputConfig(Checked):
    """In which form pictures are written."""

    PANEL: ClassVar[str] = OUTPUT

    format: str = setting(
        "png",
        "png, webp, jpeg, latent (float32 in safetensors), or features: what evaluate measures, and no pictures.",
        choices=Table("batch.formats", "FORMATS"),
    )
    quality: int = setting(90, "Of webp and jpeg, 1 to 100.", least=1, most=100)
    features: str = setting(
        "dinov2-giant",
        "(--format features) Whose: dinov2-giant, -large, -base, -small, clip, builtin, a folder or hub id.",
        metavar="MODEL",
    )
    shard_size: int | None = setting(
        None,
        "Write tar files of about so many pictures, as WebDataset reads them, instead of single files.",
        flag="--shards",
        shown="none",
        metavar="PICTURES",
        least=1,
        advice="none is for single files",
    )


@dataclasses.dataclass(frozen=True)
class Job(Many):
    """Pictures of every prompt with all settings and seeds. Raises ConfigError for values that can't be meant.

    prompts: texts or Prompts; those of `prompt_file` follow them. seeds: of prompts that have none of their own.
    grid: a table of settings to combine, or several tables; see this file's head.
    """

    prompts: Sequence[str | Prompt] = ()
    prompt_file: str | None = setting(
        None, "Text, .jsonl, .csv or .parquet file or URL, added to the job's prompts.", panel=JOB
    )
    negative_prompt: str | None = negative_setting()
    settings: Settings = dataclasses.field(default=Settings(), metadata={"words": False})  # a job's file is the word
    grid: Grid | Sequence[Grid] = ()
    output: OutputConfig = OutputConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.prompts, str):
            raise ConfigError(f"prompts = {self.prompts!r} should be several: ({self.prompts!r},) is one of them")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        grids: tuple[Grid, ...] = (self.grid,) if isinstance(self.grid, Mapping) else tuple(self.grid)
        object.__setattr__(self, "grid", grids)
        for name, values in ((name, values) for grid in grids for name, values in grid.items()):
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(f"grid: {name} = {values!r} should be a list of one or more values")

    @classmethod
    def start(cls, changes: Mapping[str, Any], preset: "Job | None" = None) -> "Job":
        """What these changes are made to."""
        return preset or cls()

    @classmethod
    def of_table(cls, table: Mapping[str, Any]) -> "Job":
        """A job as a JSON or YAML file has it: these names, values as `--set` spells them.

        A prompt is a text, or a table {text, negative, seeds, id, image, mask, embeds}; a guidance with values is
        {"rule": "cfg", "w": 5}.
        """
        given = dict(table)
        prompts = given.pop("prompts", [])
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(prompts, list):
            raise ConfigError(f"prompts = {prompts!r} should be a text, or a list of texts and tables")
        grid = given.pop("grid", {})
        grids = [{name: _axis(name, values) for name, values in part.items()} for part in _listed(grid)]
        return override(cls([_prompt(prompt) for prompt in prompts], grid=grids), dict(flatten(given)))

    def to_table(self) -> dict[str, Any]:
        """What of_table reads, of a job without a grid, whose prompts are texts."""
        assert not any(self.grid) and not any(isinstance(prompt, Prompt) for prompt in self.prompts)
        own = {"prompt_file": self.prompt_file, "negative_prompt": self.negative_prompt, "batch_size": self.batch_size}
        groups = {"settings": to_json(self.settings), "output": to_json(self.output)}
        return {"prompts": list(self.prompts), **own, "seeds": to_text(self.all_seeds, Seeds), **groups}

    def all_settings(self) -> list[Settings]:
        """The settings of each picture of a prompt and seed. Raises ConfigError for names and values that can't be."""
        return [override(self.settings, changes) for grid in self.grid or ({},) for changes in _product(grid)]


def _listed(grid: Any) -> list[Mapping[str, Any]]:
    grids = grid if isinstance(grid, list) else [grid]
    if not all(isinstance(part, Mapping) for part in grids):
        raise ConfigError(f"grid = {grid!r} should be a table, name: list of values, or several tables")
    return grids


def _axis(name: str, values: Any) -> Any:
    """Values of a grid's setting; a table is a guidance."""

    def value_of(value: Any) -> Any:
        changes = dict(flatten({"guidance": value}))
        return override(Settings(), changes).guidance if isinstance(value, Mapping) else value

    return [*map(value_of, values)] if isinstance(values, list) else values


def _prompt(prompt: Any) -> str | Prompt:
    if isinstance(prompt, str):
        return prompt
    unknown = prompt.keys() - set(Prompt._fields) if isinstance(prompt, Mapping) else {"?"}
    if unknown or not prompt.keys() & {"text", "embeds"}:
        raise ConfigError(f"prompts: {prompt!r} should be a text, or a table of {', '.join(Prompt._fields)}")
    return Prompt(**{"text": ""} | prompt)


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
