"""Safetensors files, read safely: one file or shards, shapes without data, one tensor at a time.

Only the safetensors format is read. It can't execute code; pickles (.ckpt, .pt, .bin, whatever their extension) can, so
they are recognised by their first bytes and refused unopened. Every way in which a file can be bad is a WeightsError
that names the file, the tensor where there is one, and what to do.
"""

import hashlib
import json
import mmap
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from autolora_jax import foreign
from autolora_jax.weights import reads
from autolora_jax.weights.errors import WeightsError, printable, shorten

# safetensors' dtype names of what we compute with; ml_dtypes is what teaches numpy (and safetensors) bfloat16.
FLOATS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Plain casts, as T5 is published in: each value is one of bfloat16's, too, and is read as that.
EIGHT_BIT: dict[str, np.dtype] = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
# What stands beside 8-bit floats in ComfyUI's files: a weight's factor, which is multiplied into it in float32; the one
# of its inputs, which only products in 8 bits need; marks. Source: ComfyUI comfy/ops.py scaled_fp8_ops, quant_ops.py.
_FACTOR = re.compile(r"(.*)\.(scale_weight|weight_scale)")
_BESIDE = re.compile(r"(.*\.)?(scaled_fp8|scale_input|input_scale|comfy_quant)")
WEIGHTS = FLOATS | EIGHT_BIT
# What no weight is, but an alpha or a buffer may be.
_OTHERS: dict[str, np.dtype] = {"BOOL": np.dtype(np.bool_)} | {
    f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)
}
_READABLE = WEIGHTS | _OTHERS
OnBytes = Callable[[int, int], None]  # (bytes done, bytes in all)
_PIECE = 1 << 23  # bytes of a file read at a time
_LONGEST_NAME = 500  # characters; patterns that names are searched for may take their square
_CHUNK = 1 << 18  # elements looked at together in search of NaN: as many as the processor's caches hold


class TensorInfo(NamedTuple):
    """What the header says about a tensor. dtype: safetensors' name, "F16"."""

    shape: tuple[int, ...]
    dtype: str
    file: Path
    factor: float | None = None  # what its 8-bit floats are multiplied by, if anything

    @property
    def read_as(self) -> np.dtype:
        """What reading gives, which loses nothing."""
        return FLOATS["F32" if self.factor is not None else self.dtype if self.dtype in FLOATS else "BF16"]


_AGAIN = "download it again"
_CONVERT = (
    "it is a pickle, which can run any code when opened, and is never opened here; get the .safetensors version, or "
    "convert it with a program you trust in a place where it can do no harm"
)


# (what a file is, how its first 16 bytes tell, what to say). The first row that fits.
_KINDS: tuple[tuple[str, Callable[[bytes], bool], str], ...] = (
    ("empty", lambda h: not h, f"it is empty; {_AGAIN}"),
    ("safetensors", lambda h: len(h) > 8 and h[8:9] == b"{", ""),
    ("pickle", lambda h: h[:4] == b"PK\x03\x04", _CONVERT),  # torch.save since 1.6 is a zip of pickles
    ("pickle", lambda h: h[:1] == b"\x80" and h[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"), _CONVERT),
    ("gguf", lambda h: h[:4] == b"GGUF", "GGUF files (quantised) are not supported; get the .safetensors version"),
    ("git-lfs pointer", lambda h: h.startswith(b"version https://"), "it is a git-lfs pointer; run `git lfs pull`"),
    ("web page", lambda h: h.lstrip()[:5].lower() in (b"<!doc", b"<html"), f"it is a web page, not weights; {_AGAIN}"),
    ("unknown", lambda h: True, f"it is not a safetensors file; {_AGAIN}"),
)


def kind_of(path: Path) -> tuple[str, str]:
    """(what its first bytes say a file is, why it can't be loaded or ""). Raises WeightsError when unreadable."""
    try:
        with foreign.open_file(path) as f:
            head = f.read(16)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except OSError as e:
        raise WeightsError(f"{path} can't be read: {e.strerror}") from None
    return next((kind, why) for kind, fits, why in _KINDS if fits(head))


class TensorFiles:
    """The tensors of one safetensors file, or of all shards of an index, memory-mapped. A context manager."""

    def __init__(self, files: Iterable[Path], where: str) -> None:
        self.where = where
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._open: dict[Path, _Mapped] = {}
        for path in files:
            self._add(path)

    def _add(self, path: Path) -> None:
        kind, why = kind_of(path)
        if kind != "safetensors":
            raise WeightsError(f"{path} can't be loaded: {why}")
        try:
            opened = safe_open(path, framework="numpy")
            slices = ((name, opened.get_slice(name)) for name in opened.offset_keys())  # as they lie on the disk
            found = {name: TensorInfo(tuple(s.get_shape()), s.get_dtype(), path) for name, s in slices}
        except (SafetensorError, OSError) as e:
            size = path.stat().st_size
            raise WeightsError(
                f"{path} is broken ({printable(str(e))}); its {size} bytes may be an incomplete download: {_AGAIN}"
            ) from None
        if long := [name for name in found if len(name) > _LONGEST_NAME]:
            raise WeightsError(f"{path} has a name of {len(long[0])} characters, which no model's tensor has; {_AGAIN}")
        found = _with_factors(path, opened, found)
        if twice := sorted(found.keys() & self.tensors.keys()):
            raise WeightsError(f"{path}: {shorten(twice)} stand in another shard, too; {_AGAIN}")
        self._open[path] = _Mapped(path)  # safetensors has checked that its header and its size are right
        self.tensors |= found
        self.metadata |= opened.metadata() or {}

    def read(self, name: str) -> np.ndarray:
        """One tensor, a copy in memory of its own; 8-bit floats as bfloat16, or float32 where they have a factor.

        Raises WeightsError when it holds NaN or infinity.
        """
        tensor = self.view(name)
        return tensor if tensor.flags.owndata else tensor.copy()

    def view(self, name: str) -> np.ndarray:
        """As `read`, but where it can be the file's own bytes, mapped into memory: they change when the file does."""
        info = self.tensors[name]
        if info.dtype not in _READABLE:
            known = ", ".join(_READABLE)
            raise WeightsError(f"{info.file}: {printable(name)} ({info.dtype}) can't be read; known are {known}")
        tensor = self._open[info.file].view(name, _READABLE[info.dtype], info.shape)
        if info.dtype in EIGHT_BIT:
            tensor = tensor.astype(info.read_as)
            if info.factor is not None:
                tensor *= np.float32(info.factor)
        if info.dtype in WEIGHTS:
            require_finite(tensor, f"{info.file}: {printable(name)}")
        return tensor

    def number(self, name: str) -> float:
        """The one number that a tensor holds, of any dtype. Raises WeightsError for anything else."""
        info = self.tensors[name]
        if info.shape not in ((), (1,)):
            raise WeightsError(f"{info.file}: {printable(name)} is {list(info.shape)}, expected one number")
        try:
            return float(self.read(name).reshape(()))
        except TypeError:
            raise WeightsError(f"{info.file}: {printable(name)} is {info.dtype}, expected a real number") from None

    def require_floats(self, names: Iterable[str]) -> None:
        """Raises WeightsError naming tensors of these whose dtype can't be a weight."""
        if wrong := [f"{n} is {self.tensors[n].dtype}" for n in names if self.tensors[n].dtype not in WEIGHTS]:
            advice = f"weights should be one of {', '.join(WEIGHTS)}; get an unquantised version"
            raise WeightsError(f"{self.where}: {shorten(wrong)}; {advice}")

    def close(self) -> None:
        self._open.clear()

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Mapped:
    """The bytes of a safetensors file that has been found sound."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._on_read = reads.opened(path, file)
        self._start = 8 + int.from_bytes(self._bytes[:8], "little")
        self._header = json.loads(self._bytes[8 : self._start])

    def view(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor: the file's bytes, read-only; a copy where they lie crooked."""
        self._on_read()
        begin, end = self._header[name]["data_offsets"]
        if begin == end:  # there is nothing to map at the file's end
            return np.empty(shape, dtype)
        flat = np.frombuffer(self._bytes, dtype, (end - begin) // dtype.itemsize, self._start + begin)
        return (flat if flat.flags.aligned else flat.copy()).reshape(shape)


def _with_factors(path: Path, opened: safe_open, found: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors without what only says how others are quantised. Raises WeightsError where that is unknown."""
    factors = {f"{match[1]}.weight": name for name in found if (match := _FACTOR.fullmatch(name))}
    beside = [name for name in found if _BESIDE.fullmatch(name)]
    said = [name for name in beside if name.endswith("comfy_quant")]
    odd = [name for name in said if found[name].dtype != "U8" or not _of_eight_bits(opened.get_tensor(name))]
    odd += [
        factor
        for weight, factor in factors.items()
        if weight not in found
        or found[weight].dtype not in EIGHT_BIT
        or found[factor].dtype not in FLOATS
        or found[factor].shape not in ((), (1,))
    ]
    if odd:
        raise WeightsError(
            f"{path} is quantised: {shorten(odd, 3)} belong to weights that are no 8-bit floats with one factor each, "
            "which alone are supported; get the fp16 or bf16 version"
        )
    values = {weight: float(opened.get_tensor(factor).reshape(())) for weight, factor in factors.items()}
    if bad := [factors[weight] for weight, value in values.items() if not np.isfinite(value)]:
        raise WeightsError(f"{path}: {shorten(bad, 3)} are not finite; the file is damaged")
    kept = {name: info for name, info in found.items() if name not in {*factors.values(), *beside}}
    return {name: info._replace(factor=values.get(name)) for name, info in kept.items()}


def _of_eight_bits(said: np.ndarray) -> bool:
    """Whether ComfyUI's JSON beside a weight, as bytes, speaks of 8-bit floats."""
    try:
        return str(foreign.parse_object(said.tobytes()).get("format", "")).startswith("float8_")
    except ValueError:
        return False


def open_tensors(path: Path) -> TensorFiles:
    """The tensors of a safetensors file, or of the shards that a `*.index.json` names. Raises WeightsError."""
    if ".safetensors.index." in path.name:  # model.safetensors.index.json, model.safetensors.index.fp16.json
        return _open_shards(path)
    return TensorFiles([path], str(path))


def shard_names(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index. Raises WeightsError for anything but a plain file name."""
    try:
        weight_map = foreign.read_json_file(index)["weight_map"]
        files = set(weight_map.values())
    except FileNotFoundError:
        raise WeightsError(f"{index} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise WeightsError(f"{index} is not a safetensors index ({type(e).__name__}: {e}); {_AGAIN}") from None
    for file in files:
        if not isinstance(file, str) or Path(file).name != file or file in ("", "..") or "\\" in file or "\0" in file:
            raise WeightsError(
                f"{index} points at {file!r}; a shard must be a plain file name beside its index. Don't trust this file"
            )
        if not file.endswith(".safetensors"):
            raise WeightsError(
                f"{index} points at {file}, which is not a .safetensors file; get the safetensors shards"
            )
    return weight_map


def _open_shards(index: Path) -> TensorFiles:
    weight_map = shard_names(index)
    files = {name: index.parent / name for name in sorted(set(weight_map.values()))}
    if missing := [name for name, path in files.items() if not path.exists()]:
        raise WeightsError(f"{index} names {shorten(missing)}, which {index.parent} does not hold; download them")
    opened = TensorFiles(files.values(), str(index))
    elsewhere = [n for n, f in weight_map.items() if n not in opened.tensors or opened.tensors[n].file.name != f]
    if unlisted := sorted(opened.tensors.keys() - weight_map.keys()) + elsewhere:
        raise WeightsError(f"{index} and its shards disagree about {shorten(unlisted)}; download all of them again")
    return opened


def require_finite(tensor: np.ndarray, what: str) -> None:
    """Raises WeightsError when a float tensor holds NaN or infinity."""
    flat = np.ascontiguousarray(tensor).reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        if all_finite(chunk):
            continue
        with np.errstate(invalid="ignore"):  # bfloat16's signalling NaN
            at = start + int(np.argmin(np.isfinite(chunk)))
        index = [int(i) for i in np.unravel_index(at, tensor.shape)]
        raise WeightsError(f"{what} holds {flat[at]} at {index}; the file is damaged or its training diverged")


def all_finite(chunk: np.ndarray) -> bool:
    """Whether floats [n] are neither NaN nor infinity, in two passes over whole numbers and no memory.

    Infinity's bits, as a whole number, are above those of all finite floats of its sign, and NaN's above infinity's. As
    signed numbers the positive floats come last, as unsigned ones the negative.
    """
    signed, unsigned = (chunk.view(f"{kind}{chunk.dtype.itemsize}") for kind in "iu")
    infinity = np.array([np.inf, -np.inf], chunk.dtype).view(unsigned.dtype)
    return int(signed.max()) < int(infinity[0]) and int(unsigned.max()) < int(infinity[1])


def sha256_of(path: Path, on_bytes: OnBytes | None = None) -> str:
    """The file's sha256, 64 hex digits. It is read piece by piece. Raises WeightsError for an unreadable file."""
    digest, done = hashlib.sha256(), 0
    try:
        with foreign.open_file(path) as file:
            total = path.stat().st_size
            while piece := file.read(_PIECE):
                digest.update(piece)
                done += len(piece)
                if on_bytes:
                    on_bytes(done, total)
    except OSError as e:
        raise WeightsError(f"{path} can't be read: {e.strerror}") from None
    return digest.hexdigest()
