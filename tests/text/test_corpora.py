"""Corpora: the built-in text is English and always the same, files are read strictly, the end is held out."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanograd_llm.errors import BadFileError, ConfigError, DtypeError, ShapeError, StorageError
from nanograd_llm.text import (
    BPETokenizer,
    CharTokenizer,
    WordPieceTokenizer,
    WordTokenizer,
    builtin_corpus,
    read_lines,
    read_text,
    split_text,
)
from nanograd_llm.text.corpora import well_formed


def test_builtin_corpus_is_about_465_kb_of_english_in_the_order_of_topics():
    text = builtin_corpus()
    assert 350_000 < len(text.encode()) < 800_000
    assert text == builtin_corpus()
    assert text.count(" the ") > 2500
    assert text.index('The "assert" statement\n****') < text.index('The "while" statement\n****')


def test_a_python_without_the_builtin_corpus_gives_a_storage_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(StorageError, match="give a text file"):
        builtin_corpus()


def test_a_file_is_read_as_it_is(tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve\r\n\x00日本\n".encode())
    assert read_text(tmp_path / "a.txt") == "naïve\r\n\x00日本\n"
    assert read_text(str(tmp_path / "a.txt")) == read_text(tmp_path / "a.txt")


def test_a_byte_order_mark_is_left_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read_text(tmp_path / "a.txt") == "hello"


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_the_error_for_bad_utf8_gives_its_offset_in_the_file(tmp_path, start):
    (tmp_path / "a.txt").write_bytes(start + b"hello \xff world")
    with pytest.raises(BadFileError, match=rf"a\.txt is not UTF-8: byte 0xff at offset {len(start) + 6} "):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"caf\xe9 au lait", "convert it to UTF-8 first, for example: iconv -f WINDOWS-1252 -t UTF-8 "),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "it looks like a binary file; give a text"),
        (bytes(range(1, 256)) * 9, "it looks like a binary file; give a text"),
    ],
)
def test_a_text_in_another_encoding_and_a_binary_file_are_told_apart(content, said, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BadFileError, match=said):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BadFileError, match="is empty"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named_with_the_command_that_converts_it(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("Plain English, but in another encoding.\n" * 3, encoding)
    command = r"iconv -f UTF-16 -t UTF-8 \S+a\.txt > \S+a-utf8\.txt$"
    with pytest.raises(BadFileError, match=rf"a\.txt is UTF-16; convert it to UTF-8 first: {command}"):
        read_text(tmp_path / "a.txt")


def test_a_fifo_a_directory_and_a_device_are_not_regular_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, "/dev/zero"):
        with pytest.raises(StorageError, match="is not a regular file"):
            read_text(path)


@pytest.mark.parametrize("name", ["missing.txt", "nul\x00.txt", "a.txt/below"])
def test_a_file_that_cannot_be_opened_is_a_storage_error(tmp_path, name):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(StorageError, match="cannot read|no such file"):
        read_text(tmp_path / name)


def test_a_symlink_loop_is_a_storage_error(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError, match="cannot read"):
        read_text(tmp_path / "loop")


def test_the_last_tenth_is_held_out():
    text = builtin_corpus()
    train, held_out = split_text(text)
    assert train == text[: int(len(text) * 0.9)]
    assert train + held_out == text
    assert split_text("0123456789", held_out=0.5) == ("01234", "56789")


@pytest.mark.parametrize("part", [0, 1, -0.1, float("nan"), 10, True, "0.1", None])
def test_a_held_out_part_outside_0_to_1_is_refused(part):
    with pytest.raises(ConfigError, match="held_out must be"):
        split_text("some text", held_out=part)


@pytest.mark.parametrize(("text", "part"), [("", 0.1), ("a", 0.1), ("a text", 1e-20)])
def test_a_split_that_leaves_a_part_empty_is_refused(text, part):
    with pytest.raises(ShapeError, match=f"of {len(text)} characters leaves one part empty"):
        split_text(text, held_out=part)


@settings(derandomize=True)
@given(st.text(st.characters(codec=None)))
def test_well_formed_text_differs_only_in_its_surrogates(text):
    fixed = well_formed(text)
    fixed.encode("utf-8")
    assert well_formed(fixed) == fixed
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert fixed == text


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("a\ud800", "a\ufffd"),
        ("\udc00b", "\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud800\ud83d\ude00", "\ufffd\U0001f600"),
    ],
)
def test_a_lone_surrogate_is_replaced_and_a_pair_is_joined(text, fixed):
    assert well_formed(text) == fixed


def test_the_lines_of_a_file_are_those_that_are_not_blank(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("one\r\n\n  two \n\u3000\nthree".encode())
    assert read_lines(path) == ["one", "two", "three"]


@pytest.mark.parametrize(("content", "said"), [(b"\0\0\n", "NUL characters"), (b"\n \n", "blank lines only")])
def test_a_file_without_lines_of_text_is_refused(content, said, tmp_path):
    (tmp_path / "lines.txt").write_bytes(content)
    with pytest.raises(BadFileError, match=said):
        read_lines(tmp_path / "lines.txt")


def test_the_name_of_a_file_is_refused_where_a_text_is_expected(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("poem.txt").write_text("the cat sat")
    takers: list[Any] = [split_text, CharTokenizer.train, WordTokenizer.train, WordPieceTokenizer.train]
    for take in [*takers, BPETokenizer.train]:
        for name in ("poem.txt", Path("poem.txt")):
            with pytest.raises(DtypeError, match=r"is the name of a file.*ng.text.read_text\('poem.txt'\)"):
                take(name)
    assert split_text("other.txt") == ("other.tx", "t")
    assert WordTokenizer.train("a cat").words == [" a", " cat"]
