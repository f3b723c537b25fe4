"""Texts from many places as one: a file, a folder, a pattern of files, JSON lines, gzip, or standard input."""

from __future__ import annotations

import glob
import itertools
import operator
import os
import re
import shlex
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from nanograd_llm.errors import BadFileError, ConfigError, StorageError
from nanograd_llm.files.atomic import regular_file, require_complete, storage_errors
from nanograd_llm.files.csv import csv_rows
from nanograd_llm.files.json import BYTES_A_VALUE, MAX_ROW_VALUES, json_lines
from nanograd_llm.settings import counted, listed
from nanograd_llm.text.bpe import Report
from nanograd_llm.text.corpora import decoded_blocks

BETWEEN = "\n\n\n"  # documents, as between the topics of the built-in corpus
MOST = 2**36  # bytes that a gzip file may hold
BLOCK = 2**16  # bytes that are read at once; buffers of a megabyte, of ever new sizes, leave holes in the heap
PARTS = ("train", "val")  # of a prepared folder: see `prepared`
DESCRIPTION = "prepared.toml"
# of a model that this package or transformers saved
WEIGHTS = re.compile(r".*\.safetensors|(pytorch|adapter)_model.*\.bin|model\.npz")
# what learns from files of rows, by the end of their names: tasks, and what of a row each learns
ROWS = {
    ".csv": {"classification": "labels"},
    ".tsv": {"classification": "labels", "translation": "translations"},
    ".po": {"translation": "translations"},
    ".json": {"instruction": "answers", "preference": "preferences"},
}
# the same for an object of a .jsonl, by a key that it has
KEYS = {"rejected": "preference", "label": "classification"}
KEYS |= dict.fromkeys(("output", "completion", "messages", "conversations"), "instruction")


def read_source(source: str, report: Report = lambda doing, share: None) -> str:
    """The texts of a source, one after the other, with two empty lines between them: see `documents`."""
    return BETWEEN.join(documents(source, report))


def documents(source: str, report: Report = lambda doing, share: None, size: int | None = None) -> Iterator[str]:
    """The texts of a source, one at a time, so that they may be larger than the memory.

    source: a UTF-8 file; a folder, for all files in it and below; a pattern such as "docs/**/*.md"; "-" for standard
        input. A name that ends in .gz is unpacked; a name in .jsonl holds an object on each line, with its text under
        "text", or under the name behind a #; of a .csv or .tsv with a # only that column: see `with_field`.
    report: called with what is being read, and the share that is done.
    size: a longer text comes in parts of at most so many characters, cut after the end of a line where there is one.

    Files come in the order of their names. In a folder, hidden files are left out. Of a folder or a pattern, files
    that are no text are left out, and so are the folders of runs and models in it, whose files a program wrote: a
    warning says how many, and of each reason the first. Raises StorageError if there is nothing to read, BadFileError
    for what is no text, ConfigError for the folder of a run or a model, and for a prepared one.
    """
    return (text for _, text in _named(source, report, size))


def named_texts(source: str, report: Report = lambda doing, share: None) -> Iterator[tuple[str, str]]:
    """The path of each file of a source, "-" for standard input, and its texts as one; otherwise as `documents`."""
    for path, found in itertools.groupby(_named(source, report, None), operator.itemgetter(0)):
        yield path, BETWEEN.join(text for _, text in found)


def _named(source: str, report: Report, size: int | None) -> Iterator[tuple[str, str]]:
    """Each of the `documents`, after the path of its file."""
    if is_prepared(source):
        raise ConfigError(f"{source}: is a prepared folder, which only the task language-model takes; give the texts")
    if source == "-":
        blocks = decoded_blocks(_read_blocks(sys.stdin.buffer), "standard input")
        yield from ((source, text) for text in _parts(blocks, size))
        return
    folders: list[str] = []  # that are left out
    field, found, paths = with_field(source)[1], 0, list(files_of(source, folders.append))
    skipped: dict[str, list[str]] = {}  # what was said of files, by its reason
    for i, path in enumerate(paths):
        if i:
            report(f"reading {source}", i / len(paths))
        if paths != [with_field(source)[0]]:  # of a folder or a pattern, so that nobody named this file
            try:
                for _ in _documents(path, field, size):  # all of a file is a text, or none of it is taken
                    pass
            except BadFileError as error:
                reason = re.sub(r"^[:, ]*(line \d+: )?", "", str(error).removeprefix(path))
                skipped.setdefault(re.split("[:;]", reason)[0], []).append(str(error))
                continue
        for text in _documents(path, field, size):
            found += 1
            yield path, text
    if not found:
        why = f"; {next(iter(skipped.values()))[0]}" if skipped else _left_out(folders)
        raise StorageError(f"{source}: has no text among {counted(len(paths), 'file')}{why}")
    if skipped:
        each = [first + (f" (and {len(more):,} more)" if more else "") for first, *more in skipped.values()]
        count = sum(map(len, skipped.values()))
        warnings.warn(f"left out {count} of {len(paths)} files: {'; '.join(each)}{_left_out(folders)}", stacklevel=2)
    elif folders:
        warnings.warn(_left_out(folders).removeprefix("; "), stacklevel=2)


def _left_out(folders: Sequence[str]) -> str:
    """What to add to a line about a source of which these folders are left out."""
    more = f" (and {len(folders) - 1:,} more)" if len(folders) > 1 else ""
    return f"; left out the folder {folders[0]}, which is {written(folders[0])}, no text{more}" if folders else ""


def written(folder: str) -> str:
    """What a folder is whose files a program wrote, in words: a run, a model, or a prepared folder; "" for others."""
    names = {*os.listdir(folder)}
    if names >= {"config.toml", "checkpoints"}:
        return "a run"
    if DESCRIPTION in names:
        return "a prepared folder"
    is_model = names & {"config.json", "adapter_config.json"} and any(map(WEIGHTS.fullmatch, names))
    return "the folder of a model" if is_model else ""


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Is this a folder with token files? Raises BadFileError where one is missing, and as `require_complete`."""
    if os.path.isdir(path):
        require_complete(path)
    names = [f"{part}.bin" for part in PARTS]
    there = [name for name in (*names, DESCRIPTION) if os.path.isfile(os.path.join(path, name))]
    missing = [name for name in names if name not in there]
    if there and missing:  # or else its description would be learned as a text
        raise BadFileError(f"{path}: is a prepared folder without {' and '.join(missing)}; prepare it again")
    return bool(there)


def weighted(source: str) -> tuple[str, float | None]:
    """A source and the weight behind its colon; None where it has none, or this is the name of a file.

    >>> weighted("books/:0.7"), weighted("notes.txt")
    (('books/', 0.7), ('notes.txt', None))
    """
    name, _, weight = source.rpartition(":")
    if not name or os.path.exists(source) or not re.fullmatch(r"\d+(\.\d*)?|\.\d+", weight):
        return source, None
    return name, float(weight)


def with_field(source: str) -> tuple[str, str]:
    """A source and what is behind its #: the field of its .jsonl files, or the column of its tables, with the text.

    >>> with_field("chats/*.jsonl#body"), with_field("CHATS.TSV.gz#body"), with_field("notes#1.txt")
    (('chats/*.jsonl', 'body'), ('CHATS.TSV.gz', 'body'), ('notes#1.txt', ''))
    """
    form = r"(.+\.(?i:jsonl|csv|tsv)(?:\.gz)?)#([^/\\]+)"
    found = None if os.path.lexists(source) else re.fullmatch(form, source, re.DOTALL)
    return (found[1], found[2]) if found else (source, "")


def require_plain(sources: Iterable[str | None], *, option: str | None = None, task: str = "") -> None:
    """Raise ConfigError for a file of rows that is named without a column: its commas and braces are no text.

    One of a folder or a pattern is taken as it is. sources: as for `documents`, each perhaps with its weight. option:
    the option that takes them, and a space, or "", of a command that does not learn. task: of the run that is scored.
    """
    forms = [kind for kind, tasks in ROWS.items() if task in tasks] + [".jsonl"] * (task in KEYS.values())
    scored = f"a run of {task} is scored on one {' or '.join(forms)}; for another score, on text, " if forms else ""
    for source in sources:
        path, field = with_field(weighted(source or "")[0])
        unpacked = path.removesuffix(".gz")
        kind = Path(unpacked).suffix.lower()
        if kind in ROWS and not field and os.path.isfile(path):
            name, tasks = shlex.quote(unpacked), ROWS[kind].items() if option is None else ()
            option = option or ""
            first = "" if unpacked == path else f"after gunzip -k {shlex.quote(path)}, "
            learning = ", ".join(f"--task {task} learns their {what}" for task, what in tasks)
            ways = [f"nanograd-llm train {name} {learning}, "] if tasks else []
            column = f"{option}{name}#COLUMN is the text of one column, by its name in line 1, "
            ways += [column] if kind in (".csv", ".tsv") else []
            ways += ["and "] if ways else []
            raise ConfigError(
                f"{path} holds rows: {scored}{first}{''.join(ways)}{option}- < {name} is all of it as plain text"
            )


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


def files_of(source: str, leave_out: Callable[[str], object] = lambda folder: None) -> Iterator[str]:
    """The paths of the files of a source, without those in the folders of runs and models, which `leave_out` gets.

    Raises StorageError for a folder that cannot be listed, and a pattern without a match; ConfigError for a folder
    that is itself a run or a model.
    """
    source = with_field(source)[0]
    if os.path.isdir(source):
        with storage_errors(f"{source}: cannot list the folder", "check its permissions"):
            if (what := written(source)) and what != "a prepared folder":
                raise ConfigError(
                    f"{source}: is {what}, no text; train --init {shlex.quote(source)} trains it further; if there are "
                    f'texts in it, name them: "{os.path.join(source, "*.txt")}"'
                )
            for folder, folders, names in os.walk(source):
                inside = [os.path.join(folder, name) for name in sorted(folders) if not name.startswith(".")]
                folders[:] = [os.path.basename(path) for path in inside if not _is_left_out(path, leave_out)]
                found = [os.path.join(folder, name) for name in sorted(names) if not name.startswith(".")]
                yield from (path for path in found if os.path.isfile(path))
        return
    matched = [] if os.path.exists(source) else sorted(glob.glob(source, recursive=True))
    if not matched and glob.has_magic(source) and not os.path.lexists(source):
        raise StorageError(f"{source}: no file matches this pattern; check it, and put quotes around it")
    if not matched:
        yield source
        return
    named = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(source).parts))
    known: dict[Path, bool] = {}  # is this folder left out?
    with storage_errors(f"{source}: cannot list a folder", "check its permissions"):
        for path in matched:
            above = [place for place in reversed(Path(path).parents) if named in place.parents]  # that nobody named
            for place in above:
                if place not in known:
                    known[place] = known.get(place.parent, False) or _is_left_out(str(place), leave_out)
            if os.path.isfile(path) and not (above and known[above[-1]]):
                yield path


def _is_left_out(folder: str, leave_out: Callable[[str], object]) -> bool:
    if is_written := bool(written(folder)):
        leave_out(folder)
    return is_written


def _documents(path: str, field: str, size: int | None) -> Iterator[str]:
    """The texts in one file, or parts of them.  field: of JSON lines, or of a table; "" for "text", or all of it"""
    with regular_file(path) as file:
        blocks = decoded_blocks(_unpacked(file, path) if path.endswith(".gz") else _read_blocks(file), path)
        kind = os.path.splitext(path.removesuffix(".gz"))[1].lower()
        rows: Iterable[tuple[str, Mapping[str, object]]]
        if kind == ".jsonl":
            rows, field = json_lines(_lines(blocks), path), field or "text"
        elif kind in (".csv", ".tsv") and field:
            table = csv_rows((f"{line.decode()}\n" for line in _lines(blocks)), path, tabs=kind == ".tsv")
            header = next(table)[1]
            rows = ((where, dict(zip(header, row))) for where, row in table)
        else:
            yield from _parts(blocks, size)
            return
        for where, row in rows:
            if not isinstance(text := row.get(field), str):
                sizes = {name: len(value) for name, value in row.items() if isinstance(value, str)}
                longest = "#".join(map(shlex.quote, (path, max(sizes, key=sizes.__getitem__, default=""))))
                ways = [f"name the one with the text behind a #: {longest}"] if sizes else []
                ways += [f"train it with --task {KEYS[key]}" for key in KEYS if key in row][:1]
                raise BadFileError(
                    f'{where}: has no text under "{field}"; its fields are {listed([*row])}; '
                    + ("; or ".join(ways) or "write a text on each line")
                )
            yield from _parts([text], size)


def _read_blocks(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(BLOCK), b"")


def _unpacked(file: BinaryIO, path: str) -> Iterator[bytes]:
    """What a gzip file holds, in blocks. Raises BadFileError."""
    unpacking, most = zlib.decompressobj(wbits=31), MOST
    try:
        for packed in _read_blocks(file):
            while packed and most > 0:
                block = unpacking.decompress(packed, BLOCK)
                most -= len(block)
                if block:  # an empty one would be taken for the end
                    yield block
                packed = unpacking.unconsumed_tail
        if not unpacking.eof or unpacking.unused_data:
            raise zlib.error("it is cut short, holds several parts, or is too large")
    except zlib.error as error:
        raise BadFileError(f"{path}: cannot be unpacked: {error}; unpack it with gunzip") from error


def _lines(blocks: Iterable[str]) -> Iterator[bytes]:
    """The lines of a text; one that is far too long for a row is given as it is so far."""
    parts, size = list[str](), 0  # of the line that is not at its end yet
    for block in blocks:
        first, *lines = block.split("\n")
        for line in lines:
            yield "".join([*parts, first]).encode()
            parts, size, first = [], 0, line
        parts.append(first)
        size += len(first)
        if size > BYTES_A_VALUE * MAX_ROW_VALUES:
            break
    yield "".join(parts).encode()


def _parts(blocks: Iterable[str], size: int | None) -> Iterator[str]:
    """The text of these blocks, in parts of at most `size` characters; an empty one as it is."""
    if size is None:
        yield "".join(blocks)
        return
    rest, is_empty = "", True
    for block in blocks:
        rest, begin = rest + block, 0
        while len(rest) - begin > size:
            end = rest.rfind("\n", begin, begin + size) + 1 or begin + size
            yield rest[begin:end]
            begin, is_empty = end, False
        rest = rest[begin:]
    if rest or is_empty:
        yield rest
