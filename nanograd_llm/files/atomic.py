"""Atomic writing: a file is written under a temporary name, synced to disk, then renamed; also several files together.

If the machine stops at any moment, a reader finds the old content or the new content, never a part of it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from nanograd_llm.errors import BadFileError, NanogradError, StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pathlib import Path  # at run time where a path is made, because most programs open no file

MOST = 1000  # files that are written together; a stranger's folder may hold more
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.(tmp|done)")  # names of unfinished files and folders


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace the file at `path` by one that holds `content`: see `replacing`."""
    write_parts(path, [content])


def write_parts(path: str | os.PathLike[str], parts: Iterable[bytes | memoryview]) -> None:
    """Replace the file at `path` by one that holds these parts, one after the other: see `replacing`."""
    with replacing(path) as file:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(file, rest) :]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[int]:
    """A file descriptor to write to; if the block raises nothing, what was written becomes the file at `path`.

    The bytes go to a temporary file with a random name in the same folder, are synced to disk and renamed to `path`,
    and the folder is synced. An existing file's permissions are kept; a symlink at `path` is replaced, not followed.

    If a step fails, the temporary file is removed, the previous file is kept, and StorageError is raised. If only the
    sync of the folder fails, the new file is in place, but a power loss could still undo the rename.
    """
    from pathlib import Path

    path = Path(path)
    temporary = path.parent / _random_name()
    remedy = "make room or choose another folder" if os.path.isdir(path.parent) else "make its folder first"
    with storage_errors(f"{path}: cannot write", f"nothing there was changed; {remedy}"):
        mode = _permissions(path)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            file = os.open(temporary, flags, 0o666 if mode is None else mode)
            try:
                if mode is not None:
                    os.chmod(temporary, mode)  # the umask may have cleared some bits
                yield file
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(temporary, path)
        except BaseException:  # also Ctrl-C
            with contextlib.suppress(OSError):  # the first error is the one to report
                os.unlink(temporary)
            raise
    _sync_folders(path, [path.parent])


def require_folder(path: str | os.PathLike[str]) -> None:
    """Raise StorageError unless a file can be written to the folder of `path`: to find that out before the work."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        fault = "cannot be written to" if os.path.isdir(folder) else "is not there"
        raise StorageError(f"{path}: cannot write: the folder {folder} {fault}; make it, or choose another name")


def require_replaceable(path: str | os.PathLike[str], ending: str, begins: bytes) -> None:
    """Raise StorageError unless `path` ends in `ending`, and what is there is missing or a file of the same kind.

    begins: the first bytes of that kind. So a slip of the hand does not destroy a text, or what is read from.
    """
    if not os.fspath(path).endswith(ending):
        raise StorageError(f"{path}: does not end in {ending}; give a name that does, as that is what is written")
    require_folder(path)
    if not os.path.lexists(path):
        return
    with regular_file(path) as file:
        is_same = file.read(len(begins)) == begins
    if not is_same:
        raise StorageError(f"{path}: already exists and was not written by this command; choose another name")


@contextlib.contextmanager
def written_together(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder for files that belong together; if the block raises nothing, they are moved to `folder`.

    A `folder` that does not exist appears in one step, with all files. Into an existing one they are moved one by one,
    and nothing is overwritten. If anything fails, all of them are removed, with every folder that was created. What a
    killed process left there is removed first; until then `require_complete` refuses the folder.
    """
    from pathlib import Path
    from shutil import rmtree

    folder = Path(folder)
    above = [path for path in folder.parents if not path.exists()]
    temporary = (folder if folder.exists() else folder.parent) / _random_name()
    moved: list[Path] = []
    _remove_leftovers(temporary.parent)
    try:
        with contextlib.ExitStack() as stack:
            with storage_errors(f"{folder}: cannot create the folder", "choose another place"):
                temporary.mkdir(parents=True)
                stack.enter_context(_locked(temporary))
            yield temporary
            remedy = "nothing there was changed; choose another folder"
            with storage_errors(f"{folder}: cannot move the files there", remedy):
                if folder.exists():
                    for path in sorted(temporary.rglob("*")):  # a folder before what is in it
                        target = folder / path.relative_to(temporary)
                        if path.is_file():
                            _link_to_new(path, target)
                        elif target.is_dir() and not target.is_symlink():  # a link would lead elsewhere
                            continue
                        else:
                            target.mkdir()
                        moved.append(target)
                    _sync([folder, *(path for path in moved if path.is_dir())])
                    os.rename(temporary, temporary.with_suffix(".done"))  # from here on they are complete
                    moved.clear()
                else:
                    os.rename(temporary, folder)
    except BaseException as error:  # also Ctrl-C
        for path in [*reversed(moved), *sorted(temporary.rglob("*"), reverse=True), temporary, *above]:
            with contextlib.suppress(OSError):  # the first error is the one to report
                path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, StorageError):
            raise StorageError(str(error).replace(str(temporary), str(folder))) from error.__cause__
        raise
    rmtree(temporary.with_suffix(".done"), ignore_errors=True)
    _sync_folders(folder, [folder, folder.parent, *(path.parent for path in above)])


def found_at(path: str | os.PathLike[str]) -> os.stat_result:
    """What is at `path`. Raises StorageError where nothing is: to be said before what kind of file is expected."""
    with storage_errors(f"{path}: cannot read", "check the path and its permissions"):
        try:
            return os.stat(path)
        except FileNotFoundError:
            remedy = "standard input is not read here; give a file" if os.fspath(path) == "-" else "check the path"
            raise StorageError(f"{path}: no such file; {remedy}") from None


@contextlib.contextmanager
def regular_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The file at `path`, open for reading.

    Raises StorageError if it is missing, unreadable, or a folder, pipe or device.
    """
    _require_regular(path, found_at(path))  # before opening: to open a device can have effects
    with storage_errors(f"{path}: cannot read", "check the path and its permissions"):
        with open(path, "rb", opener=_open_without_waiting) as file:
            _require_regular(path, os.fstat(file.fileno()))  # the file may have been replaced in between
            yield file


def read_bytes(path: str | os.PathLike[str], at_most: int | None = None) -> bytes:
    """The content of a regular file. Raises as `regular_file`, and BadFileError if it has over `at_most` bytes."""
    with regular_file(path) as file:
        if at_most is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        content = file.read(at_most + 1) if size <= at_most else b""
    if max(size, len(content)) > at_most:
        raise BadFileError(f"{path}: has more than {at_most:,} bytes, too many for a file of this kind")
    return content


@contextlib.contextmanager
def storage_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn an error of the operating system into `StorageError("{what}: {the system's reason}; {remedy}")`."""
    try:
        yield
    except NanogradError:
        raise
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
        raise StorageError(f"{what}: {reason}; {remedy}") from error


def _random_name() -> str:
    return f".{os.urandom(8).hex()}.tmp"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, which ends with its process; yields whether it was free, False if it has no locks."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except OSError:  # held, or a file system without locks
            is_free = False
        yield is_free
    finally:
        os.close(handle)


def require_complete(folder: str | os.PathLike[str]) -> None:
    """Raise BadFileError where only some of the files that were to be `written_together` are in a folder.

    On a file system without hard links, where they are renamed instead, this does not show.
    """
    from pathlib import Path

    with contextlib.suppress(OSError):
        for temporary in Path(folder).iterdir():
            if TEMPORARY.fullmatch(temporary.name) and (found := _moved_from(temporary)):
                raise BadFileError(
                    f"{folder}: has {found[0].name}, but perhaps not all files that belong to it: they are being "
                    f"written, or the program was killed; write them again, or remove them and {temporary.name}"
                )


def _moved_from(temporary: Path) -> list[Path]:
    """The files of a temporary folder that the folder around it already has as well; none of one that is done."""
    paths = sorted(itertools.islice(temporary.rglob("*"), MOST)) if temporary.suffix == ".tmp" else ()
    pairs = [(path, temporary.parent / path.relative_to(temporary)) for path in paths]
    return [target for path, target in pairs if target.is_file() and path.samefile(target)]


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of killed processes in `folder`, which nobody holds, and what was moved from them.

    A failure changes nothing.
    """
    from shutil import rmtree

    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if TEMPORARY.fullmatch(path.name):
                with contextlib.suppress(OSError), _locked(path) as is_free:  # a link is none of ours: OSError
                    if is_free:
                        for moved in _moved_from(path):
                            moved.unlink()
                        rmtree(path)


def _link_to_new(path: Path, target: Path) -> None:
    """Give a file a second name, `target`, which must not exist; or that name only, where there are no hard links.

    Safe if several processes do so at the same time.
    """
    try:
        os.link(path, target)
    except FileExistsError:
        raise StorageError(f"{target}: already exists; choose another folder, or remove it first") from None
    except OSError:  # a file system without hard links
        os.rename(path, target)


def _sync_folders(written: Path, folders: Iterable[Path]) -> None:
    """Sync the entries of the folders that `written` is in."""
    with storage_errors(f"{written}: written, but a power loss may undo it", "check the disk"):
        _sync(folders)


def _sync(folders: Iterable[Path]) -> None:
    """Sync the entries of these folders (new, renamed, removed names) to disk."""
    if os.name == "nt":  # Windows cannot open a folder as a file; its file system keeps a journal of names
        return
    for folder in dict.fromkeys(folders):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _permissions(path: Path) -> int | None:
    """The permissions of the regular file at `path`; None if it does not exist."""
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
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # to open a pipe would wait for its writer
