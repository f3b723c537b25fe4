"""Pairs from the files that people have; an incomplete pair is refused with its line, or counted."""

from __future__ import annotations

import gettext
import io
import struct
from pathlib import Path

import pytest

from nanograd_llm.errors import BadFileError
from nanograd_llm.text.pairs import read_pairs

PO = r"""
# a comment
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

#: file.c:3
msgid "the cat"
msgstr "le chat"
msgctxt "menu"
msgid ""
"Open \"this\" "
"file"
msgstr "Ouvrir ce fichier"

#, fuzzy
msgid "the dog"
msgstr "le chien"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d fichier"
msgstr[1] "%d fichiers"

msgid "the bird"
msgstr ""
#~ msgid "gone"
#~ msgstr "parti"
"""


def mo(entries: dict[str, str], order: str = "<") -> bytes:
    """A .mo of these entries, as msgfmt writes it."""
    sides = [[text.encode() for text in side] for side in (sorted(entries), [entries[k] for k in sorted(entries)])]
    head, tables, texts = 28, b"", b""
    for side in sides:
        for text in side:
            tables += struct.pack(f"{order}2I", len(text), head + 16 * len(entries) + len(texts))
            texts += text + b"\0"
    counts = (0x950412DE, 0, len(entries), head, head + 8 * len(entries), 0, 0)
    return struct.pack(f"{order}7I", *counts) + tables + texts


@pytest.mark.parametrize("first", ["English\tFrench", "source\t target", "en\tde"])
def test_a_first_line_that_looks_like_a_header_is_taken_as_a_pair_and_a_warning_says_so(
    first: str, tmp_path: Path
) -> None:
    (tmp_path / "x.tsv").write_text(f"{first}\nthe cat\tle chat\n", "utf-8")
    with pytest.warns(UserWarning, match="its first line, '.*' -> '.*', is taken as a pair; delete it if it is a he"):
        assert len(read_pairs(tmp_path / "x.tsv")) == 2


def test_two_columns_are_pairs(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("the cat\tle chat\n the dog \tle chien\n", "utf-8")
    assert read_pairs(tmp_path / "x.tsv") == [("the cat", "le chat"), ("the dog", "le chien")]


def test_lines_of_two_files_are_pairs(tmp_path: Path) -> None:
    (tmp_path / "x.en").write_text("the cat\r\nthe\u2028dog\r\n", "utf-8")
    (tmp_path / "x.fr").write_text("le chat\nle chien", "utf-8")
    assert read_pairs(tmp_path / "x.en", tmp_path / "x.fr") == [("the cat", "le chat"), ("the\u2028dog", "le chien")]


def test_a_po_gives_its_pairs_and_counts_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "x.po").write_text(PO, "utf-8")
    told = "3 of 5 entries are left out: 1 fuzzy, 1 with plural forms, 1 not translated"
    with pytest.warns(UserWarning, match=told):
        found = read_pairs(tmp_path / "x.po")
    assert found == [("the cat", "le chat"), ('Open "this" file', "Ouvrir ce fichier")]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_mo_gives_its_pairs_as_gettext_reads_them(tmp_path: Path, order: str) -> None:
    entries = {"": "Content-Type: text/plain; charset=UTF-8\n", "the cat": "le chat", "menu\x04open": "ouvrir"}
    entries["%d file\0%d files"] = "%d fichier\0%d fichiers"
    content = mo(entries, order)
    assert gettext.GNUTranslations(io.BytesIO(content)).gettext("the cat") == "le chat"
    (tmp_path / "x.mo").write_bytes(content)
    with pytest.warns(UserWarning, match="1 of 3 entries are left out: 1 with plural forms"):
        assert read_pairs(tmp_path / "x.mo") == [("open", "ouvrir"), ("the cat", "le chat")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.tsv", "a\tb\n\tb\n", "x.tsv, line 2: the source is empty; complete the pair, or remove it"),
        ("x.tsv", "a\tb\na\t \n", "x.tsv, line 2: the target is empty"),
        ("x.tsv", "a\tb\nc\n", "x.tsv, line 2: has 0 tabs; expected SOURCE, a tab, TARGET"),
        ("x.tsv", "a\tb\tc\n", "line 1: has 2 tabs"),
        ("x.txt", "a\n", "x.txt: pairs come from a .tsv, .po or .mo; for two files of lines"),
        ("x.po", 'msgid "a\n', "x.po, line 1: '\"a' is not as in a .po"),
        ("x.po", 'msgid "a"\nmsgstr ""\n', "x.po: no entry is left to learn from"),
        ("x.mo", "abcdefgh", "x.mo: is not a .mo file: it begins with b'abcd'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_file_that_holds_no_pairs_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(BadFileError) as caught:
        read_pairs(tmp_path / name)
    assert said in str(caught.value)


def test_files_of_different_length_are_refused_with_both(tmp_path: Path) -> None:
    (tmp_path / "x.en").write_text("a\nb\n", "utf-8")
    (tmp_path / "x.fr").write_text("a\n", "utf-8")
    with pytest.raises(BadFileError, match=r"x.en has 2 lines and .*x.fr has 1; line N of one must be the translation"):
        read_pairs(tmp_path / "x.en", tmp_path / "x.fr")
    (tmp_path / "x.fr").write_text("a\n\n", "utf-8")
    with pytest.raises(BadFileError, match="line 2: the target is empty"):
        read_pairs(tmp_path / "x.en", tmp_path / "x.fr")


def test_a_mo_cut_anywhere_is_a_bad_file(tmp_path: Path) -> None:
    content = mo({"the cat": "le chat", "the dog": "le chien"})
    for length in range(4, len(content) - 1):
        (tmp_path / "x.mo").write_bytes(content[:length])
        with pytest.raises(BadFileError):
            read_pairs(tmp_path / "x.mo")
