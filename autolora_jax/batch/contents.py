"""The pictures that a place keeps, as files and in WebDataset shards, read one after the other."""

import tarfile
from collections.abc import Iterator, Mapping

from autolora_jax.batch.storage import Storage
from autolora_jax.batch.store import Place


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
        for member, found in read_members(storage, shard, keys):
            yield keys[member], found


def read_members(storage: Storage, shard: str, members: Mapping[str, object]) -> Iterator[tuple[str, bytes | str]]:
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
