"""The host keeps a few stretches ahead of the devices; what it does there changes no picture."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from autolora_jax import AutoLoRA
from autolora_jax.canvas import Canvas
from autolora_jax.config import SchedulerConfig
from autolora_jax.guidance import SHARES, plan
from autolora_jax.lora import Loaded, LoraReport
from autolora_jax.pacing import AHEAD, Pace
from autolora_jax.request import Request
from autolora_jax.run import Run
from autolora_jax.run import calls as calls_of
from autolora_jax.sampler import STRETCH, State
from autolora_jax.settings import Call

REPORT = LoraReport("made here", "in memory", {}, {}, {}, 0, (), {})
CANVAS = Canvas(8, 1, 1, 4, 5.0, SchedulerConfig())


class Latents:
    """Of a device that is done when somebody has asked `patience` times."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def is_ready(self) -> bool:
        self.patience -= 1
        return self.patience < 0


class Steps(Run):
    """A Run of nothing that notes how many stretches are not done when the next one is queued."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.state = total, 0, State(None, None, None, None)
        self.queued: list[Latents] = []
        self.waiting: list[int] = []
        self.counts: list[int] = []

    def advance(self, most: int = STRETCH) -> int:
        self.waiting.append(sum(latents.patience >= 0 for latents in self.queued))
        count = min(most, self.total - self.done)
        self.done += count
        self.counts.append(count)
        self.queued.append(Latents(2))
        self.state = State(self.queued[-1], None, None, None)
        return count


def exhausted(stretches: Iterator[None]) -> None:
    for _ in stretches:
        pass


def test_the_devices_are_never_without_work_nor_far_behind():
    pace, told = Pace(), []
    for run in (Steps(21), Steps(4)):
        exhausted(pace.drive(run, lambda steps, state: told.append(steps)))
        assert run.done == run.total and max(run.waiting) <= AHEAD
        assert run.waiting[AHEAD:] == [AHEAD] * len(run.waiting[AHEAD:])  # and no fewer, once there are so many
    pace.finish()
    assert sum(told) == 25


def test_a_first_stretch_is_one_step_and_quick_steps_share_one():
    run = Steps(60)
    exhausted(Pace().drive(run))
    assert run.counts[0] == 1 and max(run.counts) == STRETCH


def test_nobody_is_told_of_what_was_given_up():
    pace, told = Pace(), []
    exhausted(pace.drive(Steps(3), lambda steps, state: told.append(steps)))
    pace.forget()
    pace.finish()
    assert sum(told) < 3


def request(scales: list[float]) -> Request:
    call = Call("", None, seeds=range(len(scales)), guidance=AutoLoRA(1.5, 2.0, 2.0), num_inference_steps=2)
    return Request.of(dataclasses.replace(call, lora_scale=scales), CANVAS, [Loaded(REPORT)])


@pytest.mark.parametrize(
    ("scales", "devices", "most", "ready", "size", "batches"),
    [
        ([1.0] * 3, 1, 4, (), 4, [[0, 1, 2, 2]]),
        ([1.0] * 2, 1, 4, (), 2, [[0, 1]]),
        ([1.0] * 2, 1, 4, (4,), 4, [[0, 1, 1, 1]]),  # rather than compile
        ([1.0] * 2, 1, 4, (8, 1), 2, [[0, 1]]),  # more than was asked for, and too few
        ([1.0] * 5, 2, 2, (), 2, [[0, 1, 2, 3], [4, 4, 4, 4]]),
        ([0.1, 0.2, 0.1, 0.2], 2, 4, (), 2, [[0, 2, 1, 3]]),  # a device, a scale
        ([0.1, 0.2, 0.3], 1, 4, (), 1, [[0], [1], [2]]),
        ([0.1, 0.2, 0.2], 4, 4, (), 1, [[0, 1, 2, 2]]),
        ([1.0] * 7, 1, 6, (), 6, [[0, 1, 2, 3, 4, 5], [6] * 6]),
    ],
)
def test_pictures_are_arranged_by_their_scales(scales, devices, most, ready, size, batches):
    found, arranged = request(scales).batches(devices, most, ready)
    assert found == size and [index.tolist() for index in arranged] == batches


def test_calls_are_told_by_step_and_kind():
    table = plan(AutoLoRA(1.5, 2.0, 3.0, start=0.5), 2, 4)
    calls = calls_of(table, 1, 4)
    assert calls.made.tolist() == [1, 2, 2] and calls.kinds[:, :2].tolist() == [[2, 0], [0, 2], [0, 2]]
    assert calls.coefficients.shape == (2, 3, 3, 2, 1 + SHARES)
    assert np.allclose(calls.coefficients[:, 0, 0, :, 0], [-2.0, 3.0])
