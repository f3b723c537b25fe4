"""Zip files without compression: each record is a slice of the file, found by its exact name.

    | local header, name, extra | bytes | local header, name, extra | bytes | ... | directory | end of directory |

The standard library's `zipfile` reads the directory: the name, size, method and CRC-32 of each record, and the place of
its local header. torch.save and numpy.savez write such files, with method 0 (stored). Anything else is refused. Without
compression, no record is larger than the file. Duplicate names and records that overlap are refused, so that every
reader sees the same content.

The format: PKWARE's APPNOTE.TXT 6.3, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.mapped import bytes_at, check_apart

MAX_DIRECTORY = 2**20  # bytes, about 10,000 records; GPT-2 XL with the state of its optimizer has 2,300 tensors
_LOCAL = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, sizes of the name and of the extra
_END = struct.Struct("<4sHHHHIIH")  # signature, disk, first disk, records here, records, size, begin, size of comment
_ENCRYPTED, _DESCRIPTOR_FOLLOWS, _UTF8_NAME = 0x0001, 0x0008, 0x0800


def read_zip_records(data: NDArray[np.uint8], where: str) -> dict[str, NDArray[np.uint8]]:
    """The bytes of every record of the zip file `data`, as views of it, by name. Each CRC-32 is checked.

    Raises BadFileError, which begins with `where`, if the file is damaged or has records that are not plainly stored.
    """
    entries, directory = _directory(data, where)
    records: dict[str, NDArray[np.uint8]] = {}
    spans = [(directory, len(data), "the zip directory")]
    for entry in entries:
        name = entry.orig_filename
        what = f"{where}: record {name!r:.200}"
        if name in records:
            raise BadFileError(f"{where}: two records have the name {name!r:.200}")
        if not set(name.split("/")).isdisjoint({"", ".", ".."}) or "\\" in name or "\0" in name:
            raise BadFileError(f"{what}: its name may not lead to another folder")
        if entry.flag_bits & ~(_DESCRIPTOR_FOLLOWS | _UTF8_NAME) or entry.volume:
            raise BadFileError(f"{what}: is encrypted, or in a form that torch.save and numpy.savez do not write")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise BadFileError(f"{what}: is compressed (method {entry.compress_type}); only stored records can be read")
        begin = _first_byte(data, entry, what)
        records[name] = data[begin : begin + entry.file_size]
        spans.append((entry.header_offset, begin + entry.file_size, name))
    check_apart(spans, where)
    with ThreadPoolExecutor() as pool:  # zlib releases the interpreter's lock while it computes
        sums = pool.map(lambda entry: zlib.crc32(records[entry.orig_filename].data), entries)
    for entry, crc in zip(entries, sums):
        if crc != entry.CRC:
            raise BadFileError(
                f"{where}: record {entry.orig_filename!r:.200} does not match its CRC-32; the file is damaged: "
                "fetch it again"
            )
    return records


def _directory(data: NDArray[np.uint8], where: str) -> tuple[list[zipfile.ZipInfo], int]:
    """The directory at the end of the file: the entry of each record, and the offset of the directory."""
    end = bytes_at(data, len(data) - _END.size, _END.size, f"{where}: the zip file's end")
    signature, disk, first_disk, here, count, _, _, comment = _END.unpack(end)
    if signature != b"PK\5\6" or comment:
        raise BadFileError(f"{where}: not a zip file, or cut short: it does not end with the end of a zip directory")
    try:
        with zipfile.ZipFile(_Reader(data)) as file:  # type: ignore[call-overload]
            entries, begin = file.infolist(), file.start_dir
    except (zipfile.BadZipFile, NotImplementedError, struct.error, OSError, ValueError) as error:
        raise BadFileError(f"{where}: its zip directory is damaged: {error}") from None
    counts = {here, count}
    if data[-42:-38].tobytes() == b"PK\6\7":  # a zip64 end is before the old one, whose counts may be 0xFFFF
        counts = counts - {0xFFFF} | set(struct.unpack("<2Q", bytes_at(data, len(data) - 74, 16, where)))
    if disk or first_disk or counts != {len(entries)}:
        raise BadFileError(
            f"{where}: the end of the zip directory does not match its {len(entries):,} records; the file is damaged"
        )
    return entries, begin


def _first_byte(data: NDArray[np.uint8], entry: zipfile.ZipInfo, what: str) -> int:
    """The offset of a record's bytes: after its local header, which must have the same name."""
    what = f"{what}: its local header"
    signature, flags, method, name_size, extra_size = _LOCAL.unpack(
        bytes_at(data, entry.header_offset, _LOCAL.size, what)
    )
    name = bytes_at(data, entry.header_offset + _LOCAL.size, name_size, what)
    expected = entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8_NAME else "cp437")
    if signature != b"PK\3\4" or name != expected or method or flags & _ENCRYPTED:
        raise BadFileError(f"{what} does not match the zip directory; the file is damaged")
    return entry.header_offset + _LOCAL.size + name_size + extra_size


class _Reader:
    """The bytes as a file object for `zipfile`; one read gives at most `MAX_DIRECTORY` bytes."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data, self.at = data, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, len(self.data))[whence]
        if self.at < 0:
            raise OSError("an offset before the beginning of the file")
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        taken = self.data[self.at :] if size < 0 else self.data[self.at : self.at + size]
        if len(taken) > MAX_DIRECTORY:
            raise OSError(f"it has {len(taken):,} bytes; at most {MAX_DIRECTORY:,} are read")
        self.at += len(taken)
        return taken.tobytes()
