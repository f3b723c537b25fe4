"""Of zip files only what torch.save writes is read: stored records, one name each, none over another."""

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
        warnings.simplefilter("ignore")  # of names that stand there twice
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
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # numbers from here on go into 64 bits
    data = zipped([("short", b"1"), ("long", b"x" * 100), ("last", b"22")])
    assert b"PK\6\6" in data
    assert read(data) == {"short": b"1", "long": b"x" * 100, "last": b"22"}


def test_the_zip64_numbers_may_stand_behind_other_extras_and_must_be_whole(monkeypatch):
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
    ("data", "complaint"),
    [
        (b"", "the zip file's end: needs bytes"),
        (b"x" * 100, "does not end with the end of a zip directory"),
        (zipped([("a", b"1" * 5000)], zipfile.ZIP_DEFLATED), "compressed (method 8)"),
        (zipped([("a", b"1"), ("a", b"2")]), "two records are called 'a'"),
        (zipped([("../a", b"1")]), "a path of its own"),
        (zipped([("/a", b"1")]), "a path of its own"),
        (zipped([("a//b", b"1")]), "a path of its own"),
        (zipped([("./a", b"1")]), "a path of its own"),
        (zipped([("a", b"1")], comment=b"more"), "does not end with the end"),
        (zipped([("a", b"1")]) + b"\0", "does not end with the end"),
        (zipped([(str(n), b"") for n in range(MAX_DIRECTORY // 50)]), "at most 1,048,576 are read"),
    ],
)
def test_what_torch_does_not_write_is_refused(data, complaint):
    assert complaint in refusal(data)


TWO = zipped([("a", b"1111"), ("b", b"2222")])
DIRECTORY = TWO.index(b"PK\1\2")
SECOND = TWO.index(b"PK\1\2", DIRECTORY + 1)
LOCAL_SECOND = TWO.index(b"PK\3\4", 1)
END = TWO.index(b"PK\5\6")


@pytest.mark.parametrize(
    ("place", "form", "number", "complaint"),
    [
        (DIRECTORY + 8, "<H", 1, "encrypted"),
        (DIRECTORY + 10, "<H", 8, "compressed (method 8)"),
        (DIRECTORY + 20, "<I", 2, "compressed (method 0)"),
        (DIRECTORY + 24, "<I", 2**32 - 1, "compressed (method 0)"),
        (DIRECTORY + 34, "<H", 1, "in a form that torch.save does not write"),
        (DIRECTORY + 42, "<I", LOCAL_SECOND, "is not where the directory says"),
        (SECOND + 42, "<I", 0, "is not where the directory says"),
        (SECOND + 42, "<I", 10**6, "needs bytes"),
        (LOCAL_SECOND + 6, "<H", 1, "contradicts it"),
        (LOCAL_SECOND + 8, "<H", 8, "contradicts it"),
        (LOCAL_SECOND + 28, "<H", 40, "'the zip directory' overlaps"),
        (LOCAL_SECOND + 30, "<B", ord("c"), "is not where the directory says"),
        (DIRECTORY, "<I", 0, "Bad magic number for central directory"),
        (END + 4, "<H", 1, "its end contradicts its zip directory"),
        (END + 8, "<H", 1, "its end contradicts its zip directory"),
        (END + 10, "<H", 3, "its end contradicts its zip directory"),
        (END + 12, "<I", 10, "its zip directory is damaged"),
        (END + 16, "<I", DIRECTORY - 1, "is not where the directory says"),
        (DIRECTORY + 46, "<B", 0xFF, "is not where the directory says"),
    ],
)
def test_a_directory_that_contradicts_the_file_is_refused(place, form, number, complaint):
    data = bytearray(TWO)
    struct.pack_into(form, data, place, number)
    assert complaint in refusal(bytes(data))


def test_records_over_the_same_bytes_are_refused():
    """A second entry whose local header lies within the bytes of the first record."""
    inner = zipped([("b", b"2")])
    data = zipped([("a", inner[: inner.index(b"PK\1\2")]), ("b", b"2")])
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    changed = bytearray(data)
    struct.pack_into("<I", changed, second + 42, data.index(b"PK\3\4", 1))
    assert "'b' overlaps what lies before it" in refusal(bytes(changed))


def test_a_zip64_end_that_contradicts_the_old_one_is_refused():
    data = bytearray(FEW.read_bytes())
    struct.pack_into("<Q", data, data.index(b"PK\6\6") + 32, 9)
    struct.pack_into("<Q", data, data.index(b"PK\6\6") + 24, 9)
    assert "contradicts" in refusal(bytes(data))


def test_a_flipped_bit_in_a_record_is_seen():
    for place in (TWO.index(b"1111"), TWO.index(b"2222") + 3):
        data = bytearray(TWO)
        data[place] ^= 1
        assert "does not match its CRC-32" in refusal(bytes(data))


def test_a_zip_file_cut_at_any_byte_is_refused():
    for size in range(len(TWO)):
        refusal(TWO[:size])
