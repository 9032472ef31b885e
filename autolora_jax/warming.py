"""Programs compiled before anybody waits for them."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import jax

from autolora_jax.engine import Engine
from autolora_jax.progress import OnProgress, Progress
from autolora_jax.request import Request
from autolora_jax.run import paired
from autolora_jax.schedules import Schedule


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
        engine.ready.setdefault(request.latent_shape, set()).add(size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        names = {pool.submit(program): name for name, program in programs.items()}
        for done, future in enumerate(as_completed(names)):
            jax.block_until_ready(future.result())
            if on_progress:
                on_progress(Progress("compile", done + 1, len(names), names[future]))
    return len(programs)
