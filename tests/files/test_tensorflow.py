"""A TensorFlow checkpoint is read and its checksums are compared; a table that does not match the data is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from fuzz import table, table_block, varint
from oracle import read_watched

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.crc32c import masked_crc32c
from nanograd_llm.files.leveldb import MAGIC, MAX_SIZE, read_table, read_varint
from nanograd_llm.files.tensorflow import read_tensorflow

FIXTURES = Path(__file__).parents[1] / "fixtures"
VALUES = np.arange(6, dtype="<f4")
HEADER = b"\x08\x01"  # num_shards 1


def field(number, value):
    """A field of a protocol buffer: an integer, bytes, or a float for a fixed32."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, tuple):
        return varint(number << 3 | 5) + struct.pack("<I", *value)
    return varint(number << 3) + varint(value % 2**64)


def shape(*sizes):
    return b"".join(field(2, field(1, size)) for size in sizes)


RIGHT = {1: 1, 2: shape(2, 3), 5: 24, 6: (masked_crc32c(VALUES.view(np.uint8)),)}


def entry(**changes):
    fields = RIGHT | {int(name[1:]): value for name, value in changes.items()}
    return b"".join(field(number, value) for number, value in sorted(fields.items()) if value is not None)


def rows(*pairs):
    """Entries of a block that share no bytes of their keys."""
    return b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs)


def read(folder, index, data=None, entry_point="x.index"):
    (folder / "x.index").write_bytes(index)
    (folder / "x.data-00000-of-00001").write_bytes(VALUES.tobytes() if data is None else data)
    return read_watched(read_tensorflow, folder / entry_point, folder)


def test_the_smallest_checkpoint_is_read(tmp_path):
    found = read(tmp_path, table(rows((b"", HEADER), (b"w", entry()))))
    assert found.keys() == {"w"} and found["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_several_data_files_are_read():
    found = read_tensorflow(FIXTURES / "small" / "few.index")
    assert {name: (x.dtype.name, x.tolist()) for name, x in found.items()} == {
        "a/b": ("float32", [[0, 1, 2], [3, 4, 5]]),
        "a/c": ("int64", [0, 1, 2]),
        "d": ("float64", 0.5),
    }


def test_bfloat16_is_widened(tmp_path):
    bits = np.array([0x3F80, 0xC040], "<u2")
    crc = (masked_crc32c(bits.view(np.uint8)),)
    index = table(rows((b"", HEADER), (b"w", entry(f1=14, f2=shape(2), f5=4, f6=crc))))
    assert read(tmp_path, index, bits.tobytes())["w"].tolist() == [1.0, -3.0]


def test_keys_are_joined_from_what_they_share(tmp_path):
    block = rows((b"", HEADER), (b"model/a", entry())) + varint(6) + varint(1) + varint(len(entry(f4=24)))
    found = read(tmp_path, table(block + b"b" + entry(f4=24)), VALUES.tobytes() * 2)
    assert found.keys() == {"model/a", "model/b"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"f1": 7}, "DT_STRING"),
        ({"f1": 8}, "DT_COMPLEX64"),
        ({"f1": 99}, "number 99"),
        ({"f1": None}, "number 0"),
        ({"f1": 2}, "takes 48 bytes; the entry says 24"),
        ({"f2": shape(2, -3)}, "cannot be negative"),
        ({"f2": shape(2**31, 2**31)}, "larger than any array"),
        ({"f2": shape(*[1] * 33)}, "33 dimensions"),
        ({"f2": field(3, 1)}, "shape is unknown"),
        ({"f2": 6}, "wire type 0; expected 2"),
        ({"f3": 1}, "is in data file 1, counted from 0, but there are 1"),
        ({"f3": -1}, "cannot be negative"),
        ({"f4": 4}, "needs bytes 4 to 28"),
        ({"f4": 2**62}, "needs bytes"),
        ({"f4": -24}, "cannot be negative"),
        ({"f5": 20}, "takes 24 bytes; the entry says 20"),
        ({"f6": (1,)}, "does not match its CRC-32C"),
        ({"f6": None}, "does not match its CRC-32C"),
        ({"f6": b"1234"}, "wire type 2; expected 5"),
        ({"f7": b""}, "stored in slices"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(changes, message, tmp_path):
    found = read(tmp_path, table(rows((b"", HEADER), (b"w", entry(**changes)))))
    assert isinstance(found, BadFileError) and message in str(found) and "'w'" in str(found)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "the header: is missing"),
        ([(b"w", entry())], "the header: is missing"),
        ([(b"", b"")], "says that there are 0 data files"),
        ([(b"", field(1, 2**31))], "says that there are 2,147,483,648 data files"),
        ([(b"", HEADER + field(2, 1))], "numbers are big-endian"),
        ([(b"", HEADER), (b"w", entry()), (b"v", entry())], "out of order, or a duplicate"),
        ([(b"", HEADER), (b"w", entry()), (b"w", entry())], "out of order, or a duplicate"),
        ([(b"", HEADER), (b"v", entry()), (b"w", entry())], "'w' overlaps"),
        ([(b"", HEADER), (b"v\xff", entry())], "not UTF-8"),
        ([(b"", HEADER), (b"v", b"\x0b")], "wire type 3, which does not exist"),
        ([(b"", HEADER), (b"v", b"\x12\x7f")], "field 2 is cut short"),
        ([(b"", HEADER), (b"v", b"\xff" * 10 + b"\1")], "more than 64 bits"),
        ([(b"", HEADER), (b"v", b"\x08" + b"\xff" * 9 + b"\x02")], "more than 64 bits"),
        ([(b"", HEADER), (b"k" * 1001, entry())], "an entry shares 0 bytes with a key of 0, and has 1,001 new ones"),
        ([(b"", HEADER)] + [(b"%05d" % n, b"") for n in range(8_001)], "more than 8,000 entries"),
    ],
)
def test_a_table_that_is_not_the_index_of_a_checkpoint_is_refused(pairs, message, tmp_path):
    found = read(tmp_path, table(rows(*pairs)))
    assert isinstance(found, BadFileError) and message in str(found)


def block_of(content, kind=0):
    block = content + bytes([kind])
    return block + masked_crc32c(np.frombuffer(block, np.uint8)).to_bytes(4, "little")


def table_of(block, index=None, *, magic=MAGIC):
    index = table_block(rows((b"~", varint(0) + varint(len(block) - 5)))) if index is None else index
    handles = varint(0) + varint(0) + varint(len(block)) + varint(len(index) - 5)
    return block + index + handles.ljust(40, b"\0") + magic.to_bytes(8, "little")


GOOD = rows((b"", HEADER), (b"w", entry()))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (table_of(table_block(GOOD), magic=MAGIC ^ 1), "does not end with the magic number"),
        (table_of(block_of(GOOD + struct.pack("<II", 0, 1), kind=1)), "compressed (snappy)"),
        (table_of(block_of(GOOD + struct.pack("<II", 0, 1), kind=4)), "compressed (kind 4)"),
        (table_of(block_of(b"\xff\xff\xff\x7f" * 2, kind=1)), "compressed (snappy)"),  # claims 268 MB
        (table_of(block_of(GOOD + struct.pack("<I", 2**32 - 1))), "cannot hold 4,294,967,295 restart points"),
        (table_of(block_of(b"")), "cannot hold"),
        (table_of(table_block(b"\x01\x01\x00x")), "an entry shares 1 bytes with a key of 0"),
        (table_of(table_block(b"\x00\xff\xff\x03\x00x")), "65,535 new ones"),
        (table_of(table_block(b"\x00\x01\xff\x01x")), "a value of 255"),
        (table_of(table_block(b"\x80" * 11)), "more than 64 bits"),
        (table_of(table_block(b"\x80")), "-3 bytes left"),
        (table_of(table_block(GOOD), table_block(rows((b"~", varint(0) + varint(2**40))))), "needs bytes"),
        (table_of(table_block(GOOD), table_block(rows((b"~", varint(2**63) + varint(9))))), "needs bytes"),
        (table_of(table_block(GOOD), table_block(rows((b"~", b"")))), "cut short"),
        (
            table_of(
                table_block(GOOD), table_block(rows(*[(key, b"\0" + varint(len(GOOD) + 8)) for key in (b"x", b"y")]))
            ),
            "two of its blocks overlap",
        ),
        (b"\0" * (MAX_SIZE + 1), "an index of at most"),
        (b"", "the footer: needs bytes"),
    ],
)
def test_a_damaged_table_is_refused(index, message, tmp_path):
    found = read(tmp_path, index)
    assert isinstance(found, BadFileError) and message in str(found)


def test_a_flipped_bit_anywhere_in_a_block_or_an_array_is_found(tmp_path):
    index, data = table(GOOD), VALUES.tobytes()
    meta = len(table_block(GOOD))  # the meta index holds nothing, and is not read
    behind = meta + len(table_block(b""))
    for place in [*range(meta), *range(behind, len(index) - 48)]:
        changed = index[:place] + bytes([index[place] ^ 4]) + index[place + 1 :]
        assert "CRC-32C" in str(read(tmp_path, changed))
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        assert "CRC-32C" in str(read(tmp_path, index, changed))


def test_a_table_of_many_blocks_is_read_in_the_order_of_its_keys():
    entries = [(b"key %05d" % n, bytes([n % 256]) * (n % 90)) for n in range(2000)]
    blocks, index = b"", []
    for first in range(0, 2000, 80):
        block = table_block(rows(*entries[first : first + 80]))
        index.append((entries[first + 79][0], varint(len(blocks)) + varint(len(block) - 5)))
        blocks += block
    found = read_table(np.frombuffer(table_of(blocks, table_block(rows(*index))), np.uint8), "x")
    assert found == entries


def test_varints_go_up_to_64_bits():
    assert read_varint(varint(2**64 - 1), 0, "x") == (2**64 - 1, 10)
    for data in (varint(2**64), b"\x80" * 10 + b"\1", b"\x80", b""):
        with pytest.raises(BadFileError):
            read_varint(data, 0, "x")


def test_the_table_of_the_real_writer_is_in_order():
    index = np.frombuffer((FIXTURES / "tensorflow" / "model.ckpt.index").read_bytes(), np.uint8)
    keys = [key for key, _ in read_table(index, "x")]
    assert keys == sorted(keys) and len(keys) == 29
