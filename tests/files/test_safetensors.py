"""A safetensors file is read if it follows the format exactly; otherwise it is refused, and the error says why."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from oracle import read_watched
from safetensors.numpy import load_file, save_file

from nanograd_llm.errors import BadFileError, DtypeError
from nanograd_llm.files.safetensors import DTYPES, read_safetensors, read_safetensors_with_metadata, write_safetensors

FIXTURES = Path(__file__).parents[1] / "fixtures"


def written(folder, header, data=b"", *, size=None):
    """A file with this header: bytes, or an object that is written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if size is None else size
    path = folder / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return path


def entry(begin, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def refusal(folder, header, data=b"", **settings):
    found = read_watched(read_safetensors, written(folder, header, data, **settings), folder)
    assert isinstance(found, BadFileError)
    return str(found)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "BF16"])
def test_every_dtype_of_numpy_is_read_as_safetensors_wrote_it(dtype, rng, tmp_path):
    numbers = rng.integers(0, 2 if dtype == "BOOL" else 100, (2, 3)).astype(DTYPES[dtype])
    arrays = {"x": numbers, "scalar": numbers[0, 0], "empty": numbers[:0], "y": numbers.T.copy()}
    save_file({name: np.asarray(x) for name, x in arrays.items()}, tmp_path / "x.safetensors")
    found = read_safetensors(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.array_equal(found[name], array)


def test_bfloat16_is_widened_to_the_same_numbers(tmp_path):
    bits = np.array([0x3F80, 0xC040, 0x7F80, 0x0001], "<u2")
    found = read_safetensors(written(tmp_path, {"x": entry(0, 8, [4], "BF16")}, bits.tobytes()))["x"]
    assert found.dtype == np.float32
    assert found.tolist() == [1.0, -3.0, np.inf, 2.0**-133]


def test_a_file_without_tensors_is_read_as_an_empty_dict(tmp_path):
    assert read_safetensors(written(tmp_path, {"__metadata__": {"format": "pt"}})) == {}


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 8])
def test_a_file_too_short_for_a_header_is_refused(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    assert isinstance(read_watched(read_safetensors, tmp_path / "x", tmp_path), BadFileError)


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 2**40, 3, 100])
def test_a_header_longer_than_the_file_is_refused_before_anything_is_built(size, tmp_path):
    assert f"the header: needs bytes 8 to {size + 8:,}, but there are 10" in refusal(tmp_path, b"{}", size=size)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b' {"x": 1}', "begins with"),
        (b"[]", "begins with"),
        (b'{"x": ', "not valid JSON"),
        (b'{"x": {"dtype": "F32", "shape": [], "data_offsets": [0, 4], "dtype": "F32"}}', "duplicate key"),
        (b'{"x": NaN}', "NaN"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        ({"x": 1}, "must have exactly the keys"),
        ({"x": {"dtype": "F32", "shape": [1]}}, "must have exactly the keys"),
        ({"x": entry(0, 4) | {"more": 1}}, "must have exactly the keys"),
        ({"x": entry(0, 4, dtype="F8_E4M3")}, "dtype 'F8_E4M3' is not one of U64, I64"),
        ({"x": entry(0, 4, dtype=["F32"])}, "is not one of"),
        ({"x": entry(0, 4, [1.0])}, "integers of at least 0"),
        ({"x": entry(0, 4, [True])}, "integers of at least 0"),
        ({"x": entry(0, 4, [-1])}, "integers of at least 0"),
        ({"x": entry(0, 4, {"0": 1})}, "must be a list"),
        ({"x": entry(0, 4) | {"data_offsets": [0, 4.0]}}, "two integers"),
        ({"x": entry(0, 4) | {"data_offsets": [False, 4]}}, "two integers"),
        ({"x": entry(0, 4) | {"data_offsets": [0, 4, 8]}}, "two integers"),
        ({"x": entry(0, 4) | {"data_offsets": [8, 4]}}, "data_offsets give -4"),
        ({"x": entry(0, 4, [2])}, "takes 8 bytes; data_offsets give 4"),
        ({"x": entry(0, 4, [2**32, 2**32])}, "larger than any array"),
        ({"x": entry(0, 0, [2**62, 4, 0])}, "larger than any array"),
        ({"x": entry(0, 4, [1] * 33)}, "33 dimensions"),
        ({"x": entry(-4, 0)}, "needs bytes"),
        ({"x": entry(0, 12)}, "needs bytes"),
        ({"x": entry(0, 4), "y": entry(0, 4), "z": entry(4, 8)}, "overlaps"),
        ({"x": entry(0, 6, [3], "F16"), "y": entry(4, 8)}, "overlaps"),
        ({"x": entry(0, 2, [1], "F16"), "y": entry(4, 8)}, "they must take all of them"),
        ({"x": entry(4, 8)}, "they must take all of them"),
        ({"x": entry(0, 4)}, "they must take all of them"),
        ({"x": entry(0, 8), "empty": entry(4, 4, [0])}, "overlaps"),
        ({"x": entry(0, 8), "empty": entry(2**40, 2**40, [0])}, "needs bytes"),
        ({"x": entry(0, 8, [8], "BOOL")}, "neither false"),
        ({"x": entry(0, 8), "__metadata__": {"format": 1}}, "object of strings"),
        ({"x": entry(0, 8), "__metadata__": ["pt"]}, "object of strings"),
        ({"x": entry(0, 8), "__metadata__": None}, "object of strings"),
    ],
)
def test_a_file_that_does_not_follow_the_format_is_refused(header, message, tmp_path):
    found = refusal(tmp_path, header, b"\1\2\3\4\5\6\7\10")
    assert message in found and "model.safetensors" in found


def test_a_header_of_a_hundred_thousand_tensors_is_refused(tmp_path):
    assert "with up to 700,000 values" in refusal(tmp_path, {f"x{n}": entry(0, 0) for n in range(100_000)})


WRITTEN_BY_THE_LIBRARY = sorted(
    path for path in FIXTURES.glob("*/*.safetensors") if path.parent.name not in ("safetensors_bfloat16", "small")
)


@pytest.mark.parametrize("path", WRITTEN_BY_THE_LIBRARY, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_written_file_has_the_same_bytes_as_the_safetensors_library_writes(path, tmp_path):
    write_safetensors(tmp_path / "x", *read_safetensors_with_metadata(path))
    assert (tmp_path / "x").read_bytes() == path.read_bytes()


def test_arrays_of_any_dtype_and_layout_are_written_as_the_library_writes_them(rng, tmp_path):
    numbers = rng.integers(0, 2, (3, 4))
    arrays = {f"é {dtype}": numbers.astype(dtype) for dtype in DTYPES.values()} | {'a\n"': np.array(2.5)}
    save_file(arrays, tmp_path / "theirs", {"format": "np"})
    reordered = {name: x.astype(x.dtype.newbyteorder(">"), order="F") for name, x in arrays.items()}
    write_safetensors(tmp_path / "ours", dict(reversed(reordered.items())), {"format": "np"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert all(np.array_equal(load_file(tmp_path / "ours")[name], x) for name, x in arrays.items())


def test_an_array_that_does_not_hold_numbers_is_not_written(tmp_path):
    for array in (np.zeros(1, np.complex64), np.array([None]), np.array(["x"])):
        with pytest.raises(DtypeError, match=f"x is {re.escape(str(array.dtype))}; safetensors can hold"):
            write_safetensors(tmp_path / "file", {"x": array}, {})
    assert not (tmp_path / "file").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows measures memory differently")
def test_writing_takes_no_second_copy_of_the_arrays(tmp_path):
    arrays = {str(n): np.ones(2**20, np.float32) for n in range(8)}
    tracemalloc.start()
    try:
        write_safetensors(tmp_path / "x", arrays, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
