"""The folder of a run: config, tokenizer, metrics, samples and checkpoints. One process writes to it at a time.

config.toml                             the settings; a folder without it is no run
tokenizer.json                          the tokenizer
text.sha256                             the SHA-256 of the text that it was trained on
metrics.jsonl                           one JSON object per line
watch.jsonl                             what `train --watch` found, one JSON object per line
labels.json                             the names of the classes, of a classifier
loss.svg                                a picture of the loss against items and against time
samples.txt                             what the model wrote during training
checkpoints/step-00000100.safetensors   the newest is that of the highest step, whatever the times of the files
adapter/                                the adapters of the newest, in PEFT's form, of a run with LoRA
lock                                    the PID of the process that writes here
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.atomic import TEMPORARY, read_bytes, regular_file, storage_errors, write_atomically
from nanograd_llm.files.toml import read_toml, write_toml
from nanograd_llm.runs.checkpoints import load_checkpoint, save_checkpoint
from nanograd_llm.settings import listed, nearest

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


MOST_METRICS, MOST_LINE = 2**30, 2**20  # bytes of metrics.jsonl, and of a line there
HASH_NAME = "text.sha256"  # a hash in hexadecimal, then the name of the data
Record = TypeVar("Record")


class RunFolder(contextlib.AbstractContextManager["RunFolder"]):
    """The folder of one training run: `create` makes it, `open` opens it for reading, `with` closes it.

    A folder that is written to is locked with `flock`: a second run is refused, and a killed one leaves no lock. On
    Windows and some file systems there are no such locks; there only a folder that already holds a run is refused.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.toml"
        self.tokenizer_path = self.path / "tokenizer.json"
        self.hash_path = self.path / HASH_NAME
        self.metrics_path = self.path / "metrics.jsonl"
        self.watch_path = self.path / "watch.jsonl"
        self.samples_path = self.path / "samples.txt"
        self.checkpoints_path = self.path / "checkpoints"
        self.adapter_path = self.path / "adapter"
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Make the folder of a new run, locked. Raises StorageError unless it is new or empty, and writable."""
        run = cls(path)
        with storage_errors(f"{run.path}: cannot make a run folder there", "choose another folder"):
            run._refuse_content()
            os.makedirs(run.checkpoints_path, exist_ok=True)
            try:
                run._take_lock()
                for leftover in run._refuse_content():  # again: another process may have written before the lock
                    leftover.unlink()
            except BaseException:
                run.close()
                raise
        return run

    @classmethod
    def require_free(cls, path: str | os.PathLike[str]) -> None:
        """Raise StorageError as `create` would, but make nothing."""
        with storage_errors(f"{path}: cannot make a run folder there", "choose another folder"):
            cls(path)._refuse_content()
            require_writable(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """The run at `path`, for reading, also while another process writes to it.

        Raises StorageError if there is no such folder, or if it is no run (naming what is missing).
        """
        run = cls(path)
        if run.path.is_file():
            own = run_of_checkpoint(run.path)
            raise StorageError(
                f"{run.path}: is a file; expected the folder of a run, such as {own[0] if own else 'runs/nano-1'}"
            )
        try:
            with storage_errors(f"{run.path}: cannot open the run", "check the path and its permissions"):
                held = os.listdir(run.path)
        except StorageError:
            absent = "no such run; check the path: nanograd-llm info FOLDER lists runs"
            if meant := run_meant(run.path) or ("" if os.path.lexists(run.path) else absent):
                raise StorageError(f"{run.path}: {meant}") from None
            raise
        missing = [part.name for part in (run.config_path, run.checkpoints_path) if part.name not in held]
        if missing:
            fault = f"is not a run of nanograd_llm: it has no {', no '.join(missing)}"
            raise StorageError(f"{run.path}: {run_meant(run.path) or fault}")
        return run

    @classmethod
    def resume(cls, path: str | os.PathLike[str]) -> RunFolder:
        """The run at `path`, locked, to write to it again; temporary files of a killed process are removed.

        Raises StorageError as `open` does, and if another process writes there.
        """
        run = cls.open(path)
        with storage_errors(f"{run.path}: cannot write to the run", "check its permissions"):
            run._refuse_link()
            try:
                run._take_lock()
                for folder in (run.path, run.checkpoints_path):
                    for leftover in folder.iterdir():
                        if TEMPORARY.fullmatch(leftover.name):
                            leftover.unlink()
            except BaseException:
                run.close()
                raise
        return run

    @contextlib.contextmanager
    def emptied_on_failure(self) -> Iterator[None]:
        """If this block raises, as on a full disk, remove the files of the new run; the folder can be used again."""
        try:
            yield
        except BaseException:
            for path in self.path.iterdir():
                if path.name not in ("lock", "checkpoints"):
                    with contextlib.suppress(OSError):  # the error to report is the one of the block
                        path.unlink()
            self.close()
            raise

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(self._lock, fcntl.LOCK_UN)  # to close it is not enough: worker processes hold it too
            self._lock.close()
            self._lock = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_config(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """Write tables of settings, as `write_toml` does."""
        write_toml(self.config_path, config)

    def read_config(self) -> dict[str, dict[str, Any]]:
        """The tables of config.toml. Raises as `read_toml` does."""
        return read_toml(self.config_path)

    def append_metrics(self, record: Mapping[str, float]) -> None:
        """Add one line to metrics.jsonl, flushed before this returns.

        A record has `step` and further numbers. NaN and infinity, which JSON does not have, are written as strings.
        """
        self._append(self.metrics_path, _line(record))

    def read_metrics(self) -> list[dict[str, float]]:
        """The records of metrics.jsonl in the order of writing; a last line cut short by a kill is left out, and
        so are lines of which a power cut left NULs.

        Raises BadFileError with the number of a line that is no record of numbers with a `step`.
        """
        return _records(self.metrics_path, _record)

    def last_metrics(self, step: int | None = None) -> tuple[dict[str, float], dict[str, float]]:
        """The last record of a step and the last of a score, up to `step`; {} where there is none.

        The file is read from its end, so that a long run takes no longer. Raises as `read_metrics`.
        """
        last: dict[bool, dict[str, float]] = {}
        for block in _blocks_from_the_end(self.metrics_path) if self.metrics_path.exists() else ():
            if True in last and block.count(b'"loss": ') > block.count(b"\n"):
                continue  # it has steps only
            for line in reversed(block.split(b"\n")):
                is_step = b'"loss": ' in line
                if not line or b"\0" in line or is_step in last:
                    continue
                record = _record(line, f"{self.metrics_path}, near the end")
                if (step is None or record["step"] <= step) and (is_step or len(record) > 1):
                    last[is_step] = record
            if len(last) == 2:
                break
        return last.get(True, {}), last.get(False, {})

    def lost_metrics(self, records: Sequence[Mapping[str, float]]) -> str:
        """Which steps the metrics lack that a checkpoint is of, in words; "" if none.  records: of `read_metrics`"""
        last, saved = max((record["step"] for record in records), default=0), max(self.checkpoints(), default=0)
        if saved <= last:
            return ""
        return f"{self.metrics_path}: was cut or deleted: it ends at step {last:g}, a checkpoint is of step {saved}"

    def append_watched(self, record: Mapping[str, Any]) -> None:
        """Add one line to watch.jsonl: a `step`, and the tables `update` and `activations` of it."""
        self._append(self.watch_path, json.dumps(record) + "\n")

    def read_watched(self) -> list[dict[str, Any]]:
        """The records of watch.jsonl in the order of writing; what a kill or a power cut left is left out.

        Raises BadFileError with the number of a line that is no such record.
        """
        return _records(self.watch_path, _watched_record)

    def append_sample(self, step: int, text: str) -> None:
        """Add to samples.txt what the model wrote at `step`."""
        self._append(self.samples_path, f"--- step {step}\n{text}\n\n")

    def forget_after(self, step: int) -> None:
        """Remove the metrics, watched layers, samples and damaged checkpoints of later steps: they will come again."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        write_atomically(self.metrics_path, "".join(_line(record) for record in kept).encode())
        if self.watch_path.exists():
            watched = [json.dumps(record) + "\n" for record in self.read_watched() if record["step"] <= step]
            write_atomically(self.watch_path, "".join(watched).encode())
        if self.samples_path.exists():
            samples = re.split(r"(?m)^(?=--- step \d{1,15}$)", read_bytes(self.samples_path).decode("utf-8", "replace"))
            steps = [re.match(r"--- step (\d{1,15})\n", text) for text in samples]  # None for what a power cut left
            kept_samples = [text for text, found in zip(samples, steps) if found and int(found[1]) <= step]
            write_atomically(self.samples_path, "".join(kept_samples).encode())
        for later in self.checkpoints():
            if later > step:
                self.remove_checkpoint(later)

    def checkpoint_path(self, step: int) -> Path:
        """The path of the checkpoint of `step`, also if there is none."""
        return self.checkpoints_path / f"step-{step:08d}.safetensors"

    def checkpoints(self) -> dict[int, Path]:
        """Every checkpoint by its step, in the order of steps."""
        with storage_errors(f"{self.checkpoints_path}: cannot be listed", "check its permissions"):
            found = [(run_of_checkpoint(path), path) for path in self.checkpoints_path.iterdir()]
        return dict(sorted((run[1], path) for run, path in found if run))

    def save_checkpoint(self, step: int, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> Path:
        """Write the checkpoint of `step`, and return its path. Raises as `checkpoints.save_checkpoint` does."""
        path = self.checkpoint_path(step)
        save_checkpoint(path, arrays, metadata)
        return path

    def remove_checkpoint(self, step: int) -> None:
        """Remove the checkpoint of `step`, if there is one. Raises StorageError where that fails."""
        path = self.checkpoint_path(step)
        with storage_errors(f"{path}: cannot be removed", "check its permissions"):
            path.unlink(missing_ok=True)

    def newest_whole(self) -> tuple[int, dict[str, NDArray[Any]], dict[str, str]]:
        """The step, the arrays and the metadata of the newest checkpoint that is not damaged.

        Raises as `load_checkpoint` does where none is whole.
        """
        for step, path in reversed(self.checkpoints().items()):
            with contextlib.suppress(BadFileError):
                return step, *load_checkpoint(path)
        self.load_checkpoint()  # raises
        raise AssertionError

    def load_checkpoint(self, step: int | None = None) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
        """The arrays and metadata of the checkpoint of `step`, or of the newest.

        Raises StorageError if there is none, BadFileError if it is damaged, naming the newest older one that is whole.
        """
        known = self.checkpoints()
        if not known:
            if writer := self._writer():
                raise StorageError(f"{self.path}: has no checkpoint yet; process {writer} is training it, wait for one")
            raise StorageError(f"{self.path}: has no checkpoint: the run ended before it saved one; train again")
        if step is None:
            step = max(known)
        if step not in known:
            raise StorageError(f"{self.path}: has no checkpoint of step {step}; it has {', '.join(map(str, known))}")
        try:
            return load_checkpoint(known[step])
        except BadFileError as error:
            fault, hint = f"{known[step]}: is damaged: {str(error).removeprefix(f'{known[step]}: ')}", ""
            for older, path in reversed(known.items()):
                with contextlib.suppress(BadFileError, StorageError):
                    if older < step and load_checkpoint(path):
                        hint = f"step {older} is whole: give its file, {path}"  # at the end, where it is shown whole
                        break
            resume = f"train --resume {self.path} goes on from step {older}; " if hint and step == max(known) else ""
            raise BadFileError(f"{fault}; {resume}{hint or 'no older checkpoint is whole'}") from error

    def _refuse_content(self) -> list[Path]:
        """Raise StorageError unless the folder is new or empty; returns the temporary files of a killed process."""
        self._refuse_link()
        folders = [folder for folder in (self.path, self.checkpoints_path) if folder.exists()]
        found = [path for folder in folders for path in folder.iterdir()]
        leftovers = [path for path in found if TEMPORARY.fullmatch(path.name)]
        names = {path.name for path in found if path not in leftovers} - {"lock", "checkpoints"}
        if names:
            if writer := self._writer():
                raise StorageError(f"{self.path}: {_TAKEN.format(writer)}")
            what = "already holds a run" if "config.toml" in names else f"is not empty (it has {min(names)})"
            raise StorageError(f"{self.path}: {what}; choose another folder, or remove this one first")
        return leftovers

    def _refuse_link(self) -> None:
        """Raise StorageError if a part is a link, through which the run would write elsewhere."""
        for part in (self.checkpoints_path, self.adapter_path, self.metrics_path, self.watch_path, self.samples_path):
            if part.is_symlink():
                raise StorageError(f"{part}: is a link; remove it, or choose another folder")

    def _writer(self) -> str:
        """The PID of another process that writes here; "" if there is none, or it is not known."""
        with contextlib.suppress(OSError), (self.path / "lock").open(encoding="ascii") as lock:
            try:
                if fcntl is not None and self._lock is None:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read(20) or "unknown"
        return ""

    def _take_lock(self) -> None:
        """Become the only writer, or raise StorageError."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        self._lock = lock = os.fdopen(os.open(self.path / "lock", flags, 0o666), "r+", encoding="ascii")
        if os.fstat(lock.fileno()).st_nlink > 1:  # writing would change a file elsewhere
            raise StorageError(f"{self.path}/lock: is a hard link to another file; remove it")
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = lock.read(20) or "unknown"
            raise StorageError(f"{self.path}: {_TAKEN.format(owner)}") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):  # a file system without locks
                raise
        lock.truncate(0)
        lock.seek(0)
        lock.write(str(os.getpid()))
        lock.flush()

    def _append(self, path: Path, text: str) -> None:
        with storage_errors(f"{path}: cannot write", "make room, then train again"):
            with path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(text)


def _blocks_from_the_end(path: Path) -> Iterator[bytes]:
    """Blocks of whole lines of a file, the last ones first; a last line that a kill cut short is left out.

    Raises BadFileError for a line of more than MOST_LINE bytes.
    """
    with regular_file(path) as file:
        place, rest, has_end = file.seek(0, os.SEEK_END), b"", False
        while place:
            start = max(0, place - MOST_LINE)
            file.seek(start)
            rest, place = file.read(place - start) + rest, start
            if not has_end and b"\n" in rest:
                rest, has_end = rest.rpartition(b"\n")[0], True
            line, _, block = rest.partition(b"\n")
            if len(line) > MOST_LINE:
                raise BadFileError(f"{path}: has a line of more than {MOST_LINE:,} bytes; it holds no metrics")
            if has_end:
                rest = line
                yield block
        if has_end:
            yield rest


def _records(path: Path, read: Callable[[bytes, str], Record]) -> list[Record]:
    """The lines of a file, but for a last one cut short and those with NULs.  read: of a line and of where it is."""
    if not path.exists():
        return []
    lines = read_bytes(path, at_most=MOST_METRICS).split(b"\n")[:-1]
    return [read(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if b"\0" not in line]


def _watched_record(line: bytes, where: str) -> dict[str, Any]:
    """A line of watch.jsonl. Raises BadFileError."""
    try:
        record = json.loads(line)
        kinds = {"step": int, "update": dict, "activations": dict}
        if not isinstance(record, dict) or not all(isinstance(record.get(k), kind) for k, kind in kinds.items()):
            raise ValueError("expected an object with a step, an update and activations")
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{where}: not a record of train --watch: {error}") from error
    return record


def _record(line: bytes, where: str) -> dict[str, float]:
    """A line of metrics.jsonl. Raises BadFileError."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}; expected an object")
        return {name: _number(name, value) for name, value in {"step": None, **record}.items()}
    except (ValueError, OverflowError, RecursionError) as error:
        raise BadFileError(f"{where}: not a metrics record: {error}") from error


def run_meant(path: Path) -> str:
    """Which run was meant by a folder of runs, or by the name of a run without its folder; "" if that is not known."""
    if os.path.exists(inside := "runs" / path / "config.toml"):
        return f"no such run; did you mean {inside.parent}?"
    with contextlib.suppress(OSError):
        near = nearest(path.name, sorted(os.listdir(path.parent))) if path.parent.is_dir() and not path.exists() else ""
        if near and os.path.exists(inside := path.parent / near / "config.toml"):
            return f"no such run; did you mean {inside.parent}?"
    with contextlib.suppress(OSError):
        beside = [] if path.parent.is_dir() else sorted(os.listdir(path.parent.parent))
        if os.path.exists(inside := path.parent.parent / nearest(path.parent.name, beside) / path.name / "config.toml"):
            return f"no such run; did you mean {inside.parent}?"
    with contextlib.suppress(OSError):
        if runs := sorted(found.parent.name for found in path.glob("*/config.toml")):
            return f"is a folder of runs; it holds {listed(runs)}; give one of them, such as {path / runs[0]}"
    return ""


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless there could be files in the folder `path`, which need not exist yet."""
    there = next(folder for folder in (Path(path).absolute(), *Path(path).absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        number = errno.EACCES if there.is_dir() else errno.ENOTDIR
        raise OSError(number, os.strerror(number))


def next_run_path(base: str | os.PathLike[str] = "runs", name: str = "run") -> Path:
    """Make and return the folder `base/name-N`, N one above the highest there, for a run that was given no folder.

    Two runs that start at the same time get two folders. Raises StorageError if `base` cannot be written to.
    """
    base = Path(base)
    with storage_errors(f"{base}: cannot make a run folder there", "name one with --out"):
        base.mkdir(parents=True, exist_ok=True)
        taken = (re.fullmatch(re.escape(name) + r"-(\d+)", path.name) for path in base.iterdir())
        number = max((int(match[1]) for match in taken if match), default=0)
        while True:
            number += 1
            path = base / f"{name}-{number}"
            with contextlib.suppress(FileExistsError):  # another run took this number
                path.mkdir()
                return path


def run_of_checkpoint(path: str | os.PathLike[str]) -> tuple[Path, int] | None:
    """The folder that a checkpoint of this name would belong to, and its step; None for any other name."""
    path = Path(path)
    match = re.fullmatch(r"step-(\d+)\.safetensors", path.name)
    return (path.parent.parent, int(match[1])) if match and path.parent.name == "checkpoints" else None


_TAKEN = "process {} is writing to this run; wait for it to end, or choose another folder"
_NON_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _line(record: Mapping[str, float]) -> str:
    """A metrics record as a line of JSON."""
    values = {name: v if math.isfinite(v) else _NON_FINITE[str(float(v))] for name, v in record.items()}
    return json.dumps(values, allow_nan=False, default=lambda scalar: scalar.item()) + "\n"


def _number(name: str, value: Any) -> float:
    """A number of a metrics record, also one that was written as a string. Raises ValueError, OverflowError."""
    if isinstance(value, str) and value in _NON_FINITE.values():
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"its {name} is {value!r:.100}; expected a number")
    float(value)  # raises OverflowError for an integer larger than every float
    return value
