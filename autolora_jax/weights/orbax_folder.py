"""The converted form: a diffusers folder with Orbax trees in place of safetensors.

    OUT/autolora.json           manifest: format, dtypes, source, size and SHA-256 of every other file; written last
    OUT/<component>/orbax/      the component's parameter tree
    OUT/model_index.json, OUT/scheduler/, OUT/tokenizer…/, OUT/<component>/config.json: as in diffusers

Restoring reads every leaf straight onto its devices: each process and device only its own part, cast on the way.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jaxtyping import DTypeLike

from autolora_jax.config import ConfigError, read_json
from autolora_jax.files import is_litter
from autolora_jax.models.networks import Networks
from autolora_jax.weights import reads
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.files import require_finite, sha256_of
from autolora_jax.weights.hub import Folder, LocalFolder
from autolora_jax.weights.placing import Kept, Placement, as_it_is, cast, place
from autolora_jax.weights.rules import Shape, flat_shapes
from autolora_jax.weights.streaming import Leaves

MANIFEST = "autolora.json"
FORMAT = "autolora-jax checkpoint"
VERSION = 1
_RUN_BYTES = 1 << 26  # of leaves that are restored together where they are asked for one by one


class OrbaxWeights(NamedTuple):
    """One component of a converted folder."""

    path: Path

    def stored(self) -> dict[str, tuple[Shape, str]]:
        """{"a/b/kernel": (shape, dtype name)}, without reading weights."""
        with _reading(self.path), _checkpointer() as checkpointer:
            tree = checkpointer.metadata(self.path).item_metadata.tree
        flat = traverse_util.flatten_dict(tree, sep="/")
        return {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in flat.items()}

    def paths(self) -> list[Path]:
        """The files that it is read from, in a fixed order."""
        return sorted(path for path in self.path.rglob("*") if path.is_file() and not is_litter(path.name))

    def check(self, targets: Mapping[str, Any]) -> None:
        """Raises WeightsError when the stored tree is not the one expected."""
        stored, wanted = {path: shape for path, (shape, _) in self.stored().items()}, flat_shapes(targets)
        kinds = {
            "missing": [f"{p} {list(s)}" for p, s in wanted.items() if p not in stored],
            "not expected": [f"{p} {list(s)}" for p, s in stored.items() if p not in wanted],
            "of another shape": [
                f"{p} {list(s)}, where {list(wanted[p])} is expected"
                for p, s in stored.items()
                if s != wanted.get(p, s)
            ],
        }
        if problems := [f"{len(found)} arrays {kind}: {shorten(found)}" for kind, found in kinds.items() if found]:
            raise WeightsError(f"{self.path} does not fit this network:\n  " + "\n  ".join(problems))

    def load(
        self, targets: Mapping[str, Any], dtype: DTypeLike, placement: Placement, kept: Kept = as_it_is
    ) -> dict[str, Any]:
        """The parameter tree, every leaf restored onto its devices in this dtype. kept: see Checkpoint.load."""
        reads.named(self.paths)
        if kept is not as_it_is:  # one by one, so that they never lie there together as they were
            wide, shapes = np.dtype(jnp.dtype(dtype)), flat_shapes(targets)
            with self.leaves(targets) as leaves:
                one_by_one = {
                    path: kept(path, place(cast(leaves.read(path), wide, path), path, placement)) for path in shapes
                }
            return dict(traverse_util.unflatten_dict(one_by_one, sep="/"))
        default = jnp.zeros(()).sharding  # honours jax.default_device

        def wanted(path: str, shape: Shape) -> jax.ShapeDtypeStruct:
            sharding = placement(path, shape) if callable(placement) else placement
            return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding or default)

        flat = {path: wanted(path, shape) for path, shape in flat_shapes(targets).items()}
        # Host memory that a restore may use at a time has to be more than the largest leaf.
        dtypes = {str(jnp.dtype(dtype)), *(stored for _, stored in self.stored().values())}
        value = max(jnp.dtype(name).itemsize for name in dtypes)
        in_flight = 1.1 * value * max(math.prod(leaf.shape) for leaf in flat.values())
        with _reading(self.path), _checkpointer(in_flight) as checkpointer:
            tree: dict[str, Any] = checkpointer.restore(self.path, traverse_util.unflatten_dict(flat, sep="/"))
        return tree

    @contextmanager
    def leaves(self, targets: Mapping[str, Any]) -> Iterator[Leaves]:
        """Its leaves, while the folder is open. Raises WeightsError like `check`."""
        self.check(targets)
        found = self.stored()
        stored = {
            path: jax.ShapeDtypeStruct(shape, jnp.dtype(found[path][1])) for path, shape in flat_shapes(targets).items()
        }
        runs = {path: run for run in _runs(stored) for path in run}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:

            @lru_cache(maxsize=1)
            def restored(run: tuple[str, ...]) -> dict[str, np.ndarray]:
                item = traverse_util.unflatten_dict({path: stored[path] for path in run}, sep="/")
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
                part = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
                with _reading(self.path):
                    return traverse_util.flatten_dict(checkpointer.restore(self.path, args=part), sep="/")

            def read(path: str) -> np.ndarray:
                leaf = restored(runs[path])[path]
                require_finite(leaf, f"{self.path}: {path}")
                return leaf

            yield Leaves({path: np.dtype(leaf.dtype) for path, leaf in stored.items()}, read)


def _runs(stored: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[tuple[str, ...]]:
    """Neighbouring leaves that are read together, because every restore opens the folder anew."""
    run: list[str] = []
    size = 0
    for path, leaf in stored.items():
        size += leaf.size * leaf.dtype.itemsize
        if run and size > _RUN_BYTES:
            yield tuple(run)
            run, size = [], leaf.size * leaf.dtype.itemsize
        run.append(path)
    yield tuple(run)


def open_weights(folder: Folder, networks: Networks) -> dict[str, OrbaxWeights]:
    """The components of a converted folder. Raises WeightsError when it is not whole."""
    if not isinstance(folder, LocalFolder):
        raise WeightsError(f"{folder.where} is a converted folder; download all of it (hf download) and give its path")
    manifest = read_manifest(folder.root)
    sizes = {name: _size(folder.root / name) for name in manifest["files"]}
    if wrong := [
        f"{n} ({size} bytes, not {manifest['files'][n]})" for n, size in sizes.items() if size != manifest["files"][n]
    ]:
        raise WeightsError(f"{folder.where}: {shorten(wrong)}; the folder is damaged, convert or copy it again")
    if absent := [component for component in networks if component not in manifest["dtypes"]]:
        raise WeightsError(f"{folder.where} has no {', '.join(absent)}; convert the checkpoint again")
    return {component: OrbaxWeights((folder.root / component / "orbax").absolute()) for component in manifest["dtypes"]}


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest. Raises WeightsError for one that this version does not know."""
    try:
        manifest = read_json(root / MANIFEST)
    except ConfigError as e:
        raise WeightsError(f"{e}") from None
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise WeightsError(
            f"{root / MANIFEST} has format {manifest.get('format')!r} version {manifest.get('version')!r}; "
            f"{FORMAT!r} version {VERSION} is expected. Convert the checkpoint again"
        )
    if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("dtypes"), dict):
        raise WeightsError(f"{root / MANIFEST} lists no files or dtypes; convert the checkpoint again")
    return manifest


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    Raises WeightsError when `out` exists or can't be written.
    """
    require_new(out)
    part = out.with_name(f"{out.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(out)
    except OSError as e:
        raise WeightsError(f"{out} can't be written: {e.strerror or e}; nothing is left of it") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def require_new(out: Path) -> None:
    """Raises WeightsError when something is there already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WeightsError(f"{out} already exists; remove it or choose another name")


def require_space(out: Path, needed: int) -> None:
    """Raises WeightsError when the disk of `out` has fewer free bytes than needed."""
    parent = next(p for p in out.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise WeightsError(
            f"{out} needs up to {needed / 1e9:.1f} GB, {parent} has {free / 1e9:.1f} GB left; choose another disk"
        )


def write_component(path: Path, params: Mapping[str, Any]) -> None:
    """Writes a parameter tree to path/orbax. Raises OSError when that fails, whatever Orbax raises."""
    try:
        with quiet(), _writer() as checkpointer:
            checkpointer.save((path / "orbax").absolute(), dict(params))
    except Exception as e:  # tensorstore's errors have no class of their own; a full disk comes as ValueError
        raise OSError(brief(e)) from e


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_manifest(
    root: Path, source: str, source_files: Mapping[str, Mapping[str, int]], dtypes: Mapping[str, str]
) -> None:
    """The manifest of all files under root. source_files: component -> name -> bytes. dtypes: component -> name."""
    paths = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    content = {"format": FORMAT, "version": VERSION, "source": source, "source_files": source_files, "dtypes": dtypes}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    sums = {name: sha256_of(path) for name, path in paths.items()}
    write_json(root / MANIFEST, {**content, "files": sizes, "sha256": sums})


def brief(e: Exception) -> str:
    """The end of the first line: tensorstore's messages go from the general to the cause, and on to its settings."""
    line = (str(e) or type(e).__name__).splitlines()[0].partition(" [tensorstore_spec")[0]
    return line if len(line) < 200 else "…" + line[-200:]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _writer() -> ocp.Checkpointer:
    # Compressed, bfloat16 weights are a fifth smaller and take twice the time to load, and to write.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def _checkpointer(in_flight: float = 1e9) -> ocp.Checkpointer:
    """in_flight: bytes."""
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(restore_concurrent_gb=in_flight / 1e9))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        with quiet():
            yield
    except WeightsError:
        raise
    except Exception as e:  # tensorstore's errors have no class of their own
        raise WeightsError(f"{path} can't be read: {brief(e)}; convert the checkpoint again") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Orbax reports every phase to absl's logger, and failures that it raises as well; the library is silent."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
