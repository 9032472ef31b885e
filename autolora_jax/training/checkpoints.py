"""A run's checkpoints: the whole state, written by Orbax beside the training, and the settings that it belongs to."""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

from autolora_jax import files
from autolora_jax.config import ConfigError, read_json
from autolora_jax.training.step import State
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.orbax_folder import brief, quiet

SETTINGS = "settings.json"
UNREADABLE = "unreadable-"  # how names of checkpoints begin that could not be read


class OtherSettings(ConfigError):
    """The checkpoints found are another run's."""


class Checkpoints:
    """A folder of checkpoints, named by their step. A context: leaving it waits until the last one is on disk, and
    raises WeightsError when it could not be written."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], keep: int = 2, older: Mapping[str, Any] | None = None
    ) -> None:
        """settings: JSON values that decide the run; a folder with checkpoints of others is refused.
        older: what earlier versions wrote for some of these.

        Raises OtherSettings when they differ, WeightsError when the folder can't be written.
        """
        self.folder = folder.absolute()
        wanted = json.loads(json.dumps(settings))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / SETTINGS
            if saved_steps(self.folder):
                _compare(read_json(path), wanted, older or {}, self.folder)
            files.write(path, json.dumps(wanted, indent=2) + "\n")
        except OSError as e:
            raise WeightsError(f"{self.folder} can't be written: {e.strerror or e}; choose another folder") from None
        with quiet():
            self._manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            with quiet():
                self._manager.close()
        except Exception as e:  # tensorstore's errors have no class of their own
            raise WeightsError(f"the last checkpoint in {self.folder} is not written: {brief(e)}") from e

    @property
    def latest(self) -> int | None:
        """Finished steps of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, state: State) -> None:
        """Writes a state in the background; its arrays are copied before this returns.

        Raises WeightsError when this one or the one before it could not be written.
        """
        step = int(state.step)
        if step == self.latest:
            return
        try:
            with quiet():
                self._manager.save(step, args=ocp.args.StandardSave(state._asdict()), force=True)
        except Exception as e:  # tensorstore's errors have no class of their own
            raise WeightsError(f"no checkpoint of step {step} in {self.folder}: {brief(e)}") from e

    def restore(self, like: State) -> State:
        """The newest state that can be read, laid out as `like` is; `like` where there is none, or it is that one.

        Newer ones are set aside, of which a warning tells. Raises WeightsError when none can be read.
        """
        if self.latest in (None, int(like.step)):
            return like
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
        bad: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                with quiet():
                    found = State(**self._manager.restore(step, args=ocp.args.StandardRestore(abstract)))
            except Exception as e:  # tensorstore's errors have no class of their own
                bad[step] = brief(e)
            else:
                self._set_aside(bad, step)
                return found
        newest, why = next(iter(bad.items()))
        before = ", nor can those before it" if len(bad) > 1 else ", and there is none before it"
        raise WeightsError(
            f"the checkpoint of step {newest} in {self.folder} can't be read{before}: {why}. Put a copy in its place, "
            "or start anew in another folder"
        )

    def _set_aside(self, bad: Mapping[int, str], good: int) -> None:
        """Takes what can't be read out of the way of what will be written."""
        for step, why in bad.items():
            aside = self.folder / f"{UNREADABLE}{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
            warnings.warn(
                f"the checkpoint of step {step} in {self.folder} can't be read ({why}): it is kept as {aside.name}, "
                f"and training goes on from step {good}",
                stacklevel=3,
            )
        if bad:
            self._manager.reload()


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any], older: Mapping[str, Any], folder: Path) -> None:
    was, wants = (traverse_util.flatten_dict(dict(settings), sep=".") for settings in (found, wanted))
    names = [
        name for name in {**was, **wants} if was.get(name) not in (wants.get(name), older.get(name, wants.get(name)))
    ]
    if names:
        changes = "; ".join(f"{name} was {was.get(name)!r}, is {wants.get(name)!r}" for name in names)
        raise OtherSettings(
            f"{folder} holds a run with other settings: {changes}. Resume it with its own, or start anew "
            "in another folder"
        )


def saved_steps(folder: Path) -> list[int]:
    """Steps whose checkpoints are in a folder, in order; [] for one that is no folder of checkpoints."""
    if not (folder / SETTINGS).is_file():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())


def discard(folder: Path) -> None:
    """Removes the checkpoints of a folder with what they belong to, and nothing else in it. Raises OSError."""
    for path in [folder / str(step) for step in saved_steps(folder)] + [*folder.glob(f"{UNREADABLE}*")]:
        shutil.rmtree(path)
    (folder / SETTINGS).unlink(missing_ok=True)
