"""Texts from many places as one: a file, a folder, a pattern of files, JSON lines, gzip, or standard input."""

from __future__ import annotations

import glob
import os
import sys
import zlib
from collections.abc import Callable, Iterator

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.atomic import read_bytes, storage_errors
from nanograd_llm.files.json import json_lines
from nanograd_llm.settings import counted, listed
from nanograd_llm.text.corpora import decoded

BETWEEN = "\n\n\n"  # documents, as between the topics of the built-in corpus
MOST = 2**33  # bytes that a gzip file may hold
Report = Callable[[str, float], object]


def read_source(source: str, report: Report = lambda doing, share: None) -> str:
    """The texts of a source, one after the other, with two empty lines between them.

    source: a UTF-8 file; a folder, for all files in it and below; a pattern such as "docs/**/*.md"; "-" for standard
        input. A name that ends in .gz is unpacked; a name in .jsonl holds an object on each line, with its text under
        "text".
    report: called with what is being read, and the share that is done.

    Files come in the order of their names. In a folder, hidden files are left out, and files that are no text; `report`
    says how many, and why the first. Raises StorageError if there is nothing to read, BadFileError for what is no text.
    """
    if source == "-":
        return decoded(sys.stdin.buffer.read(), "standard input")
    texts: list[str] = []
    skipped: list[str] = []
    paths = list(_files(source))
    for i, path in enumerate(paths):
        if i:
            report(f"reading {source}", i / len(paths))
        try:
            texts += _documents(path)
        except BadFileError as error:
            if not os.path.isdir(source):
                raise
            skipped.append(str(error))
    if not texts:
        why = f"; {skipped[0]}" if skipped else ""
        raise StorageError(f"{source}: has no text among {counted(len(paths), 'file')}{why}")
    if skipped:
        report(f"left out {len(skipped)} of {len(paths)} files: {skipped[0]}", 1)
    return BETWEEN.join(texts)


def read_lines(source: str | os.PathLike[str], report: Report = lambda doing, share: None) -> list[str]:
    """The lines of a source that are not blank. source, report: as for `read_source`.

    Raises as that does, and BadFileError where there are none.
    """
    lines = [line.strip() for line in read_source(os.fspath(source), report).splitlines()]
    if any("\0" in line for line in lines):
        raise BadFileError(f"{source} has NUL characters in it; expected lines of text")
    if not any(lines):
        raise BadFileError(f"{source} has blank lines only; expected a text on each line")
    return [line for line in lines if line]


def _files(source: str) -> Iterator[str]:
    if os.path.isdir(source):
        with storage_errors(f"{source}: cannot list the folder", "check its permissions"):
            for folder, folders, names in os.walk(source):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                found = [os.path.join(folder, name) for name in sorted(names) if not name.startswith(".")]
                yield from (path for path in found if os.path.isfile(path))
        return
    matched = [] if os.path.exists(source) else sorted(glob.glob(source, recursive=True))
    yield from (path for path in matched if os.path.isfile(path)) if matched else [source]


def _documents(path: str) -> list[str]:
    """The texts in one file."""
    content, name = read_bytes(path), path
    if name.endswith(".gz"):
        name = name.removesuffix(".gz")
        try:
            unpacking = zlib.decompressobj(wbits=31)
            content = unpacking.decompress(content, MOST)
            if not unpacking.eof or unpacking.unused_data:
                raise zlib.error("it is cut short, holds several parts, or is too large")
        except zlib.error as error:
            raise BadFileError(f"{path}: cannot be unpacked: {error}; unpack it with gunzip") from error
    text = decoded(content, path)
    if not name.endswith(".jsonl"):
        return [text]
    texts = []
    for where, row in json_lines(text.encode(), path):
        if not isinstance(row.get("text"), str):
            raise BadFileError(f'{where}: expected an object with a string "text"; it has {listed([*row])}')
        texts.append(row["text"])
    return texts
