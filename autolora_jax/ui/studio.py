"""What draws for the page: one pipeline, one drawing at a time, the newest wish first; whole pictures are kept."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from autolora_jax import __version__
from autolora_jax.cli.generate import columns
from autolora_jax.config import ConfigError
from autolora_jax.grid import comparison_grid
from autolora_jax.output import PictureFolder, slug
from autolora_jax.pictures import lora_hash
from autolora_jax.pipeline import AutoLoRAPipeline
from autolora_jax.progress import Progress
from autolora_jax.settings.changes import read
from autolora_jax.settings.model import ModelConfig
from autolora_jax.settings.pictures import STEPS, GenerateConfig
from autolora_jax.settings.rules import numbers

PREVIEW_EVERY = 0.7  # seconds between pictures of what a drawing has come to
MOST_CELLS = 64  # of a grid
STAGES = {"load": "Loading", "encode": "Reading the prompt", "sample": "Drawing", "decode": "Decoding"}


class Event(NamedTuple):
    """What a drawing has to tell. said: a line for people; pictures: as far as they are, by column; done: whether
    these are they; paths: where they are kept."""

    said: str
    pictures: Sequence[Image.Image] = ()
    done: bool = False
    paths: Sequence[Path] = ()


class Stopped(Exception):
    """The drawing is not wanted any more."""


class Cell(NamedTuple):
    """A picture of a drawing: what is asked for, and the LoRAs' scale where that is not their own."""

    config: GenerateConfig
    label: str = ""
    lora_scale: float | None = None


class Studio:
    """Draws what the page asks for."""

    def __init__(self, start: GenerateConfig) -> None:
        """start: model and folder, and what the page begins with. Raises as the pipeline does."""
        self.start = start
        self.folder = PictureFolder(Path(start.out), overwrite=False)
        self.pipe = _pipeline(start.model)
        self._loaded: tuple[Any, ...] = ()
        self._wish = 0  # the newest
        self._turn = threading.Lock()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the model's own pictures."""
        side = self.pipe.canvas.cells * self.pipe.canvas.factor
        return side, side

    def change_model(self, source: str) -> None:
        """Another model in place of this one, whose memory is the new one's. Raises as the pipeline does."""
        self.stop()
        with self._turn:
            model = dataclasses.replace(self.start.model, source=source.strip() or None)
            before, self._loaded = self.start.model, ()
            del self.pipe
            try:
                self.pipe = _pipeline(model)
            except BaseException:
                self.pipe = _pipeline(before)
                raise
            self.start = dataclasses.replace(self.start, model=model)

    def stop(self) -> None:
        """Ends what is drawn, within a step or two."""
        self._wish += 1

    def picture(self, config: GenerateConfig, preview_steps: int = 0) -> Iterator[Event]:
        """One picture, first with few steps where these are asked for."""
        if 0 < preview_steps < (config.num_inference_steps or STEPS):
            few = dataclasses.replace(config, num_inference_steps=preview_steps)
            for event in self.draw([Cell(few)], keep=False):
                yield event._replace(done=False)
        yield from self.draw([Cell(config)])

    def compared(self, config: GenerateConfig) -> Iterator[Event]:
        """Base model, LoRA and the guidance that is asked for, from one noise."""
        ways = columns(dataclasses.replace(config, compare=True), self.pipe.family.guidance_scale)
        cells = [Cell(dataclasses.replace(config, guidance=way.rule), way.label, way.lora_scale) for way in ways]
        return self.draw(cells)

    def grid(self, config: GenerateConfig, across: tuple[str, str], down: tuple[str, str]) -> Iterator[Event]:
        """A grid of values, from one noise unless the seed is an axis. across, down: (name of AXES, values as text).

        Raises ConfigError.
        """
        xs, ys = (axis_values(*axis) for axis in (across, down))
        if len(xs) * len(ys) > MOST_CELLS:
            raise ConfigError(f"{len(xs)} × {len(ys)} pictures; at most {MOST_CELLS} are drawn at once")
        cells = [_cell(config, [(across[0], x), (down[0], y)]) for x in xs for y in ys]
        said = ""
        for event in self.draw(cells):
            said = event.said
            if not event.done:
                yield Event(said)
                continue
            heads, sides = ([f"{name} {value:g}" for value in axis] for (name, _), axis in ((across, xs), (down, ys)))
            rows = len(ys)
            picture = comparison_grid(
                [(head, event.pictures[i * rows : (i + 1) * rows]) for i, head in enumerate(heads)], sides
            )
            yield Event(said, [picture], True, event.paths)

    def draw(self, cells: Sequence[Cell], keep: bool = True) -> Iterator[Event]:
        """Draws cells that differ in values alone, at once. Ends what was being drawn; a newer wish ends this one.

        Raises what the pipeline does, and Stopped.
        """
        self._wish += 1
        wish, told = self._wish, queue.SimpleQueue[Event | BaseException | None]()

        def work() -> None:
            try:
                with self._turn:
                    self._check(wish)
                    told.put(self._drawn(cells, wish, keep, told.put))
                told.put(None)
            except BaseException as e:
                told.put(e)

        threading.Thread(target=work, name="drawing", daemon=True).start()
        try:
            while (event := told.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            if self._wish == wish:  # nobody listens any more
                self._wish += 1

    def _check(self, wish: int) -> None:
        if wish != self._wish:
            raise Stopped

    def _drawn(self, cells: Sequence[Cell], wish: int, keep: bool, tell: Callable[[Event], None]) -> Event:
        began, shown = time.monotonic(), 0.0

        def on_progress(progress: Progress) -> None:
            nonlocal shown
            self._check(wish)
            stage = STAGES.get(progress.stage, progress.stage)
            what = f" {progress.what}" if progress.stage == "load" else ""
            said = f"{stage}{what} {progress.done}/{progress.total}"
            pictures: Sequence[Image.Image] = ()
            if progress.partial and len(cells) == 1 and time.monotonic() - shown > PREVIEW_EVERY and progress.done:
                pictures = [Image.fromarray(pixels) for pixels in self.pipe.decode(progress.partial().denoised)]
                shown = time.monotonic()
            tell(Event(said, pictures))

        self._load(cells[0].config, on_progress)
        images: list[Image.Image] = []
        settings: list[dict[str, Any]] = []
        for group in _alike(cells):
            config = group[0].config
            drawing = config.drawing()
            drawing |= {"guidance": [cell.config.rule() for cell in group], "lora_scale": self._scales(group)}
            if not config.loras:
                drawing["lora_scale"] = None
            out = self.pipe(
                [cell.config.prompts[0] for cell in group],
                [cell.config.negative_prompt for cell in group],
                seeds=[cell.config.all_seeds[0] for cell in group],
                paired=True,
                batch_size=config.batch_size,
                on_progress=on_progress,
                **drawing,
            )
            images += out.images
            settings += out.settings
        paths = [self._keep(image, told) for image, told in zip(images, settings, strict=True)] if keep else []
        said = f"{time.monotonic() - began:.1f} seconds"
        return Event(f"{said}, kept as {paths[0].name}" if len(paths) == 1 else said, images, True, paths)

    def _scales(self, cells: Sequence[Cell]) -> np.ndarray:
        """[pictures, tuned LoRAs]."""
        tuned = [[lora.scale for lora in cell.config.loras if lora.role == "tuned"] for cell in cells]
        told = [len(row) * [cell.lora_scale] for row, cell in zip(tuned, cells, strict=True)]
        return np.array([row if None in other else other for row, other in zip(tuned, told, strict=True)], np.float32)

    def _load(self, config: GenerateConfig, on_progress: Callable[[Progress], None]) -> None:
        """Loads the LoRAs of a config, unless they are loaded."""
        wanted = tuple((lora.source, lora.role, lora.scale if lora.role != "tuned" else None) for lora in config.loras)
        if wanted == self._loaded:
            return
        self._loaded = ()
        self.pipe.unload_lora()
        for i, lora in enumerate(config.loras):
            on_progress(Progress("load", i, len(config.loras), Path(lora.source).name))
            self.pipe.load_lora(lora.source, lora.scale, role=lora.role)
        self._loaded = wanted

    def _keep(self, image: Image.Image, told: dict[str, Any]) -> Path:
        hashes = {report.name: lora_hash(Path(report.path)) for report in self.pipe.reports}
        shared: dict[str, Any] = {"dtype": self.start.model.dtype, "jax": jax.__version__, "autolora-jax": __version__}
        shared["lora_hashes"] = [hashes.get(name, "") for name in told["loras"]]
        name = f"seed{told['seed']}-{slug(told['prompt'])}"
        return self.folder.save(len(self.folder.saved), name, image, {**told, **shared})


def _pipeline(model: ModelConfig) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(**dataclasses.asdict(model), progress=False)


def _alike(cells: Sequence[Cell]) -> Iterator[Sequence[Cell]]:
    """Those together, in their order, that one call draws: that have as many steps."""
    begin = 0
    for i in range(1, len(cells) + 1):
        if i == len(cells) or cells[i].config.num_inference_steps != cells[begin].config.num_inference_steps:
            yield cells[begin:i]
            begin = i


# ---- axes of a grid --------------------------------------------------------------------------------------------------

Set = Callable[[GenerateConfig, float], GenerateConfig]


def _number(*names: str) -> Set:
    """Sets numbers of the guidance, those that its rule has."""

    def set_to(config: GenerateConfig, value: float) -> GenerateConfig:
        rule = config.rule()
        there = [name for name in names if name in numbers() and hasattr(rule, name)]
        if not there:
            raise ConfigError(f"{type(rule).__name__} has no {names[0]}: choose another axis or another guidance")
        return dataclasses.replace(config, guidance=dataclasses.replace(rule, **dict.fromkeys(there, value)))

    return set_to


def _first_scale(config: GenerateConfig, value: float) -> GenerateConfig:
    if not config.loras:
        raise ConfigError("a scale is a LoRA's: add one, or choose another axis")
    first, *others = config.loras
    return dataclasses.replace(config, loras=(dataclasses.replace(first, scale=value), *others))


AXES: dict[str, tuple[Set, str]] = {  # name -> (what sets it, values that show something)
    "γ": (_number("gamma"), "1, 1.5, 2, 3"),
    "scale": (_first_scale, "0.4, 0.7, 1"),
    "w": (_number("w", "w1", "w2"), "1, 3, 5"),
    "seed": (lambda config, value: dataclasses.replace(config, seeds=(int(value),)), "0, 1, 2, 3"),
    "steps": (lambda config, value: dataclasses.replace(config, num_inference_steps=int(value)), "8, 16, 30"),
}


def axis_values(name: str, text: str) -> tuple[float, ...]:
    """The values that a text lists. Raises ConfigError."""
    parts = [part for part in text.replace(";", ",").split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"{name}: which values? Write a few, such as {AXES[name][1]}")
    return tuple(read(part.strip(), float, name) for part in parts)


def _cell(config: GenerateConfig, values: Sequence[tuple[str, float]]) -> Cell:
    for name, value in values:
        config = AXES[name][0](config, value)
    return Cell(config)
