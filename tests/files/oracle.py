"""The oracle: reading a hostile file must give arrays or one error, within limits of time and memory, nothing else."""

from __future__ import annotations

import codecs
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nanograd_llm.errors import BadFileError, StorageError

SECONDS = 1.0  # of this process's own time, so that a busy machine does not matter
SPARE = 64 * 2**20  # bytes, beside twice the file

codecs.lookup("cp437")  # zipfile decodes names with it; Python loads it on first use
_breaches: list[str] = []
_folder: str | None = None  # while a file is being read: the folder whose files may be opened


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook. While a file is read, only opening, mapping and listing in its own folder are allowed."""
    if _folder is None:
        return
    if event in ("open", "os.listdir", "os.scandir"):
        path, *mode = arguments
        flags = mode[1] if event == "open" else os.O_RDONLY
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        inside = not isinstance(path, int) and os.path.realpath(path).startswith(_folder)
        if not inside or writes:
            _breaches.append(f"{event} {path!r:.200}")
    elif event not in ("mmap.__new__", "builtins.id"):
        _breaches.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_watch)


class Breach(AssertionError):
    """A rule that reading a file must keep was broken."""


def read_watched(read: Callable[[Path], Any], path: Path, folder: Path) -> Any:
    """What `read(path)` returns, or the error that it raises. Raises `Breach` if a rule is broken.

    Only files in `folder` may be opened. All arrays that it returns are read to their last byte.
    """
    global _folder
    size = sum(file.lstat().st_size for file in folder.iterdir())
    _breaches.clear()
    real = os.path.realpath(folder)
    begin = time.process_time()
    _folder = real
    try:
        found = read(path)
    except (BadFileError, StorageError) as error:
        found = error
    except BaseException as error:
        _folder = None
        raise Breach(f"raises {error!r:.500}") from error
    finally:
        _folder = None
    seconds = time.process_time() - begin
    if _breaches:
        raise Breach(f"does what no reader of weights should: {_breaches[:5]}")
    if seconds > SECONDS:
        raise Breach(f"takes {seconds:.1f} s")
    if isinstance(found, Exception):
        _check_error(found)
    else:
        _check_arrays(list(arrays_of(found)), size)
    return found


def arrays_of(found: Any) -> Iterator[np.ndarray]:
    """Every array in a structure of dicts, lists and tuples; each part is visited once."""
    seen, waiting = set(), [found]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, np.ndarray):
            yield thing
        elif isinstance(thing, (dict, list, tuple)) and id(thing) not in seen:
            seen.add(id(thing))
            waiting.extend(thing.values() if isinstance(thing, dict) else thing)


def _check_error(error: Exception) -> None:
    text = str(error)
    if not text or len(text) > 2000 or "\n" in text or getattr(error, "exit_code", None) not in (3, 4):
        raise Breach(f"raises an error of {len(text):,} characters: {text[:2000]!r}")


def _check_arrays(arrays: list[np.ndarray], size: int) -> None:
    for array in arrays:
        if array.flags.writeable:
            raise Breach(f"gives an array of shape {array.shape} that can be written to")
        if array.dtype.hasobject:
            raise Breach("gives an array of objects")
        if array.nbytes > 2 * size:
            raise Breach(f"gives {array.nbytes:,} bytes for a file of {size:,}")
        array.tobytes()
