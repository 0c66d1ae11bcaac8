"""Keras' HDF5 files: what is read, and that whatever else such a file may hold is refused."""

from __future__ import annotations

import contextlib
import struct
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fuzz import hdf5_files
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import CheckpointError
from deploykit.networks import checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RANDOM = np.random.default_rng(0)
ARRAYS: dict[str, NDArray[Any]] = {
    "conv1/conv1/kernel:0": RANDOM.standard_normal((3, 3, 2, 4)).astype(np.float32),
    "conv1/conv1/bias:0": np.arange(4, dtype=np.float32),
    "rpn_model/rpn_conv/kernel:0": RANDOM.standard_normal((1, 1, 4, 6)).astype(np.float16),
    "rpn_model/rpn_conv/step:0": np.array([7], np.int64),
    "wide/scale:0": np.array(3.0, np.float64),
}


def test_every_array_is_read_under_its_path(tmp_path: Path) -> None:
    loaded = checkpoint.load(hdf5_files.write(tmp_path / "net.h5", ARRAYS))
    assert loaded.state.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        found = loaded.state[name].numpy()
        assert found.shape == array.shape
        np.testing.assert_array_equal(found, array)


def test_of_a_saved_model_the_weights_are_taken_and_not_the_optimizers(tmp_path: Path) -> None:
    whole = {f"model_weights/{name}": array for name, array in ARRAYS.items()}
    whole |= {f"optimizer_weights/Adam/m_{i}:0": np.ones(9, np.float32) for i in range(30)}
    loaded = checkpoint.load(hdf5_files.write(tmp_path / "net.h5", whole))
    assert loaded.state.keys() == ARRAYS.keys()
    assert "weights taken from 'model_weights'" in loaded.notes


def test_files_of_the_hdf5_library_are_read_alike(tmp_path: Path) -> None:
    """And it reads those of the tests."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file.attrs["layer_names"] = np.array([b"conv1", b"wide"])
        for name, array in ARRAYS.items():
            file.create_dataset(name, data=array)
        for index in range(300):  # more than one node of names holds
            file.create_dataset(f"layer{index}/kernel:0", data=np.full(2, index, np.float32))
    loaded = checkpoint.load(tmp_path / "theirs.h5").state
    assert len(loaded) == len(ARRAYS) + 300
    assert loaded["layer217/kernel:0"].tolist() == [217, 217]
    with h5py.File(hdf5_files.write(tmp_path / "ours.h5", ARRAYS)) as file:
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(file[name][()], array)
            np.testing.assert_array_equal(loaded[name].numpy(), array)


# --- what is refused -----------------------------------------------------------------------------


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    return str(caught.value)


def spoilt(change: dict[int, bytes], arrays: dict[str, NDArray[Any]] = ARRAYS) -> bytes:
    """Return a file with some of its bytes replaced."""
    content = bytearray(hdf5_files.content(arrays))
    for at, part in change.items():
        content[at : at + len(part)] = part
    return bytes(content)


def odd(message: tuple[int, bytes]) -> bytes:
    """Return a file whose only array has one more message, or another in place of its own."""
    writer = hdf5_files.Writer()
    at = writer.add(bytes(400))
    own = {
        1: struct.pack("<BBB5xQ", 1, 1, 0, 100),
        3: hdf5_files.kind_of(np.dtype(np.float32)),
        8: struct.pack("<BBQQ", 3, 1, at, 400),
    }
    found = writer.header(list((own | dict([message])).items()))
    return writer.finish(writer.group({"kernel:0": found}))


CHUNKED = struct.pack("<BBBQ8x", 3, 2, 2, 64)
VIRTUAL = struct.pack("<BBQI4x", 4, 3, 64, 0)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ((11, bytes(16)), "compressed"),
        ((7, bytes(16)), "stored in another file"),
        ((8, CHUNKED), "stored in chunks"),
        ((8, VIRTUAL), "a view of other arrays"),
        ((8, bytes([1, 2, 1, 0])), "laid out as an old or unknown version does"),
        ((3, struct.pack("<4BI", 0x13, 0, 0, 0, 4)), "not of numbers"),
        ((3, struct.pack("<4BIHBBBB4x", 0x11, 0x21, 31, 0, 4, 0, 32, 0, 23, 8)), "high byte"),
        ((2, bytes(16)), "groups of the newer kind"),
    ],
)
def test_what_a_library_would_follow_is_named_and_not_followed(
    message: tuple[int, bytes], said: str, tmp_path: Path
) -> None:
    assert said in refused(tmp_path / "net.h5", odd(message))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({8: b"\x02"}, "a superblock of version 2"),
        ({13: b"\x04"}, "addresses that are not 8 bytes"),
        ({64: struct.pack("<Q", 1 << 40)}, "lie outside of the file"),
        ({64: struct.pack("<Q", 8)}, "object header of another version"),
    ],
)
def test_a_spoilt_start_is_one_message(change: dict[int, bytes], said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path / "net.h5", spoilt(change))


def test_a_group_that_contains_itself_ends(tmp_path: Path) -> None:
    writer = hdf5_files.Writer()
    inner = writer.group({"again": 0})
    content = bytearray(writer.finish(writer.group({"a": inner, "b": inner})))
    node = content.index(b"SNOD")
    content[node + 16 : node + 24] = struct.pack("<Q", inner)
    assert "contains itself" in refused(tmp_path / "net.h5", bytes(content))


def test_groups_that_share_groups_do_not_take_for_ever(tmp_path: Path) -> None:
    """40 levels of two names for one group are 2**40 paths."""
    writer = hdf5_files.Writer()
    at = writer.array(np.ones(3, np.float32))
    for _ in range(40):
        at = writer.group({"a": at, "b": at})
    start = time.process_time()
    message = refused(tmp_path / "net.h5", writer.finish(at))
    assert "more than" in message or "no end" in message
    assert time.process_time() - start < 5


def test_many_names_of_one_array_take_no_memory(tmp_path: Path) -> None:
    """900 names of 4 MB are 3.6 GB, and the file has 4 MB."""
    writer = hdf5_files.Writer()
    each = np.ones(1 << 20, np.float32)
    where = writer.array(each)
    content = writer.finish(writer.group({f"layer{i}": where for i in range(900)}))
    assert "more than 4 times the bytes of the file" in refused(tmp_path / "net.h5", content)


WHOLE = hdf5_files.content(ARRAYS)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8), st.booleans())
def test_a_changed_or_cut_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    at: int,
    part: bytes,
    cut: bool,  # noqa: FBT001 - drawn
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.h5"
    path.write_bytes(WHOLE[:at] if cut and at else WHOLE[:at] + part + WHOLE[at + len(part) :])
    with contextlib.suppress(CheckpointError):
        assert checkpoint.load(path).state
