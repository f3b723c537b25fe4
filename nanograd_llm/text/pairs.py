"""Pairs of texts, a source and its translation, from the files that people keep them in.

.tsv        a line for each pair, a tab between the two; no line that names the columns
.po, .mo    translations of a program, as gettext keeps them
two files   line by line, source and target
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.atomic import found_at, read_bytes
from nanograd_llm.settings import shown
from nanograd_llm.text.corpora import read_text

FIRST = ("msgctxt", "msgid")  # the keywords that an entry of a .po begins with
LANGUAGES = "english french german spanish italian portuguese dutch russian chinese japanese en fr de es it pt nl ru"
HEADINGS = {*f"source target src tgt {LANGUAGES} zh ja".split()}  # what columns of pairs are called
Pairs = list[tuple[str, str]]
PathLike = str | os.PathLike[str]


def read_pairs(path: PathLike, target: PathLike | None = None) -> Pairs:
    """The pairs of a file, by the end of its name; or of the lines of two files.

    Of a .po or .mo, entries that are fuzzy, not translated, or have plural forms are left out, and a warning counts
    them. Every line of a .tsv is a pair; where the first looks like a header, a warning says so.
    Raises BadFileError, with the line, for a pair with an empty side, and for files of different length; otherwise as
    `read_text` does.
    """
    found_at(path)
    kind = Path(path).suffix.lower()
    if target is not None:
        sources, targets = map(_lines, (path, target))
        if len(sources) != len(targets):
            raise BadFileError(
                f"{path} has {len(sources):,} lines and {target} has {len(targets):,}; line N of one must be the "
                "translation of line N of the other"
            )
        return _complete(enumerate(zip(sources, targets), 1), f"{path} and {target}")
    if kind == ".po":
        return _translated(_po_entries(read_text(path), path), path)
    if kind == ".mo":
        return _translated(_mo_entries(path), path)
    if kind != ".tsv":
        raise BadFileError(
            f"{path}: pairs come from a .tsv, .po or .mo; for two files of lines, give the target as well (train "
            "takes it as --target FILE)"
        )
    rows = []
    for number, line in enumerate(_lines(path), 1):
        columns = line.split("\t")
        if len(columns) != 2:
            raise BadFileError(f"{path}, line {number}: has {len(columns) - 1} tabs; expected SOURCE, a tab, TARGET")
        rows.append((number, (columns[0], columns[1])))
    if HEADINGS.issuperset(side.strip().lower() for side in rows[0][1]):
        first = " -> ".join(map(repr, rows[0][1]))
        warnings.warn(f"{path}: its first line, {first}, is taken as a pair; delete it if it is a header", stacklevel=2)
    return _complete(iter(rows), os.fspath(path))


def _lines(path: PathLike) -> list[str]:
    return read_text(path).removesuffix("\n").split("\n")


def _complete(rows: Iterator[tuple[int, tuple[str, str]]], where: str) -> Pairs:
    """The pairs, none of which may have an empty side."""
    found = []
    for number, pair in rows:
        source, target = (side.strip() for side in pair)
        if not source or not target:
            empty = "source" if not source else "target"
            raise BadFileError(f"{where}, line {number}: the {empty} is empty; complete the pair, or remove it")
        found.append((source, target))
    return found


class _Entry(dict[str, str]):
    """What an entry of gettext says, by its keywords: msgid, msgstr, perhaps msgctxt, msgid_plural, fuzzy."""


def _translated(entries: Iterator[_Entry], path: PathLike) -> Pairs:
    """The pairs of the entries that have exactly one translation."""
    found, left_out = [], {"fuzzy": 0, "with plural forms": 0, "not translated": 0}
    for entry in entries:
        source, target = entry.get("msgid", "").strip(), entry.get("msgstr", "").strip()
        if "fuzzy" in entry:
            left_out["fuzzy"] += 1
        elif "msgid_plural" in entry:
            left_out["with plural forms"] += 1
        elif source and not target:
            left_out["not translated"] += 1
        elif source:  # the entry without one is the header
            found.append((source, target))
    if any(left_out.values()):
        counts = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
        count = sum(left_out.values())
        warnings.warn(f"{path}: {count:,} of {len(found) + count:,} entries are left out: {counts}", stacklevel=3)
    if not found:
        raise BadFileError(f"{path}: no entry is left to learn from")
    return found


def _po_entries(text: str, path: PathLike) -> Iterator[_Entry]:
    """The entries of a .po: keyword "text", which further lines of "text" continue."""
    entry, keyword = _Entry(), ""
    for number, line in enumerate([*text.split("\n"), ""], 1):
        line = line.strip()
        begins = re.match(r'(msgctxt|msgid|msgid_plural|msgstr)(?:\[\d+\])?\s+(?=")', line)
        if entry.get("msgstr") is not None and (not line or line[0] == "#" or (begins and begins[1] in FIRST)):
            yield entry
            entry = _Entry()
        if re.match(r"#,.*\bfuzzy\b", line):
            entry["fuzzy"] = ""
        if not line or line[0] == "#":
            continue
        keyword, line = (begins[1], line[begins.end() :]) if begins else (keyword, line)
        if not keyword or not re.fullmatch(r'"(?:[^"\\]|\\.)*"', line):
            raise BadFileError(
                f'{path}, line {number}: {shown(line, 50)} is not as in a .po; expected msgid "..." and the like'
            )
        entry[keyword] = entry.get(keyword, "") + re.sub(r"\\(.)", _unescaped, line[1:-1])


def _unescaped(found: re.Match[str]) -> str:
    return {"n": "\n", "t": "\t", "r": "\r"}.get(found[1], found[1])


def _mo_entries(path: PathLike) -> Iterator[_Entry]:
    """The entries of a .mo: two tables of lengths and places, of the sources and of their translations."""
    data = read_bytes(path)
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(data[:4])
    if order is None:
        raise BadFileError(f"{path}: is not a .mo file: it begins with {data[:4]!r}")
    try:
        _, _, count, *tables = struct.unpack_from(f"{order}5I", data)
        for i in range(count):
            sides = []
            for table in tables:
                length, place = struct.unpack_from(f"{order}2I", data, table + 8 * i)
                if place + length > len(data):
                    raise BadFileError(f"{path}: is cut short: an entry ends at byte {place + length:,}")
                sides.append(data[place : place + length].decode("utf-8"))
            source, target = sides
            plural = {"msgid_plural": ""} if "\0" in source else {}
            yield _Entry(msgid=source.rpartition("\x04")[2], msgstr=target, **plural)  # behind its context
    except (struct.error, UnicodeDecodeError) as error:
        raise BadFileError(f"{path}: is damaged, or not UTF-8: {error}") from error
