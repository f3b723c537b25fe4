"""A disk that fails: numbers every open, write, fsync, replace and unlink below a folder, and fails at one of them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "fsync", "replace", "unlink")
# Where Python 3.10 keeps the functions of `os` that a Path calls; later ones call those of `os`.
OF_PATHS = getattr(pathlib, "_NormalAccessor", os)
WAYS = (
    "before",
    "torn",
    "after",
    "EIO",
    "ENOSPC",
)  # die before or after the call, or in the middle; errors of the disk
KILLED = 9


class Disk:
    """Records calls of `os` below `folder`, and fails at the call number `point` in one of the ways.

    calls: (name, path, data) of each so far. An append through a Python file is an open and a write.
    copies: a folder in which to keep what `folder` holds before each call and in the middle of it: what a process that
        is killed there leaves; each different state once, under its number.
    """

    def __init__(self, folder: Path, point: int = -1, way: str = "before", copies: Path | None = None):
        self.folder, self.point, self.way, self.copies = os.path.abspath(folder), point, way, copies
        self.states: set[tuple[tuple[str, bytes], ...]] = set()
        self.calls: list[tuple[str, str, Any]] = []
        self.names: dict[int, str] = {}  # paths of open files
        self.real = {name: getattr(os, name) for name in (*CALLS, "close")}
        self.open = pathlib.Path.open

    @contextlib.contextmanager
    def installed(self) -> Iterator[Disk]:
        for name in (*CALLS, "close"):
            setattr(os, name, getattr(self, f"_{name}"))
        for name in ("replace", "unlink"):
            setattr(OF_PATHS, name, getattr(self, f"_{name}"))
        disk, opened = self, self.open

        def path_open(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if "a" not in mode or not disk._is_below(path):
                return opened(path, mode, *rest, **more)
            return _Appending(disk, str(path))

        pathlib.Path.open = path_open  # type: ignore[method-assign]
        try:
            yield self
        finally:
            pathlib.Path.open = opened  # type: ignore[method-assign]
            for name, call in self.real.items():
                setattr(os, name, call)
            for name in ("replace", "unlink"):
                setattr(OF_PATHS, name, self.real[name])

    def _is_below(self, path: Any) -> bool:
        return os.path.abspath(os.fspath(path)).startswith(self.folder + os.sep) or str(path) == self.folder

    def _call(self, name: str, path: Any, data: Any, act: Any, half: Any = None) -> Any:
        """Do the call, unless it is the one that fails."""
        self.calls.append((name, str(path), data))
        self.keep_copy()
        if self.copies is not None and half is not None:
            done = half()
            self.keep_copy()
            return done + act(done)
        if len(self.calls) - 1 != self.point:
            return act()
        if self.way in ("EIO", "ENOSPC"):
            raise OSError(getattr(errno, self.way), os.strerror(getattr(errno, self.way)))
        if self.way == "torn" and half is not None:
            half()
        elif self.way != "before":
            act()
        os._exit(KILLED)

    def keep_copy(self) -> None:
        """Keep what the folder holds now."""
        if self.copies is not None:
            paths = [path for path in sorted(Path(self.folder).rglob("*")) if path.is_file()]
            state = tuple((str(path), path.read_bytes()) for path in paths)
            if state not in self.states:
                shutil.copytree(self.folder, self.copies / str(len(self.states)))
                self.states.add(state)

    def _open(self, path: Any, flags: int, *rest: Any, **more: Any) -> int:
        is_written = flags & (os.O_WRONLY | os.O_RDWR) or Path(os.fspath(path)).is_dir()
        if not (self._is_below(path) and is_written):
            return int(self.real["open"](path, flags, *rest, **more))
        file = self._call("open", path, flags, lambda: self.real["open"](path, flags, *rest, **more))
        self.names[file] = os.path.abspath(os.fspath(path))
        return int(file)

    def _write(self, file: int, data: Any) -> int:
        if file not in self.names:
            return int(self.real["write"](file, data))
        write, half = self.real["write"], max(1, len(data) // 2)

        def rest(done: int = 0) -> int:
            return int(write(file, data[done:]))

        return int(self._call("write", self.names[file], bytes(data), rest, lambda: write(file, data[:half])))

    def _fsync(self, file: int) -> None:
        if file in self.names:
            self._call("fsync", self.names[file], None, lambda: self.real["fsync"](file))

    def _close(self, file: int) -> None:
        self.names.pop(file, None)
        self.real["close"](file)

    def _replace(self, source: Any, target: Any) -> None:
        if not self._is_below(target):
            return self.real["replace"](source, target)
        self._call("replace", source, os.fspath(target), lambda: self.real["replace"](source, target))

    def _unlink(self, path: Any, *rest: Any, **more: Any) -> None:
        if not self._is_below(path):
            return self.real["unlink"](path, *rest, **more)
        self._call("unlink", path, None, lambda: self.real["unlink"](path, *rest, **more))


class _Appending(io.StringIO):
    """A Python file that is appended to; it writes when it is closed, as a buffered file does."""

    def __init__(self, disk: Disk, path: str):
        super().__init__()
        self.disk, self.path = disk, path

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(file, self.getvalue().encode("utf-8", "backslashreplace"))
            finally:
                os.close(file)
        super().__exit__(*error)


def after_power_loss(calls: list[tuple[str, str, Any]], before: dict[str, bytes]) -> Iterator[dict[str, bytes]]:
    """What a disk may hold if the power fails after these calls: the content of each file by path.

    before: what it held. A file has the content of its last sync, and of the writes since then nothing, all, half, or
    NULs in their place. A new, renamed or removed name may be lost until its folder is synced, each on its own.
    """
    named = dict(before)  # which content each name stands for; a file that is written is a list
    contents: dict[str, list[Any]] = {}  # of open files: what is synced, what was written since
    pending: list[tuple[str, str, Any]] = []
    durable: dict[str, Any] = dict(before)
    for name, path, data in calls:
        path = os.path.abspath(path)
        if name == "open" and not os.path.isdir(path):
            if path not in contents:
                contents[path] = [named.get(path, b"") if data & os.O_APPEND else b"", b""]
                if path not in durable:
                    pending.append(("create", path, contents[path]))
                else:
                    durable[path] = contents[path]
        elif name == "write":
            contents[path][1] += data
        elif name == "fsync" and path in contents:
            contents[path][:] = [contents[path][0] + contents[path][1], b""]
        elif name == "fsync":  # of a folder
            for op in [op for op in pending if os.path.dirname(op[1]) == path]:
                _apply(durable, op)
                pending.remove(op)
        elif name == "replace":
            target = os.path.abspath(data)
            contents[target] = contents.pop(path)
            pending.append(("rename", target, (path, contents[target])))
        elif name == "unlink":
            pending.append(("unlink", path, None))
    choices = [[], pending, *([op] for op in pending), *([o for o in pending if o is not op] for op in pending)]
    for chosen in choices:
        for way in ("nothing", "all", "half", "NULs"):
            state = dict(durable)
            for op in chosen:
                _apply(state, op)
            yield {path: _content(content, way) for path, content in state.items()}


def _apply(state: dict[str, Any], op: tuple[str, str, Any]) -> None:
    kind, path, data = op
    if kind == "create":
        state.setdefault(path, data)
    elif kind == "rename":
        state.pop(data[0], None)
        state[path] = data[1]
    else:
        state.pop(path, None)


def _content(content: Any, way: str) -> bytes:
    if isinstance(content, bytes):
        return content
    synced, since = content
    return (
        synced
        + {
            "nothing": b"",
            "all": since,
            "half": since[: len(since) // 2],
            "NULs": bytes(len(since)),
        }[way]
    )
