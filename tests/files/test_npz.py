"""NumPy's .npz is read exactly as NumPy writes it: numbers, not compressed, with their CRC-32."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from oracle import read_watched

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.npz import read_npz, write_npy, write_npz

HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


def npy(header=HEADER, numbers=b"\0" * 8, magic=b"\x93NUMPY\1\0"):
    header = header.ljust(117) + b"\n"
    return magic + len(header).to_bytes(2, "little") + header + numbers


def read(folder, content, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(folder / "x.npz", "w", method) as file:
        file.writestr(zipfile.ZipInfo("a.npy"), content, method)
    return read_watched(read_npz, folder / "x.npz", folder)


@pytest.mark.parametrize("dtype", ["?", *"bBhHiIlLqQefd", ">f4", ">i8"])
def test_every_dtype_shape_and_order_of_numpy_comes_back(dtype, rng, tmp_path):
    numbers = rng.integers(0, 2, (2, 3)).astype(dtype)
    arrays = {"plain": numbers, "turned": numbers.T, "row": numbers[0], "none": numbers[:0], "one": numbers[0, 0]}
    for write in (np.savez, write_npz):
        write(tmp_path / "x.npz", **arrays) if write is np.savez else write(tmp_path / "x.npz", arrays)
        found = read_watched(read_npz, tmp_path / "x.npz", tmp_path)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
            assert np.array_equal(found[name], array)


def test_the_smallest_file_is_read(tmp_path):
    assert read(tmp_path, npy())["a"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "needs bytes"),
        (npy()[:50], "needs bytes"),
        (npy(magic=b"\x93NUMPY\2\0"), "not a .npy of version 1.0"),
        (npy(b"{'descr': '<f4', 'shape': (3"), "its header is damaged"),
        (npy(b"(" * 100), "its header is damaged"),
        (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"), "its header is damaged"),
        (npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"), "only numbers can be read"),
        (npy(b"{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }"), "only numbers can be read"),
        (npy(b"{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (2,), }"), "its header is damaged"),
        (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"), "needs bytes"),
        (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"), "takes 4 bytes; the file has 8"),
        (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999), }"), "larger than any"),
        (npy(b"{'descr': '|b1', 'fortran_order': False, 'shape': (8,), }", b"\0\1\2\3\4\5\6\7"), "neither false"),
    ],
)
def test_a_record_that_numpy_would_not_write_is_refused(content, message, tmp_path):
    found = read(tmp_path, content)
    assert isinstance(found, BadFileError) and message in str(found) and "x.npz: array 'a.npy'" in str(found)


def test_a_compressed_file_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(100))
    found = read_watched(read_npz, tmp_path / "x.npz", tmp_path)
    assert isinstance(found, BadFileError) and "only stored records" in str(found)


def test_every_flipped_bit_in_the_numbers_is_noticed(tmp_path):
    write_npz(tmp_path / "x.npz", {"a": np.arange(8.0)})
    whole = (tmp_path / "x.npz").read_bytes()
    begin = whole.index(np.arange(8.0).tobytes())
    for bit in range(8 * begin, 8 * (begin + 64)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "x.npz").write_bytes(changed)
        with pytest.raises(BadFileError, match="does not match its CRC-32"):
            read_npz(tmp_path / "x.npz")


def test_pickled_objects_are_refused_and_not_loaded(tmp_path):
    content = io.BytesIO()
    np.save(content, np.array([print], object), allow_pickle=True)
    assert "only numbers can be read" in str(read(tmp_path, content.getvalue()))


def test_one_array_is_written_for_numpy_all_or_nothing(rng, tmp_path):
    path, array = tmp_path / "vectors.npy", rng.standard_normal((3, 4)).astype(np.float32)
    write_npy(path, array)
    assert np.array_equal(np.load(path), array) and [*tmp_path.iterdir()] == [path]
    with pytest.raises(StorageError, match="missing"):
        write_npy(tmp_path / "missing" / "vectors.npy", array)
