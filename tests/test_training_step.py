"""The training step and its loop: what must not change the numbers does not, and what must not be copied is not."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

from autolora_jax.config import ConfigError, SchedulerConfig, UNetConfig
from autolora_jax.models.networks import param_shapes
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.settings import OptimizerConfig
from autolora_jax.settings.training import LossConfig
from autolora_jax.sharding import batch_rows, data_mesh, replicated
from autolora_jax.text.sdxl import join
from autolora_jax.training import loop
from autolora_jax.training.checkpoints import Checkpoints, discard
from autolora_jax.training.deltas import choose_layers, new_delta
from autolora_jax.training.denoiser import DenoiserLoss
from autolora_jax.training.loop import TrainingError, fit
from autolora_jax.training.objective import Objective
from autolora_jax.training.optimizer import make_optimizer
from autolora_jax.training.step import State, initial_state, train_step
from autolora_jax.weights.errors import WeightsError
from tests.parity import error, normal

SAME = 2e-6  # of a tensor's largest; seen: 2e-7. Sums in another order
DENOISER = 5e-5  # of a tensor's largest; seen: 3e-6 on one processor, 2.6e-5 on another
HALF = 0.05  # of all gradients' length; seen: 0.010


@dataclasses.dataclass(frozen=True)
class Regression:
    """A `step.Loss` over rows {"x": [b 6], "y": [b 3]}: y is x through a matrix with a low-rank delta."""

    def __call__(
        self, trainable: Any, frozen: Any, rows: Any
    ) -> tuple[Float[Array, "b"], dict[str, Float[Array, "b"]]]:
        error = rows["x"] @ (frozen["kernel"] + trainable["down"] @ trainable["up"]) - rows["y"]
        return jnp.square(error).mean(axis=1), {"largest": jnp.abs(error).max(axis=1)}


LOSS = Regression()
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.1, schedule="constant"), 8)
KERNEL = normal(1, 6, 3)


def delta() -> dict[str, np.ndarray]:
    return {"down": normal(2, 6, 2), "up": normal(3, 2, 3)}


def batch(step: int, accumulation: int = 1) -> dict[str, np.ndarray]:
    """Eight rows."""
    shape = accumulation, 8 // accumulation
    return {"x": normal(10 + step, *shape, 6), "y": normal(50 + step, *shape, 3)}


def steps(devices: int, accumulation: int, count: int = 3, average: bool = False) -> tuple[State, list[dict[str, Any]]]:
    """(state, metrics of each step)"""
    mesh = data_mesh(jax.devices()[:devices])
    state = jax.device_put(initial_state(delta(), OPTIMIZER, average), replicated(mesh))
    metrics = []
    for step in range(count):
        rows = jax.device_put(batch(step, accumulation), batch_rows(mesh))
        state, told = train_step(LOSS, OPTIMIZER, mesh, state, {"kernel": KERNEL}, rows, 0.9)
        metrics.append(jax.device_get(told))
    return jax.device_get(state), metrics


@pytest.fixture(scope="module")
def whole() -> tuple[State, list[dict[str, Any]]]:
    return steps(1, 1)


# ---- a step ----------------------------------------------------------------------------------------------------------


def test_a_step_follows_the_gradient_of_the_batchs_mean_loss():
    mesh, optimizer = data_mesh(jax.devices()[:2]), optax.sgd(0.5)
    state = jax.device_put(initial_state(delta(), optimizer), replicated(mesh))
    frozen, rows = {"kernel": KERNEL}, jax.tree.map(lambda x: x[0], batch(0))
    losses, more = LOSS(delta(), frozen, rows)
    gradients = jax.grad(lambda trainable: LOSS(trainable, frozen, rows)[0].mean())(delta())
    after, metrics = train_step(LOSS, optimizer, mesh, state, frozen, jax.device_put(batch(0), batch_rows(mesh)))
    assert metrics.keys() == {"loss", "largest", "gradient_norm"}
    assert error(metrics["loss"], losses.mean()) < SAME and error(metrics["largest"], more["largest"].mean()) < SAME
    assert error(metrics["gradient_norm"], optax.global_norm(gradients)) < SAME
    for name, value in delta().items():
        assert error(after.trainable[name], value - 0.5 * gradients[name]) < SAME
    assert int(after.step) == 1


@pytest.mark.parametrize(("devices", "accumulation"), [(1, 2), (1, 8), (2, 1), (2, 2), (4, 2), (8, 1)])
def test_devices_and_micro_batches_do_not_change_the_numbers(whole, devices: int, accumulation: int):
    state, metrics = steps(devices, accumulation)
    for one, other in zip(metrics, whole[1], strict=True):
        assert all(error(one[name], other[name]) < SAME for name in other)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(whole[0]), strict=True):
        assert error(one, other) < SAME


def test_the_average_follows_with_a_warmed_up_decay():
    expected = delta()
    for count in range(1, 4):
        state, _ = steps(1, 1, count, average=True)
        rate = 1 - min(0.9, count / (9 + count))  # count - 1 steps are finished before the last one
        expected = {name: value + rate * (state.trainable[name] - value) for name, value in expected.items()}
        for name, value in expected.items():
            assert error(state.average[name], value) < SAME


def test_without_an_average_none_is_kept(whole):
    assert whole[0].average is None


def test_only_the_delta_is_in_the_state_and_in_float32():
    """Whatever the base weights are in: 3 numbers for each that learns, of which AdamW keeps two."""
    network = UNet2DConditionModel(config=ONE_LEVEL, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    shapes = param_shapes(network)
    trees = new_delta(choose_layers({"unet": (shapes, network.config)}, ["attention", "convolutions"]), 2, seed=0)
    state = initial_state(trees, OPTIMIZER)
    learns = sum(leaf.size for leaf in jax.tree.leaves(trees))
    floats = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}
    assert sum(leaf.size for leaf in floats) == 3 * learns


# ---- the real loss ---------------------------------------------------------------------------------------------------

ONE_LEVEL = UNetConfig(
    block_out_channels=(16,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    layers_per_block=1,
    transformer_layers_per_block=(1,),
    attention_head_dim=(2,),
    cross_attention_dim=24,
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=16 + 6 * 4,
    norm_num_groups=4,
    sample_size=8,
)


def test_the_denoisers_gradients_do_not_depend_on_devices_and_micro_batches():
    """Its rows draw noise of their own. In bfloat16 they are float32 too, and not far off."""
    network = UNet2DConditionModel(config=ONE_LEVEL)
    shapes = param_shapes(network)
    params = jax.tree.map(lambda leaf: normal(leaf.size, *leaf.shape) / leaf.shape[0] ** 0.5, shapes)
    chosen = choose_layers({"unet": (shapes, network.config)}, ["attention"])
    trees = jax.tree.map(lambda leaf: normal(leaf.size, *leaf.shape) / leaf.shape[0] ** 0.5, new_delta(chosen, 2, 0))
    empty = {"encoder_hidden_states": normal(1, 5, 24), "text_embeds": normal(2, 16)}
    frozen = {"seed": np.int32(0), "empty_prompt": empty, "params": {"unet": params}}
    loss = DenoiserLoss(
        "unet", network, (), join, Objective(SchedulerConfig(), LossConfig()), lora_scale=0.7, caption_dropout=0.3
    )
    rows = {
        "mean": normal(3, 4, 8, 8, 4),
        "std": np.abs(normal(4, 4, 8, 8, 4)),
        "sizes": {"time_ids": np.full((4, 6), 64, np.float32)},
        "draw": np.arange(4, dtype=np.int32),
        "prompt": {"encoder_hidden_states": normal(5, 4, 5, 24), "text_embeds": normal(6, 4, 16)},
    }
    optimizer = optax.sgd(1e3)  # so that what a step changes is not lost in the values' rounding
    results = []
    for devices, accumulation in ((1, 1), (2, 2)):
        mesh = data_mesh(jax.devices()[:devices])
        state = jax.device_put(initial_state(trees, optimizer), replicated(mesh))
        split = jax.tree.map(lambda x, k=accumulation: x.reshape(k, -1, *x.shape[1:]), rows)
        results.append(jax.device_get(train_step(loss, optimizer, mesh, state, frozen, split)))
    (one, told), (other, also_told) = results
    assert error(also_told["loss"], told["loss"]) < DENOISER
    change = [jax.tree.map(np.subtract, state.trainable, trees) for state in (one, other)]
    for a, b in zip(*(jax.tree.leaves(tree) for tree in change), strict=True):
        assert error(b, a) < DENOISER

    half = dataclasses.replace(loss, denoiser=network.clone(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    frozen["params"] = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), frozen["params"])
    gradients = jax.jit(jax.grad(lambda *trees: half(*trees)[0].mean()))(trees, frozen, rows)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (gradients, change[0]))
    assert np.linalg.norm(-1e3 * a - b) < HALF * np.linalg.norm(b)


# ---- the loop --------------------------------------------------------------------------------------------------------


def run(
    folder: Path | None = None, count: int = 5, loss: Any = LOSS, devices: int = 2, settings: Any = None, **more: Any
) -> State:
    """A whole run, with checkpoints in `folder`."""
    mesh = data_mesh(jax.devices()[:devices])
    arguments = initial_state(delta(), OPTIMIZER), {"kernel": KERNEL}, batch, count, mesh
    if folder is None:
        return fit(loss, OPTIMIZER, *arguments, **more)
    with Checkpoints(folder, settings or {}) as checkpoints:
        return fit(loss, OPTIMIZER, *arguments, checkpoints=checkpoints, **{"save_every": 2, **more})


def assert_equal(one: State, other: State) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir())


def raising_at(step: int, error: BaseException) -> Callable[[loop.Report], None]:
    """An `on_step` that raises once it is told of this step."""

    def on_step(report: loop.Report) -> None:
        if report.step == step:
            raise error

    return on_step


def test_base_weights_are_not_copied(monkeypatch):
    """Nor read by the host: the step gets the very buffers that are on the mesh already."""
    mesh = data_mesh()
    kernel = jax.device_put(KERNEL, replicated(mesh))
    pointers: list[list[int]] = []

    def buffers(x: jax.Array) -> list[int]:
        return [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]

    def fake(loss: Any, optimizer: Any, mesh: Any, state: State, frozen: Any, *_: Any) -> tuple[State, dict[str, Any]]:
        pointers.append(buffers(frozen["kernel"]))
        return state, {"loss": jnp.zeros(()), "gradient_norm": jnp.zeros(())}

    monkeypatch.setattr(loop, "train_step", fake)
    fit(LOSS, OPTIMIZER, initial_state(delta(), OPTIMIZER), {"kernel": kernel}, batch, 2, mesh)
    assert pointers == [buffers(kernel)] * 2


def test_a_step_gives_the_old_states_memory_away():
    mesh = data_mesh(jax.devices()[:2])
    state = jax.device_put(initial_state(delta(), OPTIMIZER, average=True), replicated(mesh))
    after, _ = train_step(LOSS, OPTIMIZER, mesh, state, {"kernel": KERNEL}, batch(0), 0.9)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert all(leaf.sharding == replicated(mesh) for leaf in jax.tree.leaves(after))


def test_later_steps_compile_nothing(tmp_path, count_compilations):
    """Nor those of a state that comes back from a checkpoint."""
    run(tmp_path, 2)  # the first step's state was placed by us, the second's is a step's result
    with count_compilations() as compiled:
        run(tmp_path, 5)
    assert compiled == []


@pytest.mark.parametrize("average", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, average: bool):
    """Whether it was interrupted, or killed and its newest checkpoint is an older one."""
    mesh = data_mesh(jax.devices()[:2])

    def part(folder: Path, **more: Any) -> State:
        state = initial_state(delta(), OPTIMIZER, average)
        with Checkpoints(folder, {}) as checkpoints:
            return fit(
                LOSS,
                OPTIMIZER,
                state,
                {"kernel": KERNEL},
                batch,
                7,
                mesh,
                decay=0.9,
                checkpoints=checkpoints,
                save_every=3,
                **more,
            )

    expected = part(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        part(tmp_path / "stopped", on_step=raising_at(4, KeyboardInterrupt()))
    assert saved(tmp_path / "stopped") == [3, 5]  # told of step 4 when step 5 had begun
    assert_equal(part(tmp_path / "stopped"), expected)
    with pytest.raises(ZeroDivisionError):
        part(tmp_path / "killed", on_step=raising_at(5, ZeroDivisionError()))
    assert saved(tmp_path / "killed") == [3]
    assert_equal(part(tmp_path / "killed"), expected)


def test_the_state_of_a_checkpoint_is_the_one_at_its_step(tmp_path):
    """It is written while later steps go on, in memory that they could reuse."""
    run(tmp_path, 6, save_every=1)
    assert saved(tmp_path) == [5, 6]
    (tmp_path / "5").rename(tmp_path.parent / "kept")
    for step in saved(tmp_path):
        assert_equal(run(tmp_path, step), run(None, step))


def test_every_step_is_told_of_and_states_at_intervals():
    told: list[int] = []
    states: list[int] = []
    run(count=5, on_step=lambda r: told.append(r.step), every=2, on_state=lambda s: states.append(int(s.step)))
    assert told == [1, 2, 3, 4, 5] and states == [2, 4, 5]


def test_a_second_start_of_a_finished_run_does_nothing(tmp_path):
    expected = run(tmp_path)
    told: list[int] = []
    assert_equal(run(tmp_path, on_step=lambda r: told.append(r.step)), expected)
    assert told == []


@dataclasses.dataclass(frozen=True)
class Breaking:
    """Fails at the rows that `batch` gives in step 3: its loss, or its gradient alone (√ at 0), is not a number."""

    gradient_alone: bool

    def __call__(self, trainable: Any, frozen: Any, rows: Any) -> tuple[Array, dict[str, Array]]:
        losses, _ = LOSS(trainable, frozen, rows)
        bad = rows["x"][:, 0] == BAD
        zero = jnp.where(bad, 0.0, 1.0) * jnp.square(trainable["up"]).sum()
        return losses + (jnp.sqrt(zero) if self.gradient_alone else jnp.where(bad, jnp.nan, 0.0)), {}


BAD = batch(3)["x"][0, 0, 0]


@pytest.mark.parametrize(("gradient_alone", "what"), [(False, "loss"), (True, "gradients' norm")])
def test_numbers_that_are_not_finite_stop_the_run_and_are_not_saved(tmp_path, gradient_alone: bool, what: str):
    with pytest.raises(TrainingError, match=f"the {what} of step 4 is nan; lower the learning rate"):
        run(tmp_path, loss=Breaking(gradient_alone), save_every=1)
    assert saved(tmp_path) == [2, 3]
    # Nor when the run is interrupted before anyone has looked at them.
    with pytest.raises(TrainingError, match="of step 4"):
        run(tmp_path / "other", loss=Breaking(gradient_alone), on_step=raising_at(3, KeyboardInterrupt()))
    assert saved(tmp_path / "other") == [2]


def test_too_little_memory_is_said_with_a_remedy(monkeypatch):
    def fails(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes")

    monkeypatch.setattr(loop, "train_step", fails)
    with pytest.raises(TrainingError, match=r"memory is too small: .*Out of memory.*gradient checkpointing"):
        run()


def test_ctrl_c_between_two_states_waits_for_the_second(tmp_path, monkeypatch):
    """A step gives the old state's memory away; broken off there, nothing would be left to save."""
    real = loop.train_step

    def interrupted(*arguments: Any) -> Any:
        result = real(*arguments)
        if int(result[0].step) == 3:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(loop, "train_step", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert saved(tmp_path) == [2, 3]


# ---- folders of checkpoints ------------------------------------------------------------------------------------------


def damage(folder: Path, step: int) -> None:
    for path in (folder / str(step)).rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_is_said_and_the_one_before_goes_on(tmp_path):
    run(tmp_path)
    damage(tmp_path, 5)
    with pytest.warns(
        UserWarning, match=r"step 5 in .* can't be read .*kept as unreadable-5, and .* from step 4"
    ) as said:
        again = run(tmp_path, 7)
    assert str(tmp_path) in str(said[0].message)
    assert_equal(again, run(count=7))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["6", "7", "unreadable-5"]
    discard(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_set_aside_where_no_checkpoint_can_be_read(tmp_path):
    """It may be the memory, the disk or the network that is at fault."""
    run(tmp_path)
    for step in (4, 5):
        damage(tmp_path, step)
    with pytest.raises(WeightsError, match=r"step 5 in .* can't be read, nor can those before it: .*size \d+"):
        run(tmp_path, 7)
    assert saved(tmp_path) == [4, 5]


def test_a_last_checkpoint_that_can_not_be_written_is_said(tmp_path, monkeypatch):
    """It is written in the background: the error comes when its end is waited for."""

    def fails(*_: Any) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.close", fails)
    with pytest.raises(WeightsError, match=r"the last checkpoint in .* is not written: .*No space left on device"):
        run(tmp_path)


def test_another_networks_state_is_refused(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(f"{__name__}.delta", lambda: {"down": normal(2, 6, 1), "up": normal(3, 1, 3)})
    with pytest.raises(WeightsError, match="can't be read"):
        run(tmp_path, 7)


def test_other_settings_are_refused_by_name_once_there_is_a_checkpoint(tmp_path):
    settings = {"seed": 1, "optimizer": {"rate": 0.1, "steps": 5}}
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, settings=settings, on_step=raising_at(1, ZeroDivisionError()))
    settings["optimizer"]["rate"] = 0.2
    run(tmp_path, settings=settings)
    with pytest.raises(ConfigError, match=r"other settings: seed was 1, is 2; optimizer.rate was 0.2, is 0.3\. Resume"):
        run(tmp_path, settings={"seed": 2, "optimizer": {"rate": 0.3, "steps": 5}})


def test_a_folder_that_can_not_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"can't be written: .*; choose another folder"):
        run(tmp_path / "file" / "checkpoints")
