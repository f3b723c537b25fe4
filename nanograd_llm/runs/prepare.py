"""A new run from settings: those asked for override a settings file, which overrides the preset or the model.

A settings file has the form of a run's config.toml, so the config.toml of a run makes the same run again. A run
that was stopped can go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nanograd_llm.errors import BadFileError, ConfigError, NanogradError, ShapeError, StorageError
from nanograd_llm.files.atomic import storage_errors
from nanograd_llm.files.toml import read_toml
from nanograd_llm.nn import lora
from nanograd_llm.nn.lora import LoRAConfig
from nanograd_llm.runs.folder import RunFolder, require_writable
from nanograd_llm.runs.run import Run, require_unfinished
from nanograd_llm.runs.tables import HIGHER_RATE, HIGHEST_RATE, PREFIXED, check_tables, tables_of, task_of
from nanograd_llm.settings import check_keys, check_settings, require_choice
from nanograd_llm.tasks.answering import Answering
from nanograd_llm.tasks.registry import DEFAULT, complete_tasks, task_named
from nanograd_llm.tasks.task import Report, Request, Tables, Task
from nanograd_llm.text.sources import weighted
from nanograd_llm.training.config import TWO_LENGTHS, TrainConfig

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened

LENGTHS = {"steps", "minutes"}
# Settings that may be others when a run is resumed.
CHANGEABLE = (
    "file",
    "data",
    *sorted(LENGTHS),
    "evaluate_every",
    "checkpoint_every",
    "keep",
    "patience",
    "norms_every",
    "long_samples",
    "spare",
    "workers",
    "processes",
)

PathLike = str | os.PathLike[str]


def options_of(task: type[Task]) -> dict[str, str]:
    """The settings that the command line has for this task: the name of each option, and its table."""
    return {
        f"{PREFIXED.get(table, '')}{name}": table
        for table, kind in tables_of(task).items()
        for name in kind.__dataclass_fields__
        if name not in task.hidden.get(table, ())
    }


def prepare_run(
    out: PathLike | None = None,
    asked: Tables | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    file: PathLike | None = None,
    preset: str | None = None,
    report: Report = lambda doing, share: None,
) -> Run:
    """The run of these settings, ready to train. Without any it is a language model, the preset nano, for a minute.

    out: its folder; the next runs/PRESET-N, or runs/tuned-N for a model trained further, if not given. A task without
        presets gives the folder its own name.
    asked: settings by table, such as {"train": {"steps": 100}}; they override those of `file`, a settings file.
        "task" under "run" says what is learned.
    options: the same without their tables, as the command line has them.
    preset: the sizes, batch size, learning rate and weight decay where they are not given.
    report: called with what is being done, and the share of it that is done.

    With "init" under "run", an existing model is trained further: its sizes and its tokenizer are used, and
    "context_length" is the length of a training window.
    Raises ConfigError for settings that are out of range, contradict each other, or belong to another task, and
    BadFileError for those in the file.
    """
    if out is None:
        with storage_errors("runs: cannot make a run folder there", "name one with --out"):
            require_writable("runs")
    else:
        RunFolder.require_free(out)  # before the work of making the task
    task, name, own = _prepared(asked or {}, options or {}, file, preset, report, out)
    with _named_as_options():
        return Run(out, task, name, **own)


def prepare_task(
    asked: Tables | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    file: PathLike | None = None,
    preset: str | None = None,
    report: Report = lambda doing, share: None,
) -> Answering:
    """The task of the run that `prepare_run` would give, to show its first batch: nothing is written."""
    task = _prepared(asked or {}, options or {}, file, preset, report, None, is_shown=True)[0]
    assert isinstance(task, Answering)
    return task


def _prepared(
    asked: Tables,
    options: Mapping[str, Any],
    file: PathLike | None,
    preset: str | None,
    report: Report,
    out: PathLike | None,
    is_shown: bool = False,
) -> tuple[Task, str, dict[str, Any]]:
    """The task of these settings, a name for its runs, and the settings of the run."""
    if file is not None and (config := RunFolder(file).config_path).is_file():
        raise ConfigError(f"{file} is a run; give {config}")
    content = {} if file is None else read_toml(file)
    task = _task_of(options.get("task") or asked.get("run", {}).get("task"), content, file)
    if is_shown and not issubclass(task, Answering):
        raise ConfigError(f"show_batch is for the tasks instruction and preference; this is {task.name}")
    checked = {} if file is None else _checked(task, content, file)
    written = {table: checked.get(table, {}) for table in tables_of(task)}
    given = _by_table(task, asked, options)
    settings = {table: {**written[table], **given[table]} for table in given}
    settings["train"] = _with_one_length(settings["train"], given["train"])
    _require_spare(settings["run"].get("spare"), out)
    source, _ = settings["run"].pop("init", None), settings["run"].pop("task", None)
    adapters = _adapters_of(settings["lora"], source)
    if preset is not None:
        if not task.presets:
            raise ConfigError(f"the task {task.name} has no presets; leave preset out, and give sizes")
        require_choice("preset", preset, task.presets)
        if source is None and "model" in content:
            raise ConfigError(f"preset is {preset}, but {file} has sizes under [model]; leave one of them out")
    start = None if source is None else _opened(source)
    if adapters is not None and start is not None and start.model_class is task.model_class:
        with _named_as_options():  # before the work of making the task
            lora.targeted(start.model_class(start.config, seed=None), adapters.target_names, adapters.rank)
    made = task.made(Request(settings, given, written, str(file), preset, start, report, is_shown))
    if start is not None and made.init is None:
        raise ConfigError(f"the task {task.name} does not start from a model; leave init out")
    if adapters is not None:
        with _named_as_options():  # of a task that gives the model another head
            lora.targeted(made.model, adapters.target_names, adapters.rank)
    if adapters is not None and "learning_rate" not in settings["train"]:
        rate = min(HIGHER_RATE * made.training.learning_rate, HIGHEST_RATE)
        made.training = dataclasses.replace(made.training, learning_rate=rate)
    name = "tuned" if start else preset or (*task.presets, task.name)[0]
    return made, name, {"adapters": adapters, **settings["run"]}


def resume_run(
    path: PathLike,
    *,
    options: Mapping[str, Any] | None = None,
    report: Report = lambda doing, share: None,
) -> Run:
    """The run at `path`, ready to go on from its newest whole checkpoint: it takes the steps it would have taken.

    options: settings to change, of those in CHANGEABLE: a longer run, for example, or the new name of the same data.
    report: as for `prepare_run`.

    A run of a number of steps ends with the same bits as without the stop, with the same number of workers and steps.
    Raises as `RunFolder.resume` and `Run.resumed` do, and ConfigError for other options.
    """
    options = options or {}
    folder = RunFolder.resume(path)
    try:
        task, settings, adapters = made_again(folder, options, report, is_resumed=True)
        run = Run.resumed(folder, task, adapters, **settings["run"])
        if options:
            run.write_config()
        return run
    except BaseException:
        folder.close()
        raise


def _require_spare(spare: str | None, out: PathLike | None) -> None:
    """Raise StorageError where the spare folder cannot be used, before a disk is full. out: the folder of the run."""
    if spare is not None:
        if out is not None and os.path.realpath(out) in (place := os.path.realpath(spare), os.path.dirname(place)):
            raise StorageError(f"spare is in the folder of the run, {out}; name another, best on another disk")
        try:
            RunFolder.require_free(spare)
        except StorageError as error:
            raise StorageError(f"spare cannot be used: {error}") from error.__cause__


def _require_unfinished(folder: RunFolder, train: Mapping[str, Any]) -> None:
    """Raise ConfigError where the run is over, before its data are read. train: the settings [train]."""
    try:
        step, _, metadata = folder.newest_whole()
        seconds = float(metadata.get("seconds", 0))
    except (NanogradError, ValueError):  # raised again where the run is made
        return
    require_unfinished(folder, step, seconds, train.get("steps", TrainConfig.steps), train.get("minutes"))


def made_again(
    folder: RunFolder, options: Mapping[str, Any], report: Report, is_resumed: bool = False
) -> tuple[Task, dict[str, dict[str, Any]], LoRAConfig | None]:
    """The task of a run, made of its settings again, these settings with the `options`, and those of its adapters."""
    path, written = folder.path, read_settings(folder.config_path)
    task = task_named(written.get("run", {}).get("task", DEFAULT))
    if fixed := [name for name in options if name not in CHANGEABLE]:
        raise ConfigError(
            f"resume takes {', '.join(fixed)} from the run; leave that out (--init {shlex.quote(str(path))} starts "
            "another run)"
        )
    sources = [source for table in written.values() for source in (table.get("file"), *table.get("data", ()))]
    if "-" in sources and not {"file", "data"} & {*options}:
        raise ConfigError(f"{path}: learned from standard input, which is gone; give the same text as a file")
    given = _by_table(task, {}, options)
    settings = {table: {**written.get(table, {}), **given[table]} for table in given}
    if "data" in given.get("text", {}):
        before, now = (table.get("text", {}).get("data") or () for table in (written, settings))
        weights = [[weighted(source)[1] for source in sources] for sources in (before, now)]
        if weights[0] != weights[1] and any(map(any, weights)):
            raise ConfigError(f"the weights of data are others than in {path}; give each source the weight it had")
    settings["train"] = _with_one_length(settings["train"], given["train"])
    if is_resumed:
        _require_unfinished(folder, settings["train"])
        _require_spare(settings["run"].get("spare"), path)
    source, _ = settings["run"].pop("init", None), settings["run"].pop("task", None)
    start = None if source is None else _opened(source)
    nothing: dict[str, dict[str, Any]] = {table: {} for table in given}
    request = Request(settings, nothing, {**nothing, **written}, str(folder.config_path), None, start, report)
    try:
        return task.made(request), settings, _adapters_of(settings["lora"], source)
    except ShapeError:  # of data that fitted when the run began
        remedy = "bring back the data that it learned from"
        raise ConfigError(f"{path}: its data have changed since the run began; {remedy}") from None
    except StorageError as error:
        if {"file", "data"} & {*options}:
            raise
        remedy = "a score needs the data that the run learned from: bring them back there"
        if is_resumed:
            again = f"nanograd-llm train FILE --resume {shlex.quote(str(path))}"
            remedy = f"if the data were moved, say to where: {again}"
        raise StorageError(f"{error}; {remedy}") from error.__cause__


def _opened(source: str) -> Opened:
    """The model to start from; of a run its newest checkpoint by name, so that config.toml says which it was."""
    from nanograd_llm.runs.opening import OpenedRun, open_model  # which knows every format of pretrained models

    opened = open_model(source)
    if isinstance(opened, OpenedRun) and opened.step is None and (saved := opened.folder.checkpoints()):
        return open_model(saved[max(saved)])
    return opened


def _by_table(task: type[Task], asked: Tables, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the caller gives, each setting checked, by table: every table of the task."""
    tables = tables_of(task)
    check_keys(asked, tables, "asked")
    given = {table: dict(asked.get(table, {})) for table in tables}
    for option, value in options.items():
        table = _table_of(option, task, value)
        given[table][option.removeprefix(PREFIXED.get(table, ""))] = value
    for table, kind in tables.items():
        try:
            check_settings(kind, given[table])
        except ConfigError as error:  # begins with the name of the setting
            raise ConfigError(f"{PREFIXED.get(table, '')}{error}") from None
    if given["train"].keys() >= LENGTHS:
        raise ConfigError(TWO_LENGTHS)
    return given


@contextlib.contextmanager
def _named_as_options() -> Iterator[None]:
    """An error of adapters has the name of the setting that the caller gave."""
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(("targets", "rank")):
            raise ConfigError(f"{PREFIXED['lora']}{error}") from None
        raise


def _adapters_of(table: Mapping[str, Any], source: str | None) -> LoRAConfig | None:
    """The settings of LoRA; None if there are none. source: the model to start from."""
    if table and "rank" not in table:
        raise ConfigError(f"lora_{min(table)} is for adapters; give lora_rank as well")
    if table and source is None:
        raise ConfigError("lora_rank trains adapters beside the weights of a model; say which one with init")
    return LoRAConfig(**table) if table else None


def _with_one_length(train: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The settings [train] with one length: a given one replaces that of the file, also one of the other kind."""
    if LENGTHS & {*given}:
        return {name: value for name, value in train.items() if name not in LENGTHS or name in given}
    return train if LENGTHS & {*train} else {**train, "minutes": 1.0}


def _task_of(name: str | None, content: Tables, file: PathLike | None) -> type[Task]:
    """The task that is asked for by name, or that a settings file is of."""
    found = content.get("run", {}).get("task", DEFAULT)
    if name is not None and content and name != found and {*content} - {"run", "train"}:
        raise ConfigError(f"task is {name}, but {file} is of the task {found}; leave one of them out")
    try:
        return task_of(found if name is None else name)
    except ConfigError as error:
        if name is None:
            raise BadFileError(f"{file} [run]: {error}") from None
        raise


def _table_of(option: str, task: type[Task], value: Any) -> str:
    known = options_of(task)
    if option not in known:
        others = [other.name for other in complete_tasks() if option in options_of(other)]
        if not others:
            check_keys([option], known, "options")
        noun, remedy = "task" if len(others) == 1 else "tasks", ""
        if option == "data":
            second = f", and the second as --target {shlex.quote(value[-1])}" if "target" in known else ""
            option, remedy = "more than one source (data)", f"; give one file{second}"
        raise ConfigError(
            f"{option} is for the {noun} {', '.join(others)}; this run is of the task {task.name}{remedy}"
        )
    return known[option]


def read_settings(path: PathLike) -> dict[str, dict[str, Any]]:
    """The tables of a settings file, each setting checked. Raises BadFileError that names the file and the setting."""
    content = read_toml(path)
    return _checked(_task_of(None, content, path), content, path)


def _checked(task: type[Task], content: dict[str, dict[str, Any]], path: PathLike) -> dict[str, dict[str, Any]]:
    check_tables(task, content, path)
    if content.get("train", {}).keys() >= LENGTHS:
        raise BadFileError(f"{path} [train]: {TWO_LENGTHS}")
    return content
