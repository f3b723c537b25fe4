"""Texts with a label each, from the files that people keep them in, and from the docstrings of Python itself.

.csv     commas, texts in quotes where they hold one; the first line names the columns
.tsv     a tab between the columns, and no quotes; the first line names them
.jsonl   an object on each line
folder   a folder in it for each label, and a file in that for each text
"""

from __future__ import annotations

import ast
import io
import json
import os
import stat
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.atomic import found_at, storage_errors, write_atomically
from nanograd_llm.files.csv import csv_rows
from nanograd_llm.files.json import json_lines, read_json_file
from nanograd_llm.settings import counted, listed, nearest, shown
from nanograd_llm.text.corpora import read_text, warn_of_repeated, well_formed
from nanograd_llm.text.sources import written

Labelled = list[tuple[str, str]]  # (text, label)
Found = Iterator[tuple[str, str, str]]  # where, text, label

# Of the modules with the most docstrings, twelve that every version of Python since 3.10 has.
MODULES = "tkinter asyncio email importlib logging xml _pydecimal multiprocessing mailbox turtle unittest http".split()
SHORTEST, LONGEST = 20, 400  # characters of a docstring
LABELS = "labels.json"  # in the folder of a run


def builtin_docstrings() -> Labelled:
    """About 3,000 docstrings of the standard library, each with the name of its module: twelve of them.

    Texts of 20 to 400 characters, each once. Raises StorageError if this Python was installed without its sources.
    """
    library, found = Path(sysconfig.get_path("stdlib")), dict[str, str]()
    for module in MODULES:
        for path in sorted((library / module).rglob("*.py")) or [library / f"{module}.py"]:
            if path.exists() and not {"test", "tests", "idle_test"} & {*path.relative_to(library).parts}:
                for text in _docstrings(path):
                    if SHORTEST <= len(text) <= LONGEST:
                        found.setdefault(text, module)
    if len({*found.values()}) < len(MODULES) // 2:
        raise StorageError(f"{library}: has no sources of Python's modules, the built-in texts; give a file instead")
    return list(found.items())


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of backslashes in the module's strings
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield " ".join((ast.get_docstring(node) or "").split())


def read_labelled(path: str | os.PathLike[str], text: str = "text", label: str = "label", remedy: str = "") -> Labelled:
    """The texts of a file or folder with their labels, in its order, a pair that occurs again left out.

    text, label: the names of the columns; of a folder they are not used. remedy: what helps where one is missing, if
        not another name in the file.
    Raises BadFileError, with the place, for a column that is missing or there twice, a row that does not fit the
    header, an empty text or label; otherwise as `read_text` does.
    """
    kind, remedy = Path(path).suffix.lower(), remedy or f"rename its columns to {text} and {label}"
    if stat.S_ISDIR(found_at(path).st_mode):
        rows = _of_folder(Path(path))
    elif kind == ".jsonl":
        rows = _of_objects(path, text, label, remedy)
    elif kind in (".csv", ".tsv"):
        rows = _of_table(path, text, label, remedy)
    else:
        raise BadFileError(
            f"{path}: labelled texts come from a .csv, .tsv or .jsonl, or a folder with a folder for each label"
        )
    found: dict[tuple[str, str], None] = {}
    empty, count = list[str](), 0
    for where, one, name in rows:
        pair = well_formed(one.strip()), well_formed(" ".join(name.split()))
        found[pair], count = None, count + 1
        if not all(pair):
            empty.append(f"{where}: the {'label' if pair[0] else 'text'} is empty")
    if empty:
        more = f"; {counted(len(empty) - 1, 'more row')} without a text or a label" if len(empty) > 1 else ""
        raise BadFileError(f"{empty[0]}; complete that, or remove it{more}")
    if not found:
        raise BadFileError(f"{path}: has no texts; give a row for each")
    warn_of_repeated(path, count, len(found))
    return list(found)


def save_labels(path: str | os.PathLike[str], names: Sequence[str]) -> None:
    """Write the names of the classes, in the order of their numbers. Raises StorageError."""
    write_atomically(path, json.dumps({"labels": [*names]}).encode() + b"\n")


def load_labels(path: str | os.PathLike[str], classes: int) -> list[str]:
    """The names that `save_labels` wrote. Raises BadFileError unless they are so many different ones."""
    names = read_json_file(path).get("labels")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadFileError(f"{path}: its labels are {shown(names, 60)}; expected a list of strings")
    if not len(names) == len({*names}) == classes:
        raise BadFileError(f"{path}: has {len({*names})} different labels; the model has {classes} classes")
    return names


def _of_table(path: str | os.PathLike[str], text: str, label: str, remedy: str) -> Found:
    tabs = Path(path).suffix.lower() == ".tsv"
    rows = csv_rows(io.StringIO(read_text(path), newline=""), str(path), tabs=tabs)
    _, header = next(rows)
    begin = "the first line must name the columns; "
    columns = [_column(name, header, f"{path}", begin, remedy) for name in (text, label)]
    yield from ((where, row[columns[0]], row[columns[1]]) for where, row in rows)


def _column(name: str, header: list[str], where: str, expected: str, remedy: str) -> int:
    """The place of a column. Raises BadFileError, with the names there are, unless it is there once."""
    if header.count(name) != 1:
        near = nearest(name, header)
        why = f"two columns are named {name!r}; rename one" if name in header else f"has no column {name!r}"
        hint = f" (did you mean {near!r}?)" if near and near != name else ""
        raise BadFileError(f"{where}: {why}; {expected}it has {listed(header)}{hint}; {remedy}")
    return header.index(name)


def _of_objects(path: str | os.PathLike[str], text: str, label: str, remedy: str) -> Found:
    for where, row in json_lines(read_text(path).encode().split(b"\n"), str(path)):
        one, name = (row[[*row][_column(key, [*row], where, "", remedy)]] for key in (text, label))
        if not isinstance(one, str) or not isinstance(name, (str, int)):
            raise BadFileError(
                f"{where}: {text} is {shown(one, 40)} and {label} {shown(name, 40)}; expected a string, and a "
                "string or integer"
            )
        yield where, one, str(name)


def _holds_runs(inside: Sequence[Path]) -> bool:
    """Is all that a folder holds runs and models, as of `runs/` beside the folders of the labels?"""
    return bool(inside) and all(one.is_dir() and written(str(one)) for one in inside)


def _of_folder(path: Path) -> Found:
    with storage_errors(f"{path}: cannot be listed", "check the path and its permissions"):
        folders = sorted(one for one in path.iterdir() if one.is_dir() and one.name[0] != ".")
        files = [(one, sorted(file for file in one.iterdir() if file.name[0] != ".")) for one in folders]
    files = [(one, inside) for one, inside in files if not _holds_runs(inside)]
    if not any(inside for _, inside in files):
        raise BadFileError(f"{path}: has no folders with files in them; expected a folder for each label")
    for folder, inside in files:
        for file in inside:
            yield str(file), read_text(file), folder.name
