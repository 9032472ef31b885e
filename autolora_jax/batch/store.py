"""Where pictures go: every picture a file, named by its key, or many in a tar file as WebDataset reads them."""

import json
import tarfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

from autolora_jax.batch.storage import STATE, Storage

IMAGES, SHARDS, STAGED = "images", "shards", f"{STATE}/staged"


class Place(NamedTuple):
    """Where a picture is found: a file, and the name inside, if that is a shard."""

    file: str
    member: str | None


class Picture(NamedTuple):
    """A picture's content, where it belongs, and its row of the manifest."""

    place: Place
    content: bytes
    row: dict[str, Any]


class Store:
    """Where the pictures of a job go: every picture is a file, images/KEY[:2]/KEY.png."""

    def __init__(self, storage: Storage, suffix: str) -> None:
        self.storage, self.suffix = storage, suffix

    def place(self, batch: int, key: str) -> Place:
        """Where a picture of a batch will be found."""
        return Place(f"{IMAGES}/{key[:2]}/{key}.{self.suffix}", None)

    def save(self, batch: int, pictures: Sequence[Picture], pool: Executor) -> None:
        """Keeps the pictures of a batch so that they are safe from now on. pool: for what can be done at once."""
        list(pool.map(lambda picture: self.storage.write(picture.place.file, picture.content), pictures))

    def committed(self, batch: int) -> None:
        """Called when a batch is recorded."""


class Shards(Store):
    """Tar files of consecutive batches: shards/000000.tar with KEY.png, KEY.json and KEY.txt, in the batches' order.

    The JSON is the picture's row of the manifest, the text its prompt: a caption, to whom trains on them.

    A batch is staged as a piece of its shard's tar. When the last one of a shard is recorded, the pieces are joined.
    Equal batches give equal bytes: members have no time and no owner.
    """

    def __init__(
        self, storage: Storage, suffix: str, first: int, batches: int, total: int, finished: Iterable[int]
    ) -> None:
        """first: number of the first shard. batches: a shard, of `total` in all. finished: those that are recorded."""
        super().__init__(storage, suffix)
        self.first, self.batches, self.total = first, batches, total
        self._lock = threading.Lock()
        self._finished: defaultdict[int, set[int]] = defaultdict(set)
        for batch in finished:
            self._finished[batch // batches].add(batch)

    def place(self, batch: int, key: str) -> Place:
        return Place(f"{SHARDS}/{self.first + batch // self.batches:06}.tar", f"{key}.{self.suffix}")

    def save(self, batch: int, pictures: Sequence[Picture], pool: Executor) -> None:
        members = []
        for picture in pictures:
            assert picture.place.member is not None
            members.append(_member(picture.place.member, picture.content))
            told = {"json": json.dumps(picture.row), "txt": picture.row["prompt"]}
            for ending, text in told.items():
                members.append(_member(f"{picture.row['key']}.{ending}", text.encode("utf-8", "replace")))
        shard = self.first + batch // self.batches
        self.storage.write(f"{STAGED}/{shard:06}-{batch:08}.tar", b"".join(members))

    def committed(self, batch: int) -> None:
        shard = batch // self.batches
        with self._lock:
            self._finished[shard].add(batch)  # twice, if two workers drew it: one was taken for dead
            whole = len(self._finished[shard]) == min(self.batches, self.total - shard * self.batches)
        if whole:
            join_staged(self.storage, self.first + shard)


def drop_staged(storage: Storage, recorded: set[int]) -> None:
    """Removes the staged pieces of batches that are not recorded."""
    names = storage.names(STAGED)
    storage.remove(f"{STAGED}/{name}" for name in names if int(name.partition(".")[0].split("-")[1]) not in recorded)


def join_staged(storage: Storage, only: int | None = None) -> None:
    """Joins staged pieces to the shards that they belong to, of which there are no more pieces to come.

    only: one shard's number. Pieces of a shard that is there are left over from a run that was killed.
    """
    pieces: dict[str, list[str]] = {}
    for name in storage.names(STAGED):
        pieces.setdefault(name.partition("-")[0], []).append(f"{STAGED}/{name}")
    there = set(storage.names(SHARDS))
    for shard, names in pieces.items():
        if only is None or int(shard) == only:
            if f"{shard}.tar" not in there:
                with storage.writing(f"{SHARDS}/{shard}.tar") as tar:
                    for piece in storage.read_all(names):
                        tar.write(piece)
                    tar.write(bytes(2 * tarfile.BLOCKSIZE))
                    tar.write(bytes(-tar.tell() % tarfile.RECORDSIZE))
            storage.remove(names)


def shards_there(storage: Storage) -> int:
    """The number of the first shard that does not exist yet."""
    return max((int(name.partition(".")[0]) + 1 for name in storage.names(SHARDS)), default=0)


def _member(name: str, content: bytes) -> bytes:
    """A file's header and content as they stand in a tar file."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    padding = -len(content) % tarfile.BLOCKSIZE
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(padding)


def read_pictures(storage: Storage, places: Mapping[str, Place]) -> Iterator[tuple[str, bytes | str]]:
    """(key, content) of each picture, in an order that opens every file once. In place of a content: why there is none.

    places: key -> where the manifest says it is. Raises StorageError.
    """
    shards: dict[str, dict[str, str]] = {}
    for key, (file, member) in places.items():
        if member is None:
            content = storage.read(file)
            yield key, f"{file} is not there" if content is None else content
        else:
            shards.setdefault(file, {})[member] = key
    for shard, keys in shards.items():
        for member, found in _read_members(storage, shard, keys):
            yield keys[member], found


def _read_members(storage: Storage, shard: str, members: Mapping[str, object]) -> Iterator[tuple[str, bytes | str]]:
    """(member, content) of these members of a shard. In place of a content: why there is none. Raises StorageError."""
    folder, _, file = shard.rpartition("/")
    if file not in storage.names(folder):
        yield from ((member, f"{shard} is not whole yet") for member in members)
        return
    left = dict.fromkeys(members)
    try:
        with storage.reading(shard) as opened, tarfile.open(fileobj=opened) as tar:
            for info in tar:
                if info.name in left and (found := tar.extractfile(info)):
                    content = found.read()
                    del left[info.name]
                    yield info.name, content
    except tarfile.TarError as e:
        yield from ((member, f"{shard}: {member} can't be read: {e}") for member in left)
        return
    yield from ((member, f"{shard} holds no {member}") for member in left)
