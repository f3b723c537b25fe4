"""TensorFlow checkpoints, read without TensorFlow: a table with the place of each variable, and files of raw bytes.

    model.ckpt.index              a LevelDB table: name of a variable -> BundleEntryProto; "" -> BundleHeaderProto
    model.ckpt.data-00000-of-00001    the arrays, little-endian and in C order

    BundleHeaderProto   1 num_shards  2 endianness (0 little)  3 version
    BundleEntryProto    1 dtype  2 shape {2 dim {1 size} ...}  3 shard_id  4 offset  5 size  6 crc32c  7 slices

A protocol buffer is a sequence of fields. Each is a varint with the field's number and wire type, then its value: a
varint (type 0), eight bytes (1), a length and that many bytes (2), or four bytes (5). A field that is 0 is left out.

The format: tensorflow/core/protobuf/tensor_bundle.proto, and tensorflow/core/util/tensor_bundle/tensor_bundle.cc.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.crc32c import masked_crc32c
from nanograd_llm.files.leveldb import read_table, read_varint
from nanograd_llm.files.mapped import array_at, check_apart, count, map_file, widen_bfloat16

DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "u1",
    5: "<i2",
    6: "i1",
    9: "<i8",
    10: "?",
    14: "<u2",  # bfloat16: the bits; NumPy has no such type
    17: "<u2",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}
_BFLOAT16 = 14
_OTHER_DTYPES = {7: "DT_STRING", 8: "DT_COMPLEX64", 18: "DT_COMPLEX128", 20: "DT_RESOURCE", 21: "DT_VARIANT"}
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


class _Entry(NamedTuple):
    dtype: int
    shape: tuple[int, ...]
    shard: int
    begin: int
    end: int
    crc: int


def read_tensorflow(index: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Every variable of a checkpoint under its own name, read-only and mapped; bfloat16 comes as float32.

    index: the path of the file that ends in .index; the data files are in the same folder. Each CRC-32C is checked.
    Raises StorageError if a file is missing or cannot be read, BadFileError for everything else that is wrong.
    """
    index = Path(index)
    header, *others = read_table(map_file(index), str(index)) or [(b"?", b"")]
    shards = _shards(header, f"{index}: the header")
    entries = dict(_entry(key, value, shards, str(index)) for key, value in others)
    data: dict[int, NDArray[np.uint8]] = {}
    for shard in sorted({entry.shard for entry in entries.values()}):
        spans = ((entry.begin, entry.end, name) for name, entry in entries.items() if entry.shard == shard)
        check_apart(spans, f"{index}: data file {shard}")
        data[shard] = map_file(index.with_name(f"{index.stem}.data-{shard:05d}-of-{shards:05d}"))
    return {
        name: _array(entry, data[entry.shard], f"{index}: variable {name!r:.200}, in data file {entry.shard}")
        for name, entry in entries.items()
    }


def _shards(header: tuple[bytes, bytes], what: str) -> int:
    """The number of data files, from the table's first entry."""
    key, value = header
    if key:
        raise BadFileError(f"{what}: is missing; the file is not the index of a checkpoint")
    fields = _message(value, {1: _VARINT, 2: _VARINT, 3: _BYTES}, what)
    if _number(fields, 2, what):
        raise BadFileError(f"{what}: says that numbers are big-endian; only little-endian can be read")
    shards = _number(fields, 1, what)
    if not 1 <= shards <= 99_999:  # the names of the files have five digits
        raise BadFileError(f"{what}: says that there are {shards:,} data files; expected 1 to 99,999")
    return shards


def _entry(key: bytes, value: bytes, shards: int, where: str) -> tuple[str, _Entry]:
    what = f"{where}: variable {key!r:.200}"
    try:
        name = key.decode("utf-8")
    except UnicodeDecodeError:
        raise BadFileError(f"{what}: its name is not UTF-8") from None
    wanted = {1: _VARINT, 2: _BYTES, 3: _VARINT, 4: _VARINT, 5: _VARINT, 6: _FOUR_BYTES, 7: _BYTES}
    fields = _message(value, wanted, what)
    dtype, shard, begin, size = (_number(fields, field, what) for field in (1, 3, 4, 5))
    if dtype not in DTYPES:
        raise BadFileError(
            f"{what}: its type is {_OTHER_DTYPES.get(dtype, f'number {dtype}')}; only numbers can be read: save only "
            "the variables of the model"
        )
    if 7 in fields:
        raise BadFileError(f"{what}: is stored in slices; save it as one variable")
    if shard >= shards:
        raise BadFileError(f"{what}: is in data file {shard:,}, counted from 0, but there are {shards:,}")
    shape = _shape(fields.get(2, [b""])[-1], what)
    needed = count(shape, what) * np.dtype(DTYPES[dtype]).itemsize
    if size != needed:
        raise BadFileError(f"{what}: shape {list(shape)} takes {needed:,} bytes; the entry says {size:,}")
    return name, _Entry(dtype, shape, shard, begin, begin + size, _number(fields, 6, what))


def _shape(proto: bytes, what: str) -> tuple[int, ...]:
    fields = _message(proto, {2: _BYTES, 3: _VARINT}, f"{what}: its shape")
    if 3 in fields:
        raise BadFileError(f"{what}: its shape is unknown")
    dims = [_message(dim, {1: _VARINT, 2: _BYTES}, f"{what}: its shape") for dim in fields.get(2, [])]
    return tuple(_number(dim, 1, what) for dim in dims)


def _array(entry: _Entry, data: NDArray[np.uint8], what: str) -> NDArray[Any]:
    array = array_at(data, entry.begin, DTYPES[entry.dtype], entry.shape, what)
    if masked_crc32c(data[entry.begin : entry.end]) != entry.crc:
        raise BadFileError(f"{what}: does not match its CRC-32C; the file is damaged: fetch it again")
    return widen_bfloat16(array) if entry.dtype == _BFLOAT16 else array


def _message(data: bytes, wanted: dict[int, int], what: str) -> dict[int, list[Any]]:
    """The fields of a protocol buffer by number, each a list of integers or of bytes.

    Raises BadFileError for a field that is cut short, or whose wire type is not the one in `wanted`.
    """
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at, what)
        field, wire = tag >> 3, tag & 7
        if wire not in (_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES):
            raise BadFileError(f"{what}: field {field} has wire type {wire}, which does not exist")
        value: Any = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire)
        if value is None:
            value, at = read_varint(data, at, what)
        if wire != _VARINT:
            value, at = data[at : at + value], at + value
            if at > len(data):
                raise BadFileError(f"{what}: field {field} is cut short")
        if wire == _FOUR_BYTES:
            value = int.from_bytes(value, "little")
        if wanted.get(field, wire) != wire:
            raise BadFileError(f"{what}: field {field} has wire type {wire}; expected {wanted[field]}")
        fields.setdefault(field, []).append(value)
    return fields


def _number(fields: dict[int, list[Any]], field: int, what: str) -> int:
    """A field that is a number: 0 if it is left out, the last one if it is repeated, as the format says."""
    number = fields.get(field, [0])[-1]
    if number >= 2**63:  # a negative number, in two's complement
        raise BadFileError(f"{what}: field {field} is {number - 2**64}; it cannot be negative")
    return number
