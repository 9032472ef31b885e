"""The devices at work on requests: in batches, texts encoded a batch ahead, steps queued as far as `pacing` lets them.

request ──▶ batches ──▶ texts ──▶ run ──▶ pace ──▶ decode ──▶ pictures, in the request's order
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from autolora_jax.decode import decode
from autolora_jax.models.vae import AutoencoderKL
from autolora_jax.pacing import OnStretch, Pace
from autolora_jax.progress import OnProgress, Partial, Progress
from autolora_jax.request import Request
from autolora_jax.run import Run
from autolora_jax.sampler import Model, State
from autolora_jax.schedules import Schedule
from autolora_jax.sharding import pad_rows, split_images
from autolora_jax.text import TextStage

Tree = Mapping[str, Any]
TILED_FROM = 2048 * 2048  # pixels from which the VAE decodes in tiles


class Engine:
    """A model on its devices. `model.lora` is replaced as LoRAs come and go."""

    def __init__(
        self,
        denoiser: nn.Module,
        vae: AutoencoderKL,
        text: TextStage,
        model: Model,
        vae_params: Tree,
        mesh: jax.sharding.Mesh,
    ) -> None:
        self.denoiser, self.vae, self.text, self.mesh = denoiser, vae, text, mesh
        self.model, self.vae_params = model, vae_params
        self.ready: dict[Any, set[int]] = {}  # latents' shape -> images a device at once that programs are there for
        self._pace, self._driver = Pace(), ThreadPoolExecutor(1, "steps")

    def set_delta(self, delta: Tree) -> None:
        """Replaces the denoiser's stacked delta tree."""
        self.model = self.model._replace(lora=delta)
        self.ready.clear()

    def draw(
        self,
        request: Request,
        schedule: Schedule,
        batch_size: int,
        as_latents: bool,
        on_progress: OnProgress | None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(pictures or latents, finite), in order, as batches are drawn; the devices work on while one is fetched."""
        n, done = len(request.seeds), 0
        ready = self.ready.setdefault(request.latent_shape, set())
        size, batches = request.batches(self.mesh.size, batch_size, ready)
        total = len(batches) * len(schedule.timestep)

        def told(index: np.ndarray) -> Callable[[int, State], None]:
            def on_done(steps: int, state: State) -> None:
                nonlocal done
                done += steps
                if on_progress:
                    on_progress(Progress("sample", done, total, partial=partial(_partial, index, state)))

            return on_done

        drawn: dict[int, tuple[np.ndarray, np.bool_]] = {}
        given = 0

        def in_order(index: np.ndarray, result: tuple[Any, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            nonlocal given
            for i, picture, finite in zip(index.tolist(), *_fetched(result), strict=True):
                drawn.setdefault(i, (picture, finite))
            first = given
            while given in drawn:
                given += 1
            if given > first:
                pictures, finites = zip(*(drawn.pop(i) for i in range(first, given)), strict=True)
                yield np.stack(pictures), np.array(finites)

        pending: list[tuple[np.ndarray, tuple[Any, Any]]] = []
        try:
            for first, index in enumerate(batches):
                if on_progress:
                    on_progress(Progress("encode", min(first * self.mesh.size * size, n), n))
                for near in batches[first : first + 2]:  # the next one's before this one's pictures: devices keep order
                    self.text.begin(*_texts(request, near))
                run = self.run(request, schedule, index)
                pending.append((index, self._driven(run, as_latents, told(index))))
                ready.add(size)
                if len(pending) > 1:
                    yield from in_order(*pending.pop(0))
            self._pace.finish()
            yield from in_order(*pending.pop())
        finally:
            self._pace.forget()

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

    def _driven(self, run: Run, as_latents: bool, on_done: OnStretch | None = None) -> tuple[Any, Any]:
        """(pictures or latents, finite or None) of a run while its last steps are still being drawn."""
        self._pace.drive(run, on_done)
        return (run.state.x, None) if as_latents else self.decoded(run.state.x)

    def run(self, request: Request, schedule: Schedule, index: np.ndarray) -> Run:
        """What draws some images of a request, their texts encoded."""
        steps = len(schedule.timestep)
        return Run(
            self.denoiser,
            self.mesh,
            self.model,
            request.plan.of(index),
            schedule,
            scales=request.model_scales(index),
            told=self.text.conditioning(*_texts(request, index)),
            noise=request.initial_noise(index),
            step_noise=request.step_noise(index, steps) if np.any(schedule.fresh) else None,
            rescale=None if request.rescale is None else request.rescale[index],
        )

    def decoded(self, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(pictures, finite) of latents [b h/8 w/8 c] that lie on the devices."""
        tiled = latents.shape[1] * latents.shape[2] * self.vae.config.factor**2 >= TILED_FROM
        return decode(self.vae, self.mesh, self.vae_params, latents, tiled=tiled)


def _texts(request: Request, index: np.ndarray) -> tuple[Any, ...]:
    """What some images of a request are told, as arguments of TextStage.conditioning."""
    scales = {kind: values[index] for kind, values in request.text_scales.items()}
    return [request.positive[i] for i in index], [request.negative[i] for i in index], request.text, scales


def _fetched(result: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures or latents, and whether each is finite, once they are there."""
    arrays, finite = jax.device_get(result)
    return arrays, np.isfinite(arrays).all(axis=(1, 2, 3)) if finite is None else finite


def _partial(index: np.ndarray, state: State) -> Partial:
    numbers, places = np.unique(index, return_index=True)
    x, denoised = jax.device_get((state.x, state.denoised))
    return Partial(numbers.tolist(), x[places], denoised[places])
