"""Folders of checkpoint files, here or on the Hugging Face hub: which files there are, and where one is when needed.

The hub's are listed once and fetched one by one when they are needed, and only then. Without a connection the copy in
the hub's cache serves, as far as it goes. Names within a folder use slashes: "unet/config.json".
"""

import re
from os import PathLike
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,  # of the HTTP client that this version of the hub uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from autolora_jax.files import is_litter
from autolora_jax.weights.errors import WeightsError

CacheDir = str | PathLike[str] | None


def is_hub_id(source: str) -> bool:
    """Whether a text that is no local path may name a repository, or a file in one: "owner/name[/file.safetensors]"."""
    match = re.fullmatch(r"\w[\w.-]*/(\w[\w.-]*)(/[\w./-]+\.safetensors)?", source)
    return match is not None and not match[1].endswith(".safetensors")  # "folder/file.safetensors" is a path


def split_hub_id(source: str) -> tuple[str, str | None]:
    """(repository, file in it or None)."""
    owner, name, *file = source.split("/", 2)
    return f"{owner}/{name}", file[0] if file else None


class LocalFolder:
    """A folder of this machine. note: added to messages, to say why it may be incomplete."""

    def __init__(self, root: Path, note: str = "") -> None:
        self.root = root
        self.where = f"{root}{note}"  # for messages

    def names(self) -> frozenset[str]:
        """Every file, at most one folder deep. Raises WeightsError."""
        try:
            entries = [*self.root.iterdir()]
            inner = [file for entry in entries if entry.is_dir() for file in entry.iterdir()]
        except OSError as e:
            raise WeightsError(f"{e.filename} can't be read: {e.strerror}") from None
        files = (path for path in [*entries, *inner] if path.is_file() and not is_litter(path.name))
        return frozenset(path.relative_to(self.root).as_posix() for path in files)

    def path(self, name: str) -> Path:
        """The file."""
        return self.root / name


class HubFolder:
    """A repository at one commit: all files come from the same one, even if the repository changes meanwhile.

    revision: the branch or tag that the commit was found under.
    """

    def __init__(
        self, repo: str, commit: str, names: frozenset[str], cache_dir: CacheDir, revision: str | None = None
    ) -> None:
        self.repo, self.commit, self.cache_dir = repo, commit, cache_dir
        self.where = f"hub repository {repo}"
        self._names = names
        self._ask_for = revision or commit

    def names(self) -> frozenset[str]:
        """Every file."""
        return self._names

    def path(self, name: str) -> Path:
        """The file on this machine; fetches it if need be. Raises WeightsError."""
        try:
            # Asked once by the branch's name, the cache remembers what that means: later without a hub, too.
            path = Path(hf_hub_download(self.repo, name, revision=self._ask_for, cache_dir=self.cache_dir))
            if self._ask_for != self.commit:
                self._ask_for = self.commit
                return self.path(name)
        except (HTTPError, OSError, EntryNotFoundError) as e:
            raise WeightsError(f"{name} of {self.where} could not be fetched: {_first_line(e)}") from None
        return path


Folder = LocalFolder | HubFolder


def open_folder(source: str | PathLike[str], cache_dir: CacheDir = None) -> Folder:
    """A folder of this machine, or the repository of the hub that an id names. Raises WeightsError."""
    path = Path(source)
    return LocalFolder(path) if path.is_dir() else open_hub(str(source), None, cache_dir)


def open_hub(repo: str, revision: str | None = None, cache_dir: CacheDir = None) -> Folder:
    """A repository of the hub, or its cached copy when the hub can't be reached. Raises WeightsError."""
    where = f"hub repository {repo}" + (f" at {revision}" if revision else "")
    try:
        info = HfApi().model_info(repo, revision=revision)
    except GatedRepoError:
        raise WeightsError(
            f"{where} wants its terms accepted: do so at https://huggingface.co/{repo}, then run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise WeightsError(
            f"{repo} is neither a path on this machine nor a repository of the hub that you may read; check the "
            "spelling, or run `hf auth login` if it is private"
        ) from None
    except RevisionNotFoundError:
        raise WeightsError(f"{where} does not exist; leave out the revision or choose another") from None
    except HFValidationError as e:
        raise WeightsError(f"{repo!r} is neither a path on this machine nor a hub id: {_first_line(e)}") from None
    except (HTTPError, OSError) as e:
        return _cached(repo, revision, cache_dir, e)
    names = frozenset(s.rfilename for s in info.siblings or ())
    name = revision or "main"
    return HubFolder(repo, info.sha or name, names, cache_dir, name)


def cached_copy(repo: str, revision: str | None = None, cache_dir: CacheDir = None) -> Path | None:
    """The repository's snapshot in the hub's cache, as far as it goes, without asking the hub; None: there is none."""
    root: str | None
    try:
        root = snapshot_download(repo, revision=revision, cache_dir=cache_dir, local_files_only=True)
    except LocalEntryNotFoundError as e:
        root = getattr(e, "snapshot_path", None)  # some files are there, some are not
    return Path(root) if root else None


def published_sha256(path: Path) -> str | None:
    """The SHA-256 that the hub gives for a file in its cache, which names large files by it; None for any other."""
    stored = path.resolve()
    named = stored.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", stored.name)
    return stored.name if named else None


def _cached(repo: str, revision: str | None, cache_dir: CacheDir, error: Exception) -> Folder:
    """The repository's snapshot in the cache, after `error` kept us from the hub."""
    offline = isinstance(error, OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if offline else f"the hub can't be reached ({_first_line(error)})"
    if root := cached_copy(repo, revision, cache_dir):
        return LocalFolder(root, f" (the cached copy of hub repository {repo}; {why})")
    raise WeightsError(
        f"{repo} is not on this machine and {why}; connect, or give the path of a folder or .safetensors file"
    )


def _first_line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]
