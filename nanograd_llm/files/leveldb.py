"""LevelDB's table: sorted keys in blocks with a CRC each; a key is written as its difference from the key before it.

    | data block | data block | ... | meta index block | index block | footer, 48 bytes |

    footer   offset and size of the meta index, then of the index; zeros up to 40 bytes; magic number
    block    entries, restart points (uint32 each), their number (uint32) | compression, 1 byte | masked CRC-32C
    entry    shared, new, size: three varints | new bytes of the key | value of that size

An entry's key is the first `shared` bytes of the key before it, followed by the new bytes. The index block has an entry
for each data block; its value is the block's offset and size. Restart points are for searching and are not used here.
A varint holds seven bits in each byte, lowest first; the eighth bit says that more bytes follow.

The format: github.com/google/leveldb, doc/table_format.md, as in tensorflow/core/lib/io.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.crc32c import masked_crc32c
from nanograd_llm.files.mapped import bytes_at

MAGIC = 0xDB4775248B80FB57
MAX_SIZE = 2**20  # bytes; the table of GPT-2 XL, with 580 variables, has about 25,000
MAX_ENTRIES = 8_000
MAX_KEY = 1000  # without a limit, shared prefixes let a short file hold very long keys
MAX_VALUE = 4096  # a variable with thirty dimensions takes 500
_FOOTER = 48


def read_table(data: NDArray[np.uint8], where: str) -> list[tuple[bytes, bytes]]:
    """All keys of the table with their values, in the order of the keys.

    Raises BadFileError if the table is damaged, compressed, or larger than the index of a checkpoint can be.
    """
    if len(data) > MAX_SIZE:
        raise BadFileError(f"{where}: has {len(data):,} bytes; an index of at most {MAX_SIZE:,} can be read")
    footer = bytes_at(data, len(data) - _FOOTER, _FOOTER, f"{where}: the footer")
    if int.from_bytes(footer[-8:], "little") != MAGIC:
        raise BadFileError(
            f"{where}: not the index of a TensorFlow checkpoint, or cut short: it does not end with the magic number"
        )
    (_, _, index_at, index_size), _ = _varints(footer[:40], 0, 4, where)
    entries: list[tuple[bytes, bytes]] = []
    blocks_end = 0
    for _, value in _entries(_block(data, index_at, index_size, where), where):
        (block_at, block_size), _ = _varints(value, 0, 2, where)
        if block_at < blocks_end:
            raise BadFileError(f"{where}: two of its blocks overlap")
        blocks_end = block_at + block_size
        for key, value in _entries(_block(data, block_at, block_size, where), where):
            if entries and key <= entries[-1][0]:
                raise BadFileError(f"{where}: the key {key!r:.200} is out of order, or a duplicate")
            if len(entries) == MAX_ENTRIES:
                raise BadFileError(f"{where}: more than {MAX_ENTRIES:,} entries")
            entries.append((key, value))
    return entries


def read_varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    """The varint at `at`, and the offset after it. Raises BadFileError if it is cut short or not below 2^64.

    >>> read_varint(bytes([0xAC, 0x02]), 0, "example")
    (300, 2)
    """
    number = 0
    for place, byte in enumerate(data[at : at + 10]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if number >= 2**64:
                break
            return number, at + place + 1
    raise BadFileError(f"{where}: the varint at byte {at:,} is cut short or has more than 64 bits")


def _varints(data: bytes, at: int, n: int, where: str) -> tuple[list[int], int]:
    """`n` varints from `at` on, and the offset after them."""
    numbers = []
    for _ in range(n):
        number, at = read_varint(data, at, where)
        numbers.append(number)
    return numbers, at


def _block(data: NDArray[np.uint8], at: int, size: int, where: str) -> bytes:
    """The entries and restart points of the block at `at`; its CRC is checked."""
    what = f"{where}: the block at byte {at:,}"
    trailer = bytes_at(data, at + size, 5, what)
    if masked_crc32c(data[at : at + size + 1]) != int.from_bytes(trailer[1:], "little"):
        raise BadFileError(f"{what}: does not match its CRC-32C; the file is damaged: fetch it again")
    if trailer[0]:
        kind = "snappy" if trailer[0] == 1 else f"kind {trailer[0]}"
        raise BadFileError(f"{what}: is compressed ({kind}), which TensorFlow never does; save the checkpoint again")
    return data[at : at + size].tobytes()


def _entries(block: bytes, where: str) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little")
    stop = len(block) - 4 * (restarts + 1)
    if len(block) < 4 or stop < 0:
        raise BadFileError(f"{where}: a block of {len(block):,} bytes cannot hold {restarts:,} restart points")
    at, key = 0, b""
    while at < stop:
        (shared, new, size), at = _varints(block, at, 3, where)
        if shared > len(key) or shared + new > MAX_KEY or size > MAX_VALUE or at + new + size > stop:
            raise BadFileError(
                f"{where}: an entry shares {shared:,} bytes with a key of {len(key):,}, and has {new:,} new ones and a "
                f"value of {size:,}, in a block with {stop - at:,} bytes left; the file is damaged"
            )
        key = key[:shared] + block[at : at + new]
        at += new
        yield key, block[at : at + size]
        at += size
