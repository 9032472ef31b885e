"""Whether a file or folder holds what was written: checksums where some are known, and values.

A converted folder's manifest has checksums, and the hub's cache names large files by theirs. Whatever else is damaged
shows where a weight is no finite number, and only there.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from autolora_jax.config import ConfigError
from autolora_jax.weights import orbax_folder
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.files import OnBytes, open_tensors, sha256_of
from autolora_jax.weights.hub import LocalFolder, published_sha256
from autolora_jax.weights.inspect import Description

_ENDING = ".safetensors"
_DAMAGED = "has another SHA-256 than {whose} gives: it is damaged or was changed; copy or download it again"


def verify(described: Description, on_bytes: OnBytes | None = None) -> Description:
    """The same, with what was found right in `verified`, and what was not in `problems`.

    Of a converted folder every file is read, of others all .safetensors files. on_bytes: told of those with checksums.
    """
    path = Path(described.path)
    names = LocalFolder(path).names() if path.is_dir() else frozenset()
    files = sorted(path / name for name in names if name.endswith(_ENDING)) if path.is_dir() else [path]
    if orbax_folder.MANIFEST in names:
        sums = {path / name: said for name, said in orbax_folder.read_manifest(path).get("sha256", {}).items()}
        verified, problems = _sums(sums, orbax_folder.MANIFEST, on_bytes) if sums else _converted_values(path)
    else:
        published = {file: said for file in files if (said := published_sha256(file))}
        verified, problems = _sums(published, "the hub", on_bytes)
        more, wrong = _values(files)
        verified, problems = [*verified, *more, *_unknown(files, published)], [*problems, *wrong]
    return dataclasses.replace(described, verified=tuple(verified), problems=(*described.problems, *problems))


Found = tuple[list[str], list[str]]  # (what is right, what is not)


def _sums(known: Mapping[Path, str], whose: str, on_bytes: OnBytes | None) -> Found:
    sizes = {file: file.stat().st_size for file in known if file.is_file()}
    before, wrong = 0, []
    for file, said in known.items():
        at = before

        def tell(done: int, _: int, at: int = at) -> None:
            if on_bytes:
                on_bytes(at + done, sum(sizes.values()))

        try:
            if sha256_of(file, tell) != said:
                wrong.append(f"{file} {_DAMAGED.format(whose=whose)}")
        except WeightsError as e:
            wrong.append(str(e))
        before += sizes.get(file, 0)
    right = f"{len(known) - len(wrong)} of {len(known)} files have the SHA-256 that {whose} gives"
    return [right] if known else [], wrong


def _values(files: list[Path]) -> Found:
    bad: list[str] = []
    tensors = 0
    for file in files:
        for problem in _each_tensor(file):
            tensors += 1
            bad += [problem] if problem else []
    right = f"{tensors - len(bad):,} of {tensors:,} tensors hold finite numbers alone"
    return [right], [shorten(bad)] if bad else []


def _each_tensor(file: Path) -> Iterator[str | None]:
    """What is wrong with each tensor's values."""
    try:
        with open_tensors(file) as opened:
            for name in opened.tensors:
                try:
                    opened.view(name)
                    yield None
                except WeightsError as e:
                    yield str(e)
    except WeightsError:  # the description says so
        return


def _unknown(files: list[Path], published: Mapping[Path, str]) -> list[str]:
    names = [file.name for file in files if file not in published]
    said = f"no checksum is known of {shorten(names, 3)}: there a number that changed and is finite can't be told"
    return [said] if names else []


def _converted_values(path: Path) -> Found:
    """Of a folder that was converted before there were checksums."""
    note = f"no checksums are in {orbax_folder.MANIFEST}: convert again to have them; values were read"
    try:
        checkpoint = open_checkpoint(path)
        for component in checkpoint.networks:
            with checkpoint.leaves(component) as leaves:
                for leaf in leaves.dtypes:
                    leaves.read(leaf)
    except (WeightsError, ConfigError) as e:
        return [note], [str(e)]
    return [note], []
