"""Files that are whole or not there: written beside their place, synced, then renamed over it.

Whenever the machine stops, a reader finds the old content or the new, never a part of either.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from nanograd_llm.errors import StorageError


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Make `content` the whole of the file at `path`.

    The bytes go to a temporary file of random name in the same folder (never through a symlink that waits there), are
    synced to disk and renamed over `path`, and the folder is synced. An existing file passes on its permissions, a new
    one follows the umask; a symlink at `path` is replaced, not followed. A file that is mapped into memory keeps its
    bytes for whoever has it mapped.

    Raises StorageError, with the temporary removed and the previous file kept, if any step fails. The exception is
    the last step, the sync of the folder: the new file is then in place, but could be lost with the power.
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    renamed = False
    try:
        mode = _mode_to_keep(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        file = os.open(temporary, flags, 0o666 if mode is None else mode)
        try:
            if mode is not None:
                os.chmod(temporary, mode)
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(temporary, path)
        renamed = True
        sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        kept = "the new file is in place but may not survive a power loss" if renamed else "nothing there was changed"
        raise StorageError(
            f"{path}: cannot write {len(content):,} bytes: {error.strerror or error}; {kept}; "
            "make room or choose another folder"
        ) from error
    finally:
        if not renamed:
            with contextlib.suppress(OSError):  # what stopped the write is the error worth reading
                os.unlink(temporary)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Put a folder's own entries (new, renamed, removed names) on disk. Raises OSError."""
    if os.name == "nt":  # Windows opens no folder as a file, and keeps names in its journal
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mode_to_keep(path: Path) -> int | None:
    """The permissions of the regular file at `path`; None where there is none."""
    try:
        found = path.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        raise StorageError(f"{path}: is not a regular file (a folder, pipe or device); choose another path")
    return stat.S_IMODE(found)
