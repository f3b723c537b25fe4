"""A zip file whose records are stored as they are: each one a slice of the file, found by its exact name.

    | local header, name, extra | bytes | local header, name, extra | bytes | ... | directory | end of directory |
                                                                                  one entry a record: its name, size,
                                                                                  method and where its local header is

The directory is the zip file's truth; a local header is read only to find where its bytes begin. Large files have the
numbers that do not fit into 32 bits in an "extra" of the entry, and a longer end record before the old one (zip64).
torch.save writes such files, with method 0 (stored) and no encryption, and lines every tensor up to 64 bytes by a
padding in the extra. Nothing else is read: no compression, so no record is larger than its bytes in the file; no name
twice and no two records over the same bytes, so the file has one meaning; and no name is ever used as a path.

The format: PKWARE's APPNOTE.TXT 6.3, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.mapped import bytes_at, unsigned_at

MAX_RECORDS = 10_000  # GPT-2 XL with the state of its optimizer has 2,300 tensors
_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_DESCRIPTOR_FOLLOWS, _UTF8_NAME = 0x0008, 0x0800  # the flags that change nothing about the bytes


def read_zip_records(data: NDArray[np.uint8], where: str) -> dict[str, NDArray[np.uint8]]:
    """The bytes of every record of the zip file `data`, as views of it, by name.

    Raises BadFileError, beginning with `where`, if the file is damaged or holds anything but plain stored records.
    """
    records, begin, stop = _directory(data, where)
    found: dict[str, NDArray[np.uint8]] = {}
    spans = []
    at = begin
    for _ in range(records):
        name, header, size, at = _entry(data, at, where)
        if name in found:
            raise BadFileError(f"{where}: two records are called {name!r:.200}")
        first = _first_byte(data, header, name, where)
        if first + size > begin:
            raise BadFileError(f"{where}: record {name!r:.200} reaches into the directory; the file is damaged")
        spans.append((header, first + size, name))
        found[name] = data[first : first + size]
    if at != stop:
        raise BadFileError(f"{where}: the zip directory ends at {at:,}, not at {stop:,} as its end record says")
    _check_apart(spans, where)
    return found


def _directory(data: NDArray[np.uint8], where: str) -> tuple[int, int, int]:
    """How many entries the directory has, where it begins and where it stops."""
    end = len(data) - _END.size
    signature, disk, first_disk, here, records, size, begin, comment = _END.unpack(
        bytes_at(data, end, _END.size, f"{where}: the zip file's end")
    )
    if signature != b"PK\5\6" or comment:
        raise BadFileError(f"{where}: no zip file, or cut short: it does not end with the end of a zip directory")
    locator = end - _LOCATOR.size
    if locator >= 0 and unsigned_at(data, locator, 4, where) == 0x07064B50:
        _, _, end64, _ = _LOCATOR.unpack(bytes_at(data, locator, _LOCATOR.size, where))
        what = f"{where}: the zip64 end record"
        signature, _, _, _, disk, first_disk, here, records64, size64, begin64 = _END64.unpack(
            bytes_at(data, end64, _END64.size, what)
        )
        short = (records, 0xFFFF, records64), (size, 0xFFFFFFFF, size64), (begin, 0xFFFFFFFF, begin64)
        if signature != b"PK\6\6" or any(old not in (saturated, new) for old, saturated, new in short):
            raise BadFileError(f"{what} is damaged or contradicts the old one")
        records, size, begin, end = records64, size64, begin64, end64
    if disk or first_disk or here != records:
        raise BadFileError(f"{where}: is one part of a zip file that was split; join the parts first")
    if records > MAX_RECORDS:
        raise BadFileError(f"{where}: the zip directory claims {records:,} records; at most {MAX_RECORDS:,} are read")
    if begin + size != end:
        raise BadFileError(f"{where}: the zip directory is not where the file's end says; the file is damaged")
    return records, begin, end


def _entry(data: NDArray[np.uint8], at: int, where: str) -> tuple[str, int, int, int]:
    """Name, place of the local header and size of the record whose entry is at `at`; and where the next entry is."""
    what = f"{where}: the zip directory"
    (signature, _, _, flags, method, _, _, _, packed, size, name_size, extra_size, comment, disk, _, _, header) = (
        _ENTRY.unpack(bytes_at(data, at, _ENTRY.size, what))
    )
    if signature != b"PK\1\2":
        raise BadFileError(f"{what} is damaged: no entry at {at:,}")
    raw_name = bytes_at(data, at + _ENTRY.size, name_size, what)
    extra = bytes_at(data, at + _ENTRY.size + name_size, extra_size, what)
    try:
        name = raw_name.decode("utf-8")
    except UnicodeDecodeError:
        raise BadFileError(f"{what}: a name that is not UTF-8: {raw_name!r:.200}") from None
    what = f"{where}: record {name!r:.200}"
    if not set(name.split("/")).isdisjoint({"", ".", ".."}) or "\\" in name or "\0" in name:
        raise BadFileError(f"{what}: a name that is a path of its own; torch.save writes none")
    if flags & ~(_DESCRIPTOR_FOLLOWS | _UTF8_NAME):
        raise BadFileError(f"{what}: flags {flags:#06x}: encrypted, or in a form that torch.save does not write")
    sizes = {"size": size, "packed": packed, "header": header}
    wide = _zip64_extra(extra, [key for key, number in sizes.items() if number == 0xFFFFFFFF], what)
    sizes |= wide
    if method or sizes["size"] != sizes["packed"]:
        raise BadFileError(f"{what}: is compressed (method {method}); only stored records can be read")
    if disk:
        raise BadFileError(f"{what}: lies in another part of a zip file that was split; join the parts first")
    return name, sizes["header"], sizes["size"], at + _ENTRY.size + name_size + extra_size + comment


def _zip64_extra(extra: bytes, wanted: list[str], what: str) -> dict[str, int]:
    """The 64-bit numbers of an entry that its 32-bit fields leave out, in the order of the format."""
    while wanted and len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:
            if not 8 * len(wanted) <= size <= len(extra) - 4:
                break
            return dict(zip(wanted, struct.unpack_from(f"<{len(wanted)}Q", extra, 4)))
        extra = extra[4 + size :]
    if wanted:
        raise BadFileError(f"{what}: its zip64 numbers are missing; the file is damaged")
    return {}


def _first_byte(data: NDArray[np.uint8], header: int, name: str, where: str) -> int:
    """Where the bytes of a record begin: behind its local header, which must bear the same name."""
    what = f"{where}: record {name!r:.200}: its local header"
    fields = _LOCAL.unpack(bytes_at(data, header, _LOCAL.size, what))
    signature, flags, method, name_size, extra_size = fields[0], fields[2], fields[3], fields[9], fields[10]
    local_name = bytes_at(data, header + _LOCAL.size, name_size, what)
    if signature != b"PK\3\4" or local_name != name.encode() or method or flags & 1:
        raise BadFileError(f"{what} is not where the directory says, or contradicts it; the file is damaged")
    return header + _LOCAL.size + name_size + extra_size


def _check_apart(spans: list[tuple[int, int, str]], where: str) -> None:
    reached = 0
    for begin, end, name in sorted(spans):
        if begin < reached:
            raise BadFileError(f"{where}: record {name!r:.200} lies over the one before it")
        reached = end
