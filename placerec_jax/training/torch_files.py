"""Reads weight files of torch models without torch: `.safetensors`, and zips (`.pth`, `.pt`, `.bin`).

A `.pth` is a zip of raw arrays and a pickle that says how they belong together. A pickle may call anything,
so this one may call nothing but what puts arrays into dictionaries; any other name in it is refused before
anything runs.
"""

import collections
import io
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from placerec_jax.errors import UserError

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_SAFETENSORS = {
    "F32": np.float32,
    "F64": np.float64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "base_model",
    "net",
)  # keys that training scripts use
_MAX_HEADER = 100 * 2**20  # bytes, of a safetensors header; the format's own limit
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # of files before torch 1.6
_RESAVE = "torch.save(model.state_dict(), NEW)"


class WeightsError(UserError, ValueError):
    """A file of pretrained weights cannot be read, or is not of this network."""


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a state dict, in the order and with the dtypes of the file; arrays are read-only.

    A dictionary that wraps the state dict ({"state_dict": ..., "epoch": 3}) is opened; what is no tensor
    beside it is left out.

    Raises:
        WeightsError: no such file, truncated, of another format, without tensors, or a pickle that asks for
            more than tensors; the message names what was found and how to save the weights again.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if start[:2] == b"PK":
        return _read_zip(path)
    if start.startswith(_LEGACY_MAGIC) or start[257:262] == b"ustar":
        raise WeightsError(
            f"{path}: in the format of torch before 1.6; expected a zip file, as torch.save writes since. "
            f"With torch: torch.save(torch.load({path.name!r}, weights_only=True), NEW)"
        )
    if len(start) > 8 and start[8:9] == b"{":
        return _read_safetensors(path)
    raise WeightsError(
        f"{path}: neither a zip file as torch.save writes it nor safetensors (it starts with {start[:8]!r}); "
        f"expected a .pth, .pt, .bin or .safetensors file. With torch: {_RESAVE}"
    )


# --- safetensors: u64 length, JSON header of that length, the arrays one after the other


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= min(_MAX_HEADER, len(content) - 8):
        raise WeightsError(
            f"{path}: truncated or damaged: its header should be {length} bytes long and {len(content) - 8} "
            "bytes follow. Copy it again."
        )
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError as error:
        raise WeightsError(f"{path}: damaged: its header is no JSON ({error}). Copy it again.") from error
    body = memoryview(content)[8 + length :]
    return _tensors_only(
        path,
        {
            name: _safetensor(path, name, entry, body)
            for name, entry in header.items()
            if name != "__metadata__"
        },
    )


def _safetensor(path: Path, name: str, entry: Any, body: memoryview) -> np.ndarray:
    try:
        (begin, end), shape, kind = entry["data_offsets"], entry["shape"], entry["dtype"]
        shape = tuple(_count(size) for size in shape)
        begin, end = _count(begin), _count(end)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: damaged: entry {name!r} is {str(entry)[:200]}. Copy it again."
        ) from error
    if kind not in _SAFETENSORS:
        raise WeightsError(f"{path}: {name} has dtype {kind!r}; expected one of {sorted(_SAFETENSORS)}.")
    dtype = np.dtype(_SAFETENSORS[kind])
    expected = math.prod(shape) * dtype.itemsize
    if end - begin != expected or end > len(body):
        raise WeightsError(
            f"{path}: truncated or damaged: {name} is {kind}{list(shape)}, {expected} bytes, and stands at "
            f"bytes {begin} to {end} of {len(body)}. Copy it again."
        )
    return np.frombuffer(body[begin:end], dtype).reshape(shape)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(value)
    return value


# --- zip files of torch.save: NAME/data.pkl, NAME/byteorder, NAME/data/0, NAME/data/1, ...


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            return _tensors_only(path, _unpickle(path, archive))
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise WeightsError(
            f"{path}: truncated or damaged zip file ({error}). Copy it again, or with torch: {_RESAVE}"
        ) from error


def _unpickle(path: Path, archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(
            f"{path}: a zip file, but not of torch.save: expected one NAME/data.pkl in it, found "
            f"{names[:8]}. With torch: {_RESAVE}"
        )
    folder = pickles[0].split("/")[0]
    if f"{folder}/constants.pkl" in names:
        raise WeightsError(
            f"{path}: a TorchScript program; expected its weights alone. With torch: "
            f"torch.save(torch.jit.load({path.name!r}).state_dict(), NEW)"
        )
    # torch stores without compression, so no entry can unfold to more than the file holds.
    packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise WeightsError(
            f"{path}: {packed[0]} is compressed, which torch.save never does. With torch: {_RESAVE}"
        )
    order = f"{folder}/byteorder"
    if order in names and archive.read(order) != b"little":
        raise WeightsError(f"{path}: of a big-endian machine; on a little-endian one, with torch: {_RESAVE}")
    try:
        return _TensorUnpickler(path, archive, folder).load()
    except (WeightsError, zipfile.BadZipFile):
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise WeightsError(
            f"{path}: its data.pkl cannot be read ({type(error).__name__}: {error}). With torch: {_RESAVE}"
        ) from error


class _TensorUnpickler(pickle.Unpickler):
    """Builds dictionaries of NumPy arrays; a name beyond what that needs raises WeightsError."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self._path, self._archive, self._folder = path, archive, folder
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) in _REBUILDERS:
            return _REBUILDERS[module, name]
        if module == "torch" and name in _STORAGES:
            return _Dtype(_STORAGES[name])
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return _Dtype(np.uint8)
        if module == "torch" and name in _TORCH_DTYPES:
            return _Dtype(_TORCH_DTYPES[name])
        raise WeightsError(
            f"{self._path}: asks for {module}.{name}, which weights have no need of; nothing of it was run. "
            f"Expected tensors in dictionaries. If you trust the file, with torch: {_RESAVE}"
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        """("storage", type, key, device, number of elements) → (n,) array."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, _Dtype) or not isinstance(key, str):
            raise ValueError(f"unknown reference {str(pid)[:200]}")
        if key not in self._storages:
            stored = np.frombuffer(self._archive.read(f"{self._folder}/data/{key}"), dtype.numpy)
            if stored.size != _count(count):
                raise ValueError(f"data/{key} holds {stored.size} elements, expected {count}")
            self._storages[key] = stored
        return self._storages[key]


class _Dtype:
    """A dtype that a pickle named. Without a `__dict__`: a pickle cannot change it."""

    __slots__ = ("numpy",)

    def __init__(self, dtype: Any) -> None:
        object.__setattr__(self, "numpy", np.dtype(dtype))

    def __setattr__(self, name: str, value: Any) -> None:
        raise ValueError(f"the pickle sets {name!r} of a dtype")


class _Rebuild:
    """A function that a pickle may call. Without a `__dict__`: a pickle cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ValueError(f"the pickle sets {name!r} of a function")

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """The view that torch's arguments describe; ValueError where it would leave its storage."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(shape) != len(strides):
        raise ValueError("a tensor without a storage, or with as many strides as it has no axes")
    offset, shape, strides = _count(offset), tuple(map(_count, shape)), tuple(map(_count, strides))
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    # A stride of 0 repeats values: weights have none, and a few bytes could pretend to be terabytes.
    if math.prod(shape) > storage.size or (math.prod(shape) and last >= storage.size):
        raise ValueError(f"a tensor of shape {list(shape)} reaches beyond its {storage.size} elements")
    step = storage.itemsize
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [step * stride for stride in strides], writeable=False
    )


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, dtype: Any, *_: Any
) -> np.ndarray:
    """As `_tensor`, of a storage of bytes."""
    del gradient, hooks
    if not isinstance(dtype, _Dtype) or not isinstance(storage, np.ndarray):
        raise ValueError("a tensor without a dtype or a storage")
    return _tensor(storage.view(dtype.numpy), offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_TORCH_DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
}
_REBUILDERS = {
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Rebuild(_typed_tensor),
    ("torch._utils", "_rebuild_parameter"): _Rebuild(_parameter),
    ("torch", "Size"): _Rebuild(tuple),
}


# --- What both formats share


def _tensors_only(path: Path, content: Any) -> dict[str, np.ndarray]:
    """The state dict within `content`."""
    found = _tensors(content)
    if not found and isinstance(content, dict):
        found = next(filter(None, (_tensors(dict.get(content, key)) for key in _WRAPPERS)), {})
    if not found:
        seen = (
            f"a dictionary with {list(content)[:8]}" if isinstance(content, dict) else type(content).__name__
        )
        raise WeightsError(
            f"{path}: no tensors by name in it: found {seen}; expected a state dict, or one under "
            f"{' or '.join(_WRAPPERS)}. With torch: {_RESAVE}"
        )
    return found


def _tensors(content: Any) -> dict[str, np.ndarray]:
    if not isinstance(content, dict):
        return {}
    # Not content.items(): a pickle may have given its dictionary an attribute of that name.
    pairs = dict.items(content)
    return {name: value for name, value in pairs if isinstance(name, str) and isinstance(value, np.ndarray)}
