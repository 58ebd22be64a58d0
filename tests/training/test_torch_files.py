"""Reading torch's files without torch: what torch and safetensors wrote, and what nobody should open."""

import collections
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from placerec_jax.training.torch_files import WeightsError, read_state_dict

DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def tensors() -> dict[str, torch.Tensor]:
    """Every dtype, a scalar, an empty tensor; values that the dtypes hold exactly."""
    torch.manual_seed(0)
    values = {f"x.{dtype}": torch.randint(0, 2, (3, 4, 2)).to(dtype) for dtype in DTYPES}
    return values | {"scalar": torch.tensor(7), "empty": torch.zeros(0, 3)}


def assert_read(path: Path, expected: dict[str, torch.Tensor]) -> None:
    found = read_state_dict(path)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found[name].astype(np.float64), tensor.detach().double().numpy())


def test_safetensors_file(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(tensors(), path, metadata={"format": "pt"})
    assert_read(path, tensors())


def test_torch_file(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(tensors(), path)
    assert_read(path, tensors())


def test_views_share_a_storage(tmp_path):
    base = torch.arange(24.0)
    expected = {
        "transposed": base.view(4, 6).T,
        "slice": base.view(4, 6)[1:3, ::2],
        "whole": base,
        "tail": base[20:],
    }
    torch.save(expected, tmp_path / "w.pt")
    assert_read(tmp_path / "w.pt", expected)


def test_parameters_and_modules_of_a_network(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(network.state_dict(), tmp_path / "state.bin")
    assert_read(tmp_path / "state.bin", network.state_dict())
    torch.save({"state_dict": dict(network.named_parameters()), "epoch": 3}, tmp_path / "wrapped.pth")
    assert_read(tmp_path / "wrapped.pth", dict(network.named_parameters()))


def test_dtypes_without_a_storage_class_of_their_own(tmp_path):
    expected = {"x": torch.arange(12).to(torch.uint16).view(3, 4)[1:]}
    torch.save(expected, tmp_path / "w.pth")
    assert_read(tmp_path / "w.pth", expected)


def test_needs_neither_torch_nor_safetensors(tmp_path):
    torch.save(tensors(), tmp_path / "w.pth")
    safetensors.torch.save_file(tensors(), tmp_path / "w.safetensors")
    script = (
        "import sys; from placerec_jax.training.torch_files import read_state_dict\n"
        "for name in sys.argv[1:]: read_state_dict(name)\n"
        "assert not {'torch', 'safetensors'} & set(sys.modules)"
    )
    files = [str(tmp_path / "w.pth"), str(tmp_path / "w.safetensors")]
    subprocess.run([sys.executable, "-c", script, *files], check=True, cwd=Path(__file__).parents[2])


# --- Damaged, or of another format


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_truncated(suffix, share, tmp_path):
    path = tmp_path / f"w{suffix}"
    content = {"x": torch.ones(100, 100), "y": torch.ones(50)}
    safetensors.torch.save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match=r"truncated|damaged|no JSON") as error:
        read_state_dict(path)
    assert str(path) in str(error.value)


def test_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"x": torch.ones(1000)}, path)
    content = bytearray(path.read_bytes())
    content[content.find(np.ones(8, np.float32).tobytes()) + 400] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="CRC"):
        read_state_dict(path)


def test_legacy_files_say_how_to_save_them_again(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"x": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"before 1\.6.*torch\.save\(torch\.load\('old\.pth'"):
        read_state_dict(path)


def test_torchscript_is_named(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))
    with pytest.raises(WeightsError, match=r"TorchScript.*torch\.jit\.load\('script\.pt'\)\.state_dict"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"abc", b"<html>not found</html>" * 50, bytes(600)])
def test_something_else(content, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"expected a \.pth, \.pt, \.bin or \.safetensors file"):
        read_state_dict(path)


def test_absent_file_and_folder(tmp_path):
    with pytest.raises(WeightsError, match="No such file"):
        read_state_dict(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="Is a directory"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": 1, "b": "c"}, {"model": {"epoch": 1}}])
def test_no_tensors_by_name(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no tensors by name"):
        read_state_dict(tmp_path / "w.pth")


def test_compressed_archives_are_refused(tmp_path):
    """They could unfold to any size; torch never writes one."""
    torch.save({"x": torch.zeros(1000)}, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as plain,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(WeightsError, match="compressed"):
        read_state_dict(tmp_path / "packed.pth")


def safetensors_file(path: Path, header: object, body: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F8", "shape": [8], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        [],
    ],
)
def test_safetensors_entries_that_cannot_be(entry, tmp_path):
    with pytest.raises(WeightsError, match=r"w\.safetensors: .*x"):
        read_state_dict(safetensors_file(tmp_path / "w.safetensors", {"x": entry}, bytes(8)))


def test_safetensors_headers_that_cannot_be(tmp_path):
    with pytest.raises(WeightsError, match="no JSON"):
        read_state_dict(safetensors_file(tmp_path / "a.safetensors", b"{]  ", bytes(600)))
    path = tmp_path / "b.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}" + bytes(600))
    with pytest.raises(WeightsError, match="truncated or damaged"):
        read_state_dict(path)


# --- Hostile pickles


class Reduces:
    """Pickles to a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def archive_of(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        archive.writestr("w/byteorder", "little")
        for key, content in (storages or {}).items():
            archive.writestr(f"w/data/{key}", content)
    return path


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((os.system, "touch {}"), "system"),
        ((eval, "open({!r}, 'w')"), "builtins.eval"),
        ((open, "{}", "w"), "open"),
        ((subprocess.Popen, ["touch", "{}"]), "subprocess.Popen"),
        ((getattr, collections.OrderedDict, "__init__"), "builtins.getattr"),
    ],
)
def test_hostile_pickles_are_refused_by_name(call, name, tmp_path):
    canary = tmp_path / "canary"
    function, *arguments = (part.format(canary) if isinstance(part, str) else part for part in call)
    pickled = pickle.dumps({"x": Reduces(function, *arguments)}, protocol=4)
    with pytest.raises(WeightsError, match="nothing of it was run") as error:
        read_state_dict(archive_of(tmp_path / "w.pth", pickled))
    assert name in str(error.value)
    assert not canary.exists()


def test_a_whole_module_is_refused_by_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        read_state_dict(tmp_path / "w.pth")


class ByHand(pickle._Pickler):
    """Writes torch's names and references as text, so that a test can choose any arguments."""

    def tensor(self, offset, shape, strides, count=4, key="0"):
        return _Tensor(offset, shape, strides, count, key)

    def persistent_id(self, value):
        return value.reference if isinstance(value, _Storage) else None


class _Storage:
    def __init__(self, key, count):
        self.reference = ("storage", torch.FloatStorage, key, "cpu", count)


class _Tensor:
    def __init__(self, offset, shape, strides, count, key):
        self.arguments = (_Storage(key, count), offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize(
    "arguments",
    [
        (0, (5,), (1,)),  # beyond the storage
        (1, (4,), (1,)),
        (0, (2, 3), (3, 1)),
        (0, (2**40,), (0,)),  # terabytes of one value
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (2,), (1,), 5),  # more than the storage holds
        (0, (2,), (1,), 4, "../0"),
        (0, (True,), (1,)),
    ],
)
def test_tensors_that_leave_their_storage_are_refused(arguments, tmp_path):
    written = io.BytesIO()
    pickler = ByHand(written, protocol=2)
    pickler.dump({"x": pickler.tensor(*arguments)})
    path = archive_of(tmp_path / "w.pth", written.getvalue(), {"0": np.arange(4, dtype=np.float32).tobytes()})
    with pytest.raises(WeightsError, match=r"data\.pkl cannot be read"):
        read_state_dict(path)


def test_the_handwritten_pickle_is_read_where_it_is_right(tmp_path):
    written = io.BytesIO()
    pickler = ByHand(written, protocol=2)
    pickler.dump({"x": pickler.tensor(1, (2,), (2,))})
    path = archive_of(tmp_path / "w.pth", written.getvalue(), {"0": np.arange(4, dtype=np.float32).tobytes()})
    np.testing.assert_array_equal(read_state_dict(path)["x"], [1, 3])


def test_pickles_cannot_change_what_they_may_call(tmp_path):
    """BUILD sets attributes of whatever is on the stack: here of the function that rebuilds tensors."""
    for state in ({"_function": 1}, (None, {"_function": 1})):
        pickled = pickle.dumps(state, protocol=2)[2:-1]  # without PROTO and STOP
        program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + pickled + b"b."
        with pytest.raises(WeightsError, match=r"data\.pkl cannot be read"):
            read_state_dict(archive_of(tmp_path / "w.pth", program))


def test_a_dictionary_that_overrides_its_methods(tmp_path):
    pickled = pickle.dumps({"items": 1, "get": 2, "keys": 3}, protocol=2)[2:-1]
    program = b"\x80\x02ccollections\nOrderedDict\n)R" + pickled + b"b."
    with pytest.raises(WeightsError, match="no tensors by name"):
        read_state_dict(archive_of(tmp_path / "w.pth", program))
