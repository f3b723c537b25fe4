"""Only regular files are mapped, never writable, and nothing beyond a file's bytes can be read."""

from __future__ import annotations

import os

import numpy as np
import pytest

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.mapped import array_at, bytes_at, check_apart, count, map_file, widen_bfloat16


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(64)))
    return map_file(path)


def test_a_mapped_file_is_its_bytes(data):
    assert data.tobytes() == bytes(range(64))


def test_a_mapped_file_cannot_be_made_writable(data):
    for array in (data, array_at(data, 4, "<f4", (2, 3), "x")):
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_an_array_shares_the_memory_of_the_file(data):
    array = array_at(data, 4, "<u2", (2, 3), "x")
    assert np.shares_memory(array, data)
    assert array.tolist() == [[0x0504, 0x0706, 0x0908], [0x0B0A, 0x0D0C, 0x0F0E]]


def test_an_empty_file_has_no_bytes(tmp_path):
    (tmp_path / "empty").touch()
    assert map_file(tmp_path / "empty").size == 0


def test_replacing_the_file_does_not_change_the_mapped_bytes(data, tmp_path):
    (tmp_path / "new").write_bytes(b"other")
    os.replace(tmp_path / "new", tmp_path / "weights")
    assert data.tobytes() == bytes(range(64))


def test_a_folder_is_not_a_regular_file(tmp_path):
    with pytest.raises(StorageError, match="not a regular file"):
        map_file(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes and devices in the file system")
def test_pipes_and_devices_are_not_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(StorageError, match="not a regular file"):
            map_file(path)


@pytest.mark.parametrize("name", ["missing", "nul\0", "x" * 5000])
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(StorageError, match="cannot read|no such file"):
        map_file(tmp_path / name)


@pytest.mark.parametrize(("offset", "size"), [(0, 65), (64, 1), (-1, 1), (2**64, 1), (0, 2**64), (60, -1)])
def test_reading_past_the_bytes_is_refused(data, offset, size):
    with pytest.raises(BadFileError, match="x: needs bytes"):
        bytes_at(data, offset, size, "x")


@pytest.mark.parametrize(("offset", "shape"), [(0, (17,)), (4, (4, 4)), (-4, (1,)), (2**63, (1,)), (65, (0,))])
def test_an_array_past_the_bytes_is_refused(data, offset, shape):
    with pytest.raises(BadFileError, match="x: needs bytes"):
        array_at(data, offset, np.float32, shape, "x")


@pytest.mark.parametrize(
    "shape", [(-1,), (True,), (1.0,), ("1",), (2**62,), (2**32, 2**32), (2**40, 2**40, 0), (1,) * 33]
)
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(BadFileError, match="x: "):
        count(shape, "x")


def test_a_scalar_has_one_element_and_an_empty_array_none(data):
    assert array_at(data, 4, "<f4", (), "x").shape == ()
    assert array_at(data, 64, "<f4", (3, 0), "x").shape == (3, 0)


def test_every_bfloat16_is_widened_exactly():
    bits = np.arange(2**16, dtype=np.uint16)
    wide = widen_bfloat16(bits)
    assert wide.dtype == np.float32 and not wide.flags.writeable
    assert np.array_equal(wide.view(np.uint32), bits.astype(np.uint32) * 2**16)


def test_spans_may_touch_and_may_not_overlap():
    check_apart([(4, 8, "b"), (0, 4, "a"), (4, 4, "empty"), (9, 9, "c")], "x")
    for spans in ([(0, 5, "a"), (4, 8, "b")], [(0, 8, "a"), (4, 4, "b")], [(0, 8, "a"), (0, 8, "b")]):
        with pytest.raises(BadFileError, match="x: 'b' overlaps"):
            check_apart(spans, "x")
