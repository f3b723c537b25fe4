"""Only zip files such as torch.save writes are read: no compression, no duplicate names, no overlap."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.zip import MAX_DIRECTORY, read_zip_records

FEW = Path(__file__).parents[1] / "fixtures" / "small" / "few.bin"


def zipped(records, method=zipfile.ZIP_STORED, *, comment=b""):
    written = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w", method) as file:
        warnings.simplefilter("ignore")  # about duplicate names
        file.comment = comment
        for name, content in records:
            file.writestr(zipfile.ZipInfo(name), content, method)
    return written.getvalue()


def read(data):
    return {name: x.tobytes() for name, x in read_zip_records(np.frombuffer(data, np.uint8), "x.bin").items()}


def refusal(data):
    with pytest.raises(BadFileError, match="^x.bin: ") as caught:
        read(data)
    return str(caught.value)


def test_records_are_what_pythons_own_reader_finds():
    for data in (FEW.read_bytes(), zipped([("a", b"1"), ("b/ü", b""), ("c", b"333")])):
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            assert read(data) == {name: file.read(name) for name in file.namelist()}


def test_a_record_that_needs_zip64_is_found(monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # larger numbers are written in 64 bits
    data = zipped([("short", b"1"), ("long", b"x" * 100), ("last", b"22")])
    assert b"PK\6\6" in data
    assert read(data) == {"short": b"1", "long": b"x" * 100, "last": b"22"}


def test_the_zip64_numbers_may_follow_other_extra_fields_and_must_be_complete(monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        record = zipfile.ZipInfo("long")
        record.extra = b"FB\3\0ZZZ"
        file.writestr(record, b"x" * 100)
    data = written.getvalue()
    assert read(data) == {"long": b"x" * 100}
    directory = data.index(b"PK\1\2")
    place = directory + 50  # the kind of the zip64 extra, then its size, 16, and two numbers
    turned = data[:place] + data[place + 20 : place + 27] + data[place : place + 20] + data[place + 27 :]
    assert turned != data and read(turned) == {"long": b"x" * 100}
    for size in (8, 200):
        changed = bytearray(data)
        struct.pack_into("<H", changed, place + 2, size)
        assert re.search("directory is damaged|only stored records", refusal(bytes(changed)))


def test_records_are_views_of_the_file():
    data = np.frombuffer(FEW.read_bytes(), np.uint8)
    assert all(np.shares_memory(record, data) for record in read_zip_records(data, "x").values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the zip file's end: needs bytes"),
        (b"x" * 100, "does not end with the end of a zip directory"),
        (zipped([("a", b"1" * 5000)], zipfile.ZIP_DEFLATED), "compressed (method 8)"),
        (zipped([("a", b"1"), ("a", b"2")]), "two records have the name 'a'"),
        (zipped([("../a", b"1")]), "its name may not lead to another folder"),
        (zipped([("/a", b"1")]), "its name may not lead to another folder"),
        (zipped([("a//b", b"1")]), "its name may not lead to another folder"),
        (zipped([("./a", b"1")]), "its name may not lead to another folder"),
        (zipped([("a", b"1")], comment=b"more"), "does not end with the end"),
        (zipped([("a", b"1")]) + b"\0", "does not end with the end"),
        (zipped([(str(n), b"") for n in range(MAX_DIRECTORY // 50)]), "at most 1,048,576 are read"),
    ],
)
def test_a_zip_file_that_torch_would_not_write_is_refused(data, message):
    assert message in refusal(data)


TWO = zipped([("a", b"1111"), ("b", b"2222")])
DIRECTORY = TWO.index(b"PK\1\2")
SECOND = TWO.index(b"PK\1\2", DIRECTORY + 1)
LOCAL_SECOND = TWO.index(b"PK\3\4", 1)
END = TWO.index(b"PK\5\6")


@pytest.mark.parametrize(
    ("place", "form", "number", "message"),
    [
        (DIRECTORY + 8, "<H", 1, "encrypted"),
        (DIRECTORY + 10, "<H", 8, "compressed (method 8)"),
        (DIRECTORY + 20, "<I", 2, "compressed (method 0)"),
        (DIRECTORY + 24, "<I", 2**32 - 1, "compressed (method 0)"),
        (DIRECTORY + 34, "<H", 1, "in a form that torch.save and numpy.savez do not write"),
        (DIRECTORY + 42, "<I", LOCAL_SECOND, "does not match the zip directory"),
        (SECOND + 42, "<I", 0, "does not match the zip directory"),
        (SECOND + 42, "<I", 10**6, "needs bytes"),
        (LOCAL_SECOND + 6, "<H", 1, "does not match the zip directory"),
        (LOCAL_SECOND + 8, "<H", 8, "does not match the zip directory"),
        (LOCAL_SECOND + 28, "<H", 40, "'the zip directory' overlaps"),
        (LOCAL_SECOND + 30, "<B", ord("c"), "does not match the zip directory"),
        (DIRECTORY, "<I", 0, "Bad magic number for central directory"),
        (END + 4, "<H", 1, "the end of the zip directory does not match"),
        (END + 8, "<H", 1, "the end of the zip directory does not match"),
        (END + 10, "<H", 3, "the end of the zip directory does not match"),
        (END + 12, "<I", 10, "its zip directory is damaged"),
        (END + 16, "<I", DIRECTORY - 1, "does not match the zip directory"),
        (DIRECTORY + 46, "<B", 0xFF, "does not match the zip directory"),
    ],
)
def test_a_directory_that_does_not_match_the_file_is_refused(place, form, number, message):
    data = bytearray(TWO)
    struct.pack_into(form, data, place, number)
    assert message in refusal(bytes(data))


def test_records_that_overlap_are_refused():
    """The local header of the second entry is inside the bytes of the first record."""
    inner = zipped([("b", b"2")])
    data = zipped([("a", inner[: inner.index(b"PK\1\2")]), ("b", b"2")])
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    changed = bytearray(data)
    struct.pack_into("<I", changed, second + 42, data.index(b"PK\3\4", 1))
    assert "'b' overlaps the data before it" in refusal(bytes(changed))


def test_a_zip64_end_that_does_not_match_the_old_one_is_refused():
    data = bytearray(FEW.read_bytes())
    struct.pack_into("<Q", data, data.index(b"PK\6\6") + 32, 9)
    struct.pack_into("<Q", data, data.index(b"PK\6\6") + 24, 9)
    assert "does not match" in refusal(bytes(data))


def test_a_flipped_bit_in_a_record_is_noticed():
    for place in (TWO.index(b"1111"), TWO.index(b"2222") + 3):
        data = bytearray(TWO)
        data[place] ^= 1
        assert "does not match its CRC-32" in refusal(bytes(data))


def test_a_zip_file_cut_at_any_byte_is_refused():
    for size in range(len(TWO)):
        assert "cut short" in refusal(TWO[:size])
