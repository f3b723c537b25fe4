"""Files that are whole or not there: written beside their place, synced, then renamed over it; also several together.

Whenever the machine stops, a reader finds the old content or the new, never a part of either.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from nanograd_llm.errors import BadFileError, NanogradError, StorageError

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")  # the names of files and folders that are not finished yet


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Make `content` the whole of the file at `path`: see `replacing`."""
    write_parts(path, [content])


def write_parts(path: str | os.PathLike[str], parts: Iterable[bytes | memoryview]) -> None:
    """Make these parts, one after the other, the whole of the file at `path`, as `replacing` does."""
    with replacing(path) as file:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(file, rest) :]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[int]:
    """A file descriptor to write to; where the block ends well, what it wrote is the file at `path`.

    The bytes go to a temporary file of random name in the same folder, are synced to disk and renamed over `path`, and
    the folder is synced. The permissions of an existing file are kept; a symlink at `path` is replaced, not followed.

    Raises StorageError, with the temporary file removed and the previous file kept, if any step fails. Where only the
    sync of the folder fails, the new file is in place, but could be lost with the power.
    """
    path = Path(path)
    temporary = path.parent / _random_name()
    with storage_errors(f"{path}: cannot write", "nothing there was changed; make room or choose another folder"):
        mode = _permissions(path)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            file = os.open(temporary, flags, 0o666 if mode is None else mode)
            try:
                if mode is not None:
                    os.chmod(temporary, mode)  # the umask may have taken some away
                yield file
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(temporary, path)
        except BaseException:  # also Ctrl-C
            with contextlib.suppress(OSError):  # what stopped the write is the error worth reading
                os.unlink(temporary)
            raise
    _sync_folders(path, [path.parent])


@contextlib.contextmanager
def written_together(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder for files that belong together; where the block ends well, they appear in `folder`.

    A `folder` that does not exist appears in one step, with all of them. Into an existing one they are moved one by
    one, and nothing is overwritten. Where anything fails, none of them is left, nor any folder that was made.
    """
    folder = Path(folder)
    above = [path for path in folder.parents if not path.exists()]
    temporary = (folder if folder.exists() else folder.parent) / _random_name()
    moved: list[Path] = []
    try:
        with storage_errors(f"{folder}: cannot make a folder there", "choose another place"):
            temporary.mkdir(parents=True)
        yield temporary
        remedy = "nothing there was changed; choose another folder"
        with storage_errors(f"{folder}: cannot move the files there", remedy):
            if folder.exists():
                for path in sorted(temporary.iterdir()):
                    _move_to_new(path, folder / path.name)
                    moved.append(folder / path.name)
                temporary.rmdir()
            else:
                os.rename(temporary, folder)
    except BaseException as error:  # also Ctrl-C
        for path in [*moved, *temporary.glob("*"), temporary, *above]:
            with contextlib.suppress(OSError):  # what stopped the writing is the error worth reading
                path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, StorageError):
            raise StorageError(str(error).replace(str(temporary), str(folder))) from error.__cause__
        raise
    _sync_folders(folder, [folder, folder.parent, *(path.parent for path in above)])


@contextlib.contextmanager
def regular_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The file at `path`, open for reading.

    Raises StorageError if it is missing, unreadable, or a folder, pipe or device.
    """
    with storage_errors(f"{path}: cannot read", "check the path and its permissions"):
        if _permissions(Path(path)) is None:  # before it is opened: opening a device can do things
            raise StorageError(f"{path}: no such file")
        with open(path, "rb", opener=_open_without_waiting) as file:
            _require_regular(path, os.fstat(file.fileno()))  # the name may have changed hands in between
            yield file


def read_bytes(path: str | os.PathLike[str], at_most: int | None = None) -> bytes:
    """All of a regular file. Raises as `regular_file` does, and BadFileError if it has more than `at_most` bytes."""
    with regular_file(path) as file:
        if at_most is None:
            return file.read()
        content = file.read(at_most + 1)
    if len(content) > at_most:
        raise BadFileError(f"{path}: has more than {at_most:,} bytes, too many for what it should be")
    return content


@contextlib.contextmanager
def storage_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn any error of the system in the body into `StorageError("{what}: {the system's reason}; {remedy}")`."""
    try:
        yield
    except NanogradError:
        raise
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
        raise StorageError(f"{what}: {reason}; {remedy}") from error


def _random_name() -> str:
    return f".{os.urandom(8).hex()}.tmp"


def _move_to_new(path: Path, target: Path) -> None:
    """Rename where nothing is there yet, however many do so at once."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise StorageError(f"{target}: is there already; choose another folder, or remove it first") from None
    except OSError:  # a disk without links
        os.rename(path, target)
    else:
        path.unlink()


def _sync_folders(written: Path, folders: Iterable[Path]) -> None:
    """Put the entries of these folders (new, renamed, removed names) on disk."""
    if os.name == "nt":  # Windows opens no folder as a file, and keeps names in its journal
        return
    with storage_errors(f"{written}: written, but may not survive a power loss", "check the disk"):
        for folder in dict.fromkeys(folders):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _permissions(path: Path) -> int | None:
    """The permissions of the regular file at `path`; None where there is nothing."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    _require_regular(path, found)
    return stat.S_IMODE(found.st_mode)


def _require_regular(path: str | os.PathLike[str], found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise StorageError(f"{path}: is not a regular file (a folder, pipe or device); give the path of a file")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer
