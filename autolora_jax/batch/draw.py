"""What draws a batch: the pipeline, or anything else that is called like it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from autolora_jax.batch.plan import Batch, Row
from autolora_jax.batch.recipe import Load, Recipe
from autolora_jax.batch.sources import check_read
from autolora_jax.config import ConfigError
from autolora_jax.engine import texts_of
from autolora_jax.given import Given
from autolora_jax.lora import over
from autolora_jax.pipeline import AutoLoRAPipeline
from autolora_jax.progress import OnProgress, Progress
from autolora_jax.request import Request
from autolora_jax.settings.call import Call
from autolora_jax.settings.pictures import DrawingConfig
from autolora_jax.settings.values import Lora
from autolora_jax.text import embeds_file
from autolora_jax.weights.reads import noted


class Pictures(NamedTuple):
    """Pictures as they come from the devices: uint8 [n H W 3], or float32 latents [n h w c]; finite: bool [n]."""

    arrays: np.ndarray
    finite: np.ndarray


class Drawing(NamedTuple):
    """A batch that is being drawn.

    failed: place among the rows -> why that one can't be drawn. wait: the pictures of all others, once they are there.
    """

    failed: Mapping[int, str]
    wait: Callable[[], Pictures]


# Begins to draw rows, all of one batch and in its order; the devices may still be at work on the batch before.
# It may have an attribute `ahead(rows)`: called before it with the rows that come after these, if they are known.
Draw = Callable[[Sequence[Row], Batch], Drawing]


class Opened(NamedTuple):
    """A row with what its files hold. images: the picture that is changed, and its mask; or nothing."""

    row: Row
    images: Sequence[Given]
    embeds: embeds_file.Arguments


# The request of all rows of a batch that can be read; place among the rows -> why the others can't.
Begun = tuple[Request | None, dict[int, str]]


class Artist:
    """Draws with pipelines: loads what the rows are drawn with, and keeps it while they agree."""

    def __init__(
        self,
        devices: Sequence[jax.Device] | None = None,
        as_latents: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.devices, self.as_latents, self.on_progress = devices, as_latents, on_progress
        self._load: Load | None = None
        self._pipe: AutoLoRAPipeline | None = None
        self._next: Sequence[Row] = ()
        self._begun: tuple[list[str], Begun] | None = None  # of what comes next: its keys, and what has become of it

    def ahead(self, rows: Sequence[Row]) -> None:
        """Tells what comes after the batch that is drawn next, so that its texts are encoded before that's pictures.

        On a device that works in order they would else wait for all of these, and the device then for the texts.
        """
        self._next = rows

    def __call__(self, rows: Sequence[Row], batch: Batch) -> Drawing:
        """See Draw. Raises WeightsError when something can't be loaded, JAX's errors when memory is too small."""
        following, self._next = self._next, ()
        pipe = self.pipeline(rows[0].recipe.load)
        begun, self._begun = self._begun, None
        request, failed = begun[1] if begun and begun[0] == _keys(rows) else _begin(pipe, rows)
        if following and following[0].recipe.load.names == rows[0].recipe.load.names:
            with suppress(Exception):  # raised again when it is that batch's turn
                self._begun = _keys(following), _begin(pipe, following)
        if request is None:
            return Drawing(failed, lambda: Pictures(np.zeros((0,)), np.zeros((0,), bool)))
        schedule = pipe.canvas.schedule(request.call, request.masked)
        wait = pipe.engine.start(request, schedule, batch.rows, self.as_latents)
        return Drawing(failed, lambda: Pictures(*wait()))

    def pipeline(self, load: Load) -> AutoLoRAPipeline:
        """The pipeline with exactly these files. Raises WeightsError for those that are not what was planned."""
        if self._load != load:
            with noted() as reads:
                pipe = self._loaded(load)
                check_read(load.model, (*load.loras, *load.embeddings), _configs(pipe), reads.sha256s())
            self._load, self._pipe = load, pipe
        assert self._pipe is not None
        return self._pipe

    def _loaded(self, load: Load) -> AutoLoRAPipeline:
        before, pipe = self._load, self._pipe
        self._load = None  # until all is loaded
        if pipe is None or before is None or before.model != load.model:
            self._pipe = pipe = None  # its memory is the next one's
            config = dataclasses.asdict(load.model.config)
            config |= {"devices": self.devices, "on_progress": self.on_progress, "progress": False}
            pipe = AutoLoRAPipeline.from_pretrained(**config)
        pipe.unload_lora()
        pipe.unload_textual_inversion()
        for i, (lora, role, blocks) in enumerate(zip(load.loras, load.roles, load.blocks, strict=True)):
            if self.on_progress:
                self.on_progress(Progress("load", i, len(load.loras), lora.name))
            pipe.load_lora(lora.source, role=role, blocks=Lora(lora.source, blocks=blocks).block_weights)
        for word in load.embeddings:
            pipe.load_textual_inversion(word.source)
        return pipe


def _configs(pipe: AutoLoRAPipeline) -> dict[str, Any]:
    """As Model.configs."""
    networks = {pipe.family.denoiser: pipe.denoiser, "vae": pipe.vae, **pipe.text.encoders}
    own = {name: network.config for name, network in networks.items()}
    return {**own, "scheduler": pipe.scheduler, "force_zeros_for_empty_prompt": pipe.text.force_zeros}


def _keys(rows: Sequence[Row]) -> list[str]:
    return [row.key for row in rows]


def _begin(pipe: AutoLoRAPipeline, rows: Sequence[Row]) -> Begun:
    """Begins to encode the rows' texts.

    Returns (the request of all rows whose texts and pictures can be read, None when there are none; place among the
    rows -> why the others' can't).
    """
    failed: dict[int, str] = {}
    opened: dict[int, Opened] = {}  # by place among the rows
    for i, row in enumerate(rows):
        try:
            images = [file.opened() for file in row.base or () if file]
            opened[i] = Opened(row, images, row.embeds.opened() if row.embeds else {})
        except ConfigError as e:
            failed[i] = str(e)

    def of_those() -> Request | None:
        return _request(pipe, [*opened.values()]) if opened else None

    request = of_those()
    if request and (unread := {i: why for place, i in enumerate(opened) if (why := _unreadable(pipe, request, place))}):
        failed |= unread
        opened = {i: one for i, one in opened.items() if i not in unread}
        request = of_those()
    if request is not None:
        pipe.text.begin(texts_of(request, np.arange(len(opened))))
    return request, failed


def _unreadable(pipe: AutoLoRAPipeline, request: Request, i: int) -> str:
    """Why the texts of a request's picture can't be read; "" when they are."""
    try:
        pipe.text.read(texts_of(request, np.array([i])))
    except Exception as e:  # whatever tokenizers make of a text
        return f"{type(e).__name__}: {e}"
    return ""


def _request(pipe: AutoLoRAPipeline, opened: Sequence[Opened]) -> Request:
    """Rows of one batch as the pipeline takes them, one picture each."""
    rows = [one.row for one in opened]
    images = map(list, zip(*(one.images for one in opened), strict=True))
    given: dict[str, Any] = dict(zip(("image", "mask_image"), images, strict=False))
    given |= embeds_file.joined([one.embeds for one in opened])
    if "prompt_embeds" not in given:
        given["prompt"] = [row.prompt for row in rows]
    if "negative_prompt_embeds" not in given:
        given["negative_prompt"] = [row.negative_prompt for row in rows]
    drawings = [row.recipe.drawing for row in rows]
    shared = {field.name: getattr(drawings[0], field.name) for field in dataclasses.fields(DrawingConfig)}
    own = {
        "guidance": [drawing.guidance for drawing in drawings],
        "guidance_rescale": [drawing.guidance_rescale for drawing in drawings],
        "skip_layer_guidance_scale": shared["skip_guidance_layers"]
        and [drawing.skip_layer_guidance_scale for drawing in drawings],
        "lora_scale": _strengths([row.recipe for row in rows]),
    }
    return pipe.request(Call(seeds=[row.seed for row in rows], paired=True, **shared | own | given))


def _strengths(recipes: Sequence[Recipe]) -> np.ndarray:
    """The strengths of the LoRAs, [pictures, LoRAs], or where one changes over the steps [pictures, steps, LoRAs]."""
    changes = any(isinstance(scale, tuple) for recipe in recipes for scale in recipe.scales)
    steps = recipes[0].steps if changes else 1
    every = [[np.broadcast_to(over(scale, steps), steps) for scale in recipe.scales] for recipe in recipes]
    scales = np.array(every, np.float32).reshape(len(recipes), -1, steps).swapaxes(1, 2)  # [pictures steps LoRAs]
    return scales if changes else scales[:, 0]
