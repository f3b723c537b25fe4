"""Weight files mapped into memory: arrays are read-only views of the file's bytes, and nothing is copied.

A mapped file takes no memory until a page of it is read. Every offset and shape that a file states goes through the
functions below, which compare it with the bytes that the file has.

If another program truncates a file while it is mapped, the system ends the process (SIGBUS). To replace the file by a
new one of the same name, as `atomic.write_parts` does, is safe.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.atomic import regular_file

MAX_DIMENSIONS = 32  # NumPy 1.26's limit; weights have one or two, the masks in GPT-2's files four


def map_file(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """The bytes of a regular file, mapped: uint8, one dimension, not writable.

    The file stays mapped as long as an array uses it. Raises StorageError as `atomic.regular_file` does, and
    BadFileError as `refuse_stand_in` does.
    """
    with regular_file(path) as file:
        if os.fstat(file.fileno()).st_size == 0:  # an empty file cannot be mapped
            return _read_only(np.zeros(0, np.uint8))
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    refuse_stand_in(data[:64].tobytes(), str(path))
    return data


def refuse_stand_in(begin: bytes, where: str) -> None:
    """Raise BadFileError for what a wrong download leaves in place of a file: a Git LFS pointer, or an HTML page."""
    if begin.startswith(b"version https://git-lfs"):
        raise BadFileError(f"{where}: is a Git LFS pointer, not the file itself; run `git lfs pull` to fetch it")
    if begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise BadFileError(f"{where}: is an HTML page, not the file itself; download the file again, not its web page")


def bytes_at(data: NDArray[np.uint8], offset: int, size: int, where: str) -> bytes:
    """A copy of `size` bytes from `offset` on. Raises BadFileError if the data is shorter."""
    _require_inside(data, offset, size, where)
    return data[offset : offset + size].tobytes()


def array_at(data: NDArray[np.uint8], offset: int, dtype: DTypeLike, shape: Sequence[int], where: str) -> NDArray[Any]:
    """The array of `dtype` and `shape`, in C order, that begins at byte `offset`: a read-only view.

    Raises BadFileError if the shape is impossible or reaches past the end of the data.
    """
    dtype = np.dtype(dtype)
    size = count(shape, where) * dtype.itemsize
    _require_inside(data, offset, size, where)
    if size == 0:
        return _read_only(np.zeros(tuple(shape), dtype))
    if dtype.kind == "b" and data[offset : offset + size].max() > 1:  # undefined as a bool in NumPy
        raise BadFileError(f"{where}: holds bytes that are neither false (0) nor true (1)")
    return np.ndarray(tuple(shape), dtype, data, offset)


def count(shape: Sequence[int], where: str) -> int:
    """The number of elements of an array of this shape. Raises BadFileError for a shape that no array can have."""
    if len(shape) > MAX_DIMENSIONS:
        raise BadFileError(f"{where}: has {len(shape)} dimensions; at most {MAX_DIMENSIONS} can be read")
    if not all(type(size) is int and size >= 0 for size in shape):  # neither True nor 1.0
        raise BadFileError(f"{where}: its shape must hold integers of at least 0")
    if math.prod(max(size, 1) for size in shape) >= 2**59:  # its number of bytes may need more than 64 bits
        raise BadFileError(f"{where}: shape {list(shape)!r:.200} is larger than any array can be")
    return math.prod(shape)


def check_apart(spans: Iterable[tuple[int, int, str]], where: str) -> None:
    """Raise BadFileError if two spans overlap. Each is (first byte, last byte + 1, name)."""
    reached = 0
    for begin, end, name in sorted(spans):
        if begin < reached:
            raise BadFileError(f"{where}: {name!r:.200} overlaps the data before it; the file is damaged")
        reached = end


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16 `bits`, exactly: a bfloat16 is the upper half of a float32.

    >>> widen_bfloat16(np.array([0x3F80, 0xC040], np.uint16))
    array([ 1., -3.], dtype=float32)
    """
    return _read_only(np.left_shift(bits, 16, dtype=np.uint32).view(np.float32))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _require_inside(data: NDArray[np.uint8], offset: int, size: int, where: str) -> None:
    if not 0 <= offset <= offset + size <= len(data):
        raise BadFileError(
            f"{where}: needs bytes {offset:,} to {offset + size:,}, but there are {len(data):,}; "
            "the file is cut short or damaged: use a whole copy of it"
        )
