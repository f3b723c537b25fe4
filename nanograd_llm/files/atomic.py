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

from nanograd_llm.errors import StorageError

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")  # the names of files and folders that are not finished yet


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Make `content` the whole of the file at `path`, as `write_parts` does."""
    write_parts(path, [content], len(content))


def write_parts(path: str | os.PathLike[str], parts: Iterable[bytes | memoryview], size: int) -> None:
    """Make these parts, one after the other, `size` bytes in all, the whole of the file at `path`.

    The bytes go to a temporary file of random name in the same folder (never through a symlink that waits there), are
    synced to disk and renamed over `path`, and the folder is synced. An existing file passes on its permissions, a new
    one follows the umask; a symlink at `path` is replaced, not followed. A file that is mapped into memory keeps its
    bytes for whoever has it mapped.

    Raises StorageError, with the temporary removed and the previous file kept, if any step fails. The exception is
    the last step, the sync of the folder: the new file is then in place, but could be lost with the power.
    """
    path = Path(path)
    temporary = path.parent / f".{os.urandom(8).hex()}.tmp"
    refused = f"{path}: cannot write {size:,} bytes"
    with storage_errors(refused, "nothing there was changed; make room or choose another folder"):
        mode = _permissions(path)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            file = os.open(temporary, flags, 0o666 if mode is None else mode)
            try:
                if mode is not None:
                    os.chmod(temporary, mode)  # the umask may have taken some away
                for part in parts:
                    rest = memoryview(part)
                    while rest:
                        rest = rest[os.write(file, rest) :]
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # what stopped the write is the error worth reading
                os.unlink(temporary)
            raise
    with storage_errors(f"{path}: written, but may not survive a power loss", "check the disk"):
        _sync_folder(path.parent)


@contextlib.contextmanager
def written_together(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A place in which to write files that belong together; where the block ends well, they are moved into `folder`.

    `folder`, made if need be, must hold none of these names: nothing is written over. Where the block raises, or a file
    cannot be moved, none of them is left, nor the folder if it was made here; a StorageError then speaks of `folder`,
    not of the place.
    """
    folder = Path(folder)
    place = folder / f".{os.urandom(8).hex()}.tmp"
    made: list[Path] = []
    moved: list[Path] = []
    try:
        with storage_errors(f"{folder}: cannot make a folder there", "choose another place"):
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            place.mkdir(parents=True)
        yield place
        remedy = "nothing there was changed; choose another folder"
        with storage_errors(f"{folder}: cannot move the files there", remedy):
            for path in sorted(place.iterdir()):
                _move_to_new(path, folder / path.name)
                moved.append(folder / path.name)
            place.rmdir()
    except BaseException as error:  # also Ctrl-C
        for path in [*moved, *place.glob("*"), place, *made]:
            with contextlib.suppress(OSError):  # what stopped the writing is the error worth reading
                path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, StorageError):
            raise StorageError(str(error).replace(str(place), str(folder))) from error.__cause__
        raise
    with storage_errors(f"{folder}: written, but may not survive a power loss", "check the disk"):
        for path in (folder, *(path.parent for path in made)):
            _sync_folder(path)


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


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """All of a regular file. Raises StorageError if it is missing, unreadable, or a folder, pipe or device."""
    path = Path(path)
    with storage_errors(f"{path}: cannot read", "check the path and its permissions"):
        if _permissions(path) is None:
            raise StorageError(f"{path}: no such file")
        return path.read_bytes()


@contextlib.contextmanager
def storage_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn any error of the system in the body into `StorageError("{what}: {the system's reason}; {remedy}")`."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise StorageError(f"{what}: {getattr(error, 'strerror', None) or error}; {remedy}") from error


def _sync_folder(folder: Path) -> None:
    """Put a folder's own entries (new, renamed, removed names) on disk."""
    if os.name == "nt":  # Windows opens no folder as a file, and keeps names in its journal
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _permissions(path: Path) -> int | None:
    """The permissions of the regular file at `path`; None where there is nothing."""
    try:
        found = path.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        raise StorageError(f"{path}: is not a regular file (a folder, pipe or device); choose another path")
    return stat.S_IMODE(found)
