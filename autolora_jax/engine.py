"""The devices at work on requests: in batches, texts encoded a batch ahead, steps queued as far as `pacing` lets them.

request ──▶ batches ──▶ texts, given pictures ──▶ run ──▶ pace ──▶ decode ──▶ pictures, in the request's order
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from queue import SimpleQueue
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from autolora_jax.given import Originals
from autolora_jax.models import vae as vae_module
from autolora_jax.models.vae import AutoencoderKL
from autolora_jax.pacing import Pace
from autolora_jax.progress import OnProgress, Partial, Progress
from autolora_jax.request import Request
from autolora_jax.run import Run, paired
from autolora_jax.sampler import Model, State
from autolora_jax.schedules import Schedule
from autolora_jax.sharding import map_images, pad_rows, split_images
from autolora_jax.text import Prompts, TextStage
from autolora_jax.tuned import Tuned

Tree = Mapping[str, Any]
TILED_FROM = 2048 * 2048  # pixels from which the VAE decodes in tiles
UNFETCHED = 2  # batches of a call that are drawn or being drawn, and that the caller has not taken


@partial(jax.jit, static_argnames=("vae", "mesh", "tiled"))
def decode(
    vae: AutoencoderKL, mesh: Mesh, params: Tree, latents: Float[Array, "b h w c"], tiled: bool = False
) -> tuple[UInt8[Array, "b H W 3"], Bool[Array, "b"]]:
    """(pictures, whether all their values were finite) of latents as the sampler leaves them (scaled).

    b is a multiple of the mesh's data axis.

    tiled: decode overlapping tiles, for pictures whose decoder activations would not fit.
    """
    to_pixels = vae_module.decode_tiled if tiled else vae_module.decode_sliced

    def pictures(params: Tree, latents: Array) -> tuple[Array, Array]:
        z = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pixels = to_pixels(vae, params, z).astype(jnp.float32)  # [b H W 3] in [-1, 1]
        levels = jnp.round(jnp.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
        return levels, jnp.isfinite(pixels).all(axis=(1, 2, 3))

    return map_images(pictures, mesh)(params, latents)


@partial(jax.jit, static_argnames=("vae", "mesh", "tiled"))
def encode(
    vae: AutoencoderKL,
    mesh: Mesh,
    params: Tree,
    pixels: UInt8[Array, "b H W 3"],
    noise: Float[Array, "b h w c"],
    tiled: bool = False,
) -> Float[Array, "b h w c"]:
    """Latents of pictures as the sampler takes them (scaled), sampled by unit-variance noise; else as `decode`."""

    def latents(params: Tree, images: tuple[Array, Array]) -> Array:
        mean, deviation = vae_module.scaled_moments(vae, params, images[0], tiled)
        return (mean + deviation * images[1]).astype(jnp.float32)

    return map_images(latents, mesh)(params, (pixels, noise))


class Engine:
    """A model on its devices. `model.lora` is replaced as LoRAs come and go."""

    def __init__(
        self,
        denoiser: nn.Module,
        vae: AutoencoderKL,
        text: TextStage,
        model: Model,
        vae_params: Tree,
        mesh: Mesh,
        tuned_weights: str = "auto",
    ) -> None:
        self.denoiser, self.vae, self.text, self.mesh = denoiser, vae, text, mesh
        self.model, self.vae_params = model, vae_params
        self._tuned = Tuned(tuned_weights, mesh.local_devices[0])
        self.ready: dict[Any, set[int]] = {}  # program_of -> images a device at once that programs are there for
        self._pace, self._driver = Pace(), ThreadPoolExecutor(1, "steps")

    def set_delta(self, delta: Tree, changed: Tree) -> None:
        """Replaces the denoiser's stacked delta tree. changed: the same without room in layers that it leaves alone."""
        self._tuned.set_delta(self.model.params, delta, changed)
        if _shapes(delta) != _shapes(self.model.lora):
            self.ready.clear()  # other programs will be needed
        self.model = self.model._replace(lora=delta)

    def draw(
        self,
        request: Request,
        schedule: Schedule,
        batch_size: int,
        as_latents: bool,
        on_progress: OnProgress | None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(pictures or latents, finite), in order, as batches are drawn; the devices work on while one is fetched.

        They are driven by another thread: what the caller does with pictures holds nothing up, and an interruption is
        heard while a program compiles. What `on_progress` raises, or a generator that is closed, ends the work within
        a stretch.
        """
        ready = self.ready.setdefault(program_of(request), set())
        size, batches = request.batches(self.mesh.size, batch_size, ready)
        events: SimpleQueue[Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]] | None] = SimpleQueue()
        room, stopped = threading.Semaphore(UNFETCHED), threading.Event()
        total, done, given = len(batches) * len(schedule.timestep), 0, 0
        drawn: dict[int, tuple[np.ndarray, np.bool_]] = {}

        def tell(*what: Any, **more: Any) -> Iterator[Any]:
            if on_progress:
                on_progress(Progress(*what, **more))
            yield from ()

        def moved(index: np.ndarray, steps: int, state: State) -> Iterator[Any]:
            nonlocal done
            done += steps
            yield from tell("sample", done, total, partial=partial(_partial, index, state))

        def fetch(index: np.ndarray, result: tuple[Any, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            nonlocal given
            for i, picture, finite in zip(index.tolist(), *_fetched(result), strict=True):
                drawn.setdefault(i, (picture, finite))
            ready.add(size)
            first = given
            while given in drawn:
                given += 1
            if given > first:
                pictures, finites = zip(*(drawn.pop(i) for i in range(first, given)), strict=True)
                yield np.stack(pictures), np.array(finites)
            room.release()

        def drive() -> None:
            try:
                for number, index in enumerate(batches):
                    room.acquire()
                    if stopped.is_set():
                        return
                    events.put(partial(tell, "encode", number, len(batches)))
                    for near in batches[number : number + 2]:  # the next one's, too, before this one's pictures
                        self.text.begin(texts_of(request, near))
                    run = self.run(request, schedule, index)
                    for _ in self._pace.drive(run, lambda *what, index=index: events.put(partial(moved, index, *what))):
                        if stopped.is_set():
                            return
                    events.put(partial(fetch, index, self._result(run, as_latents)))
                self._pace.finish()
            finally:
                self._pace.forget()
                events.put(None)

        driven = self._driver.submit(drive)
        try:
            while event := events.get():
                yield from event()
            driven.result()
        finally:
            stopped.set()
            room.release()

    def start(
        self, request: Request, schedule: Schedule, rows: int, as_latents: bool = False
    ) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Sets the devices to work on all images of a request, after those of earlier ones, and does not wait for them.

        Returns what waits for (pictures uint8 [n h w 3], finite [n]), or latents [n h/8 w/8 c]. rows: how many are
        drawn at once at most, a multiple of the devices; images that agree in their LoRA scales are filled up to it.
        """
        most = rows // self.mesh.size
        _, batches = request.batches(self.mesh.size, most, (most,) if len(request.scale_groups) == 1 else ())
        runs = [self.run(request, schedule, index) for index in batches]
        # In a thread of its own: an interruption of the caller's leaves what has begun to come to its end.
        begun = self._driver.submit(lambda: [self._driven(run, as_latents) for run in runs])

        def wait() -> tuple[np.ndarray, np.ndarray]:
            _, places = np.unique(np.concatenate(batches), return_index=True)
            arrays, finite = map(np.concatenate, zip(*map(_fetched, begun.result()), strict=True))
            return arrays[places], finite[places]

        return wait

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pictures, uint8 [n h w 3], of latents [n h/8 w/8 c] on the host."""
        rows = -(-len(latents) // self.mesh.size) * self.mesh.size
        pictures, _ = _fetched(self.decoded(jax.device_put(pad_rows(latents, rows), split_images(self.mesh))))
        return pictures[: len(latents)]

    def _driven(self, run: Run, as_latents: bool) -> tuple[Any, Any]:
        for _ in self._pace.drive(run):
            pass
        return self._result(run, as_latents)

    def _result(self, run: Run, as_latents: bool) -> tuple[Any, Any]:
        """(pictures or latents, finite or None) of a run, while its last steps are still being done."""
        return (run.state.x, None) if as_latents else self.decoded(run.state.x)

    def run(self, request: Request, schedule: Schedule, index: np.ndarray) -> Run:
        """What draws some images of a request, their texts encoded."""
        steps, scales = len(schedule.timestep), request.model_scales(index)
        given: dict[str, Any] = {} if request.originals is None else self.given(request, request.originals, index)
        return Run(
            self.denoiser,
            self.mesh,
            self._tuned.model(self.model, scales),
            request.plan.of(index),
            schedule,
            scales=scales,
            told=self.text.conditioning(texts_of(request, index)),
            noise=request.initial_noise(index),
            step_noise=request.step_noise(index, steps) if np.any(schedule.fresh) else None,
            rescale=None if request.rescale is None else request.rescale[index],
            skipped=request.skipped,
            **given,
        )

    def given(self, request: Request, originals: Originals, index: np.ndarray) -> dict[str, Any]:
        """What some images of a request are made from: their latents, which are on their way to the devices, masks."""
        assert request.call.size is not None
        what = originals.pixels(index, request.call.size), request.latent_noise(index)
        pixels, noise = jax.device_put(what, split_images(self.mesh))
        tiled = self._tiled(request.latent_shape)
        return {
            "picture": encode(self.vae, self.mesh, self.vae_params, pixels, noise, tiled=tiled),
            "mask": originals.mask(index, request.call.size, self.vae.config.factor),
        }

    def decoded(self, latents: Any) -> tuple[jax.Array, jax.Array]:
        """(pictures, finite) of latents [b h/8 w/8 c] that lie on the devices."""
        return decode(self.vae, self.mesh, self.vae_params, latents, tiled=self._tiled(latents.shape[1:]))

    def _tiled(self, latent_shape: tuple[int, ...]) -> bool:
        return latent_shape[0] * latent_shape[1] * self.vae.config.factor**2 >= TILED_FROM


def program_of(request: Request) -> Any:
    """What decides, beside the images at once, which programs draw a request."""
    return request.latent_shape, request.masked, request.skipped is not None


def _shapes(tree: Tree) -> tuple[Any, ...]:
    return jax.tree.structure(tree), *map(np.shape, jax.tree.leaves(tree))


def texts_of(request: Request, index: np.ndarray) -> Prompts:
    """What some images of a request are told."""
    scales = {kind: values[index] for kind, values in request.text_scales.items()}
    positive, negative = ([texts[i] for i in index] for texts in (request.positive, request.negative))
    no, yes = (None if given is None else given.of(index) for given in request.given)
    return Prompts(positive, negative, request.text, scales, (no, yes))


def _fetched(result: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures or latents, and whether each is finite, once they are there."""
    arrays, finite = jax.device_get(result)
    return arrays, np.isfinite(arrays).all(axis=(1, 2, 3)) if finite is None else finite


def _partial(index: np.ndarray, state: State) -> Partial:
    numbers, places = np.unique(index, return_index=True)
    x, denoised = jax.device_get((state.x, state.denoised))
    return Partial(numbers.tolist(), x[places], denoised[places])


def warm_up(
    engine: Engine,
    rehearsals: Sequence[tuple[str, Request, Schedule]],
    on_progress: OnProgress | None = None,
) -> int:
    """Compiles, or takes from the compilation cache, what draws each of the requests; how many programs these are.

    Their texts are encoded, no step is taken. Several programs are compiled at a time.
    rehearsals: (what it is about, for those who wait; a request of one whole batch; its schedule).
    """
    programs: dict[str, Callable[[], Any]] = {}
    for about, request, schedule in rehearsals:
        size, [index] = request.batches(engine.mesh.size, len(request.seeds))
        run = engine.run(request, schedule, index)
        for both in set(paired(request.plan).tolist()):
            prompts = "both prompts at once" if both else "one prompt at a time"
            programs[f"denoiser, {about}, {prompts}"] = partial(run.rehearse, both)
        programs[f"decoder, {about}"] = partial(engine.decoded, run.state.x)
        if request.originals is not None:
            programs[f"encoder, {about}"] = partial(engine.given, request, request.originals, index)
        engine.ready.setdefault(program_of(request), set()).add(size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        names = {pool.submit(program): name for name, program in programs.items()}
        for done, future in enumerate(as_completed(names)):
            jax.block_until_ready(future.result())
            if on_progress:
                on_progress(Progress("compile", done + 1, len(names), names[future]))
    return len(programs)
