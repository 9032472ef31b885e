"""A stand-in for an accelerator, whose programs run one after another in the order in which they were asked for.

On a CPU JAX may run what was asked for last beside, or before, what was asked for first, and an answer costs nothing to
fetch: that hides who waits for whom. Here every program goes through one thread. What it returns is an `Answer`, which
further programs take, and which the host has once the program is done and a round trip is over. So it is known exactly
when the device had nothing to do.
"""

import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

# Which functions are programs, wherever they are called from: (module, name). Those that a version lacks are left out.
PROGRAMS = (
    ("autolora_jax.text.encoding", "encode"),
    ("autolora_jax.text.stage", "encode"),
    ("autolora_jax.pipeline", "sample"),
    ("autolora_jax.pipeline", "advance"),
    ("autolora_jax.pipeline", "decode"),
)


class Answer:
    """An array that a program will have returned."""

    def __init__(self, of: "InOrder", result: Future[list[Any]], place: int, like: jax.ShapeDtypeStruct) -> None:
        self.shape, self.dtype = like.shape, like.dtype
        self._of, self._result, self._place = of, result, place

    def on_device(self) -> Any:
        """Itself, once its program is done."""
        return self._result.result()[self._place]

    def block_until_ready(self) -> "Answer":
        self._of.wait(self)
        return self

    def is_ready(self) -> bool:
        return self._result.done()

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return np.asarray(self.on_device())


class InOrder:
    """The stand-in. seconds: (begin, end) of every program that it ran, by its name."""

    def __init__(self, latency: float) -> None:
        """latency: seconds from when a program is done until the host has its answer."""
        self.latency = latency
        self.seconds: list[tuple[str, float, float]] = []
        self._asked: queue.SimpleQueue[tuple[str, Callable[[], Any], Future[list[Any]]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            name, program, result = self._asked.get()
            begun = time.perf_counter()
            try:
                outputs = jax.tree.leaves(_WAIT(program()))
            except BaseException as e:
                result.set_exception(e)
            else:
                self.seconds.append((name, begun, time.perf_counter()))
                result.set_result(outputs)

    def program(self, name: str, function: Any) -> Callable[..., Any]:
        """A jitted function that is computed when it is its turn."""

        def call(*arguments: Any, **options: Any) -> Any:
            like = function.eval_shape(*_each(arguments, _like), **_each(options, _like))
            result: Future[list[Any]] = Future()
            self._asked.put(
                (name, lambda: function(*_each(arguments, _on_device), **_each(options, _on_device)), result)
            )
            leaves, tree = jax.tree.flatten(like)
            return jax.tree.unflatten(tree, [Answer(self, result, i, leaf) for i, leaf in enumerate(leaves)])

        return call

    def fetch(self, tree: Any) -> Any:
        """jax.device_get, which takes a round trip."""
        return _FETCH(_each(self.wait(tree), _on_device))

    def wait(self, tree: Any) -> Any:
        """jax.block_until_ready, likewise."""
        answers = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, Answer)]
        for answer in answers:
            answer.on_device()
        if answers:
            time.sleep(self.latency)
        return tree

    def busy(self) -> float:
        """Seconds that programs ran."""
        return sum(end - begun for _, begun, end in self.seconds)

    def idle(self) -> float:
        """Share of the time from the first program's begin to the last one's end in which none ran."""
        return 1 - self.busy() / (self.seconds[-1][2] - self.seconds[0][1])


_FETCH, _WAIT = jax.device_get, jax.block_until_ready


@contextmanager
def in_order(latency: float) -> Iterator[InOrder]:
    """Context: PROGRAMS run on a stand-in."""
    device = InOrder(latency)
    kept = []
    for module, name in PROGRAMS:
        place = importlib.import_module(module) if importlib.util.find_spec(module) else None
        if function := getattr(place, name, None):
            kept.append((place, name, function))
            setattr(place, name, device.program(name, function))
    jax.device_get, jax.block_until_ready = device.fetch, device.wait
    try:
        yield device
    finally:
        jax.device_get, jax.block_until_ready = _FETCH, _WAIT
        for place, name, function in kept:
            setattr(place, name, function)


def _each(tree: Any, function: Callable[[Any], Any]) -> Any:
    return jax.tree.map(function, tree, is_leaf=lambda leaf: isinstance(leaf, Answer))


def _on_device(leaf: Any) -> Any:
    return leaf.on_device() if isinstance(leaf, Answer) else leaf


def _like(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, Answer) else leaf
