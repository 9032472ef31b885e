"""A folder of checkpoint files, here or on the hub: which files it has, and where each is once it is needed."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from autolora_jax.weights.errors import WeightsError


@runtime_checkable
class Folder(Protocol):
    """Relative names use slashes: "unet/config.json"."""

    where: str  # for messages

    def names(self) -> frozenset[str]:
        """Every file, at most one folder deep."""

    def path(self, name: str) -> Path:
        """The file on this machine; fetches it if need be. Raises WeightsError."""


class LocalFolder:
    """A folder of this machine. note: added to messages, to say why it may be incomplete."""

    def __init__(self, root: Path, note: str = "") -> None:
        self.root = root
        self.where = f"{root}{note}"

    def names(self) -> frozenset[str]:
        try:
            entries = [*self.root.iterdir()]
            inner = [file for entry in entries if entry.is_dir() for file in entry.iterdir()]
        except OSError as e:
            raise WeightsError(f"{e.filename} can't be read: {e.strerror}") from None
        return frozenset(p.relative_to(self.root).as_posix() for p in [*entries, *inner] if p.is_file())

    def path(self, name: str) -> Path:
        return self.root / name
