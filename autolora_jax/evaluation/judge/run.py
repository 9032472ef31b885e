"""Many pictures, one question, one judge, several requests at a time."""

import base64
import functools
import io
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from autolora_jax.evaluation.judge.client import Judge, JudgeError, Pause
from autolora_jax.evaluation.judge.questions import Question
from autolora_jax.evaluation.judge.verdicts import UNANSWERED, UNREADABLE, Key, Verdict, VerdictCache, Version
from autolora_jax.evaluation.pictures import Picture
from autolora_jax.image_files import PictureError, read_rgb

# How Pillow writes them. PNG: speed before size, the pixels are the same.
FORMATS = {"png": {"compress_level": 1}, "jpeg": {"quality": 95, "subsampling": 0}}
GRACE = 10.0  # seconds that answers under way are waited for when a run is stopped


@dataclass(frozen=True)
class Preparation:
    """A picture as judges get it: in the request itself, without what its file says of how it was made.

    format: png or jpeg (quality 95, full chroma); max_side: pixels, larger pictures are shrunk with Lanczos."""

    format: str = "png"
    max_side: int = 1024

    def __post_init__(self) -> None:
        if self.format not in FORMATS or self.max_side < 1:
            raise ValueError(
                f"pictures can be sent as {' or '.join(FORMATS)} with a side of 1 pixel or more, not as {self.format} "
                f"of {self.max_side}"
            )

    def __str__(self) -> str:
        """What was done, as caches and reports state it."""
        return f"{self.format}, at most {self.max_side} pixels a side"

    def data_uri(self, image: Image.Image) -> str:
        """An RGB picture, never enlarged."""
        scale = self.max_side / max(image.size)
        if scale < 1:
            width, height = (max(1, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        image.save(content, self.format, **FORMATS[self.format])
        return f"data:image/{self.format};base64,{base64.b64encode(content.getvalue()).decode()}"


class Judged(NamedTuple):
    """A picture's key, its verdict, and whether that was in the cache already."""

    picture: str
    verdict: Verdict
    reused: bool


@dataclass(frozen=True)
class Progress:
    """done: pictures with a verdict by now; latest: the one that just came."""

    done: int
    latest: Judged


class _Stopped(Exception):
    """The run is over; who waits need not wait any longer."""


def judge(
    pictures: Iterable[Picture],
    question: Question,
    by: Judge,
    cache: VerdictCache,
    *,
    preparation: Preparation = Preparation(),
    concurrency: int = 8,
    give_up: int = 20,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Judged]:
    """The verdict on each picture, in order; from the cache where it is there. At most `concurrency` are in memory.

    question: what it is missing (`prompt`, say) is taken from each picture's fields.
    A picture without an answer is one without a score. When `give_up` in a row get none, none is to be expected.
    Raises JudgeError then and where a server says so at once (a wrong key or model, say); ValueError when a picture
    does not tell what the question needs; OSError when the cache can't be written; what `on_progress` raises. Every
    verdict that came is in the cache: the same call goes on from there.
    """
    stop = threading.Event()
    source, taking = enumerate(pictures), threading.Lock()
    came: queue.SimpleQueue[tuple[int, Judged] | BaseException | None] = queue.SimpleQueue()

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise _Stopped

    def work() -> None:
        try:
            while not stop.is_set():
                with taking:
                    index, picture = next(source, (-1, None))
                if picture is None:
                    break
                came.put((index, _judged(picture, question, by, cache, preparation, pause)))
        except _Stopped:
            pass
        except BaseException as e:
            came.put(e)
        finally:
            came.put(None)

    by.identify()
    workers = [threading.Thread(target=work, daemon=True) for _ in range(concurrency)]
    try:
        for worker in workers:
            worker.start()
        return _collected(came, concurrency, give_up, on_progress)
    finally:
        stop.set()
        until = time.monotonic() + GRACE
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))


def _collected(
    came: "queue.SimpleQueue[tuple[int, Judged] | BaseException | None]",
    working: int,
    give_up: int,
    on_progress: Callable[[Progress], None] | None,
) -> list[Judged]:
    found: dict[int, Judged] = {}
    in_a_row = 0
    while working:
        item = came.get()
        if item is None:
            working -= 1
            continue
        if isinstance(item, BaseException):
            raise item
        index, judged = item
        found[index] = judged
        if on_progress:
            on_progress(Progress(len(found), judged))
        if judged.verdict.outcome == UNANSWERED:
            in_a_row += 1
        elif not judged.reused and judged.verdict.outcome != UNREADABLE:
            in_a_row = 0
        if in_a_row >= give_up:
            raise JudgeError(f"the last {in_a_row} pictures got no answer: {judged.verdict.why}")
    return [found[index] for index in sorted(found)]


def _judged(
    picture: Picture, question: Question, by: Judge, cache: VerdictCache, preparation: Preparation, pause: Pause
) -> Judged:
    """Looks, then asks, unless somebody else is asking: then waits and looks again."""
    question = about(picture, question)
    key = Key(picture.sha256, question.digest, str(preparation), by.model)
    if found := cache.find(key, by.served):
        return Judged(picture.key, found, True)
    with cache.claim(key, pause):
        if found := cache.find(key, by.served):
            return Judged(picture.key, found, True)
        try:
            image = preparation.data_uri(picture.image())
        except PictureError as e:
            return Judged(picture.key, Verdict(UNREADABLE, Version(by.model, by.served), why=str(e)), False)
        verdict = by.ask(question, [*(_shown(path, preparation) for path in question.shows), image], pause)
        cache.add(key, verdict)
        return Judged(picture.key, verdict, False)


@functools.lru_cache(maxsize=8)
def _shown(path: Path, preparation: Preparation) -> str:
    """A picture that the question shows, as data URI; the same for all that it is asked about."""
    return preparation.data_uri(read_rgb(path))


def about(picture: Picture, question: Question) -> Question:
    """The question with what the picture tells. Raises ValueError when that is not enough."""
    told = {name: str(picture.fields[name]) for name in question.missing if picture.fields.get(name)}
    question = replace(question, parameters={**question.parameters, **told})
    if question.missing:
        raise ValueError(
            f"{picture.key} does not tell its {', '.join(question.missing)}, which the question {question.name} needs"
        )
    return question
