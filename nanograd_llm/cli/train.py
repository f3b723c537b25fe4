"""`nanograd-llm train`: a model learns from a text."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from nanograd_llm.cli.options import NOTHING, Given, as_options, fields_of, with_options
from nanograd_llm.cli.progress import show
from nanograd_llm.cli.terminal import row, waiting, written
from nanograd_llm.errors import ConfigError
from nanograd_llm.models.gpt import PRESETS
from nanograd_llm.runs.prepare import PREFIXED, options_of, prepare_run, prepare_task, resume_run
from nanograd_llm.runs.tables import tables_of
from nanograd_llm.tasks.language_model import RECIPES
from nanograd_llm.tasks.registry import DEFAULT, TASKS, task_named

SIZES = ", ".join(f"{name} {sizes['n_layer']} x {sizes['n_embd']}" for name, sizes in PRESETS.items())
NANO = {name: value for name, value in {**PRESETS["nano"], **RECIPES["nano"]}.items() if name != "vocab_size"}
OF_PRESET = {name: f"the preset's, {value} for nano" for name, value in NANO.items()}
SHOWN = {  # the default that the help page has for a setting of the default task
    **OF_PRESET,
    "context_length": f"{OF_PRESET['context_length']}; with --init the length of a training window, 128",
    "steps": None,
    "norm_first": "True; False for masked-words",
    "minutes": 1.0,
    "batch_size": f"{OF_PRESET['batch_size']}; 8 with --init",
    "learning_rate": f"{OF_PRESET['learning_rate']}; with --init 5e-5 * 768 / n_embd; ten times that for adapters",
    "lora_rank": None,
    "weight_decay": f"{OF_PRESET['weight_decay']}; 0.1 with --init",
}
SECTIONS = {"train": "Training", "lora": "LoRA"}  # the titles that are not the table's name


def _fields() -> dict[str, Any]:
    """The options of all tasks; what several have is there once, with the help of the first, and all defaults.

    The section of an option that the default task lacks names the tasks that have it.
    """
    tasks = {name: task_named(name) for name in dict.fromkeys((DEFAULT, *TASKS))}
    defaults: dict[str, dict[str, Any]] = {}
    for name, task in tasks.items():
        for option, table in options_of(task).items():
            setting = option.removeprefix(PREFIXED.get(table, ""))
            default = tables_of(task)[table].__dataclass_fields__[setting].default
            if default is not MISSING:
                defaults.setdefault(option, {})[name] = default
    shown = {setting: _listed(known) for setting, known in defaults.items() if len({*known.values()}) > 1} | SHOWN
    found: dict[str, Any] = {}
    for task in tasks.values():
        for table, kind in tables_of(task).items():
            prefix = PREFIXED.get(table, "")
            sections: dict[str, list[str]] = {}
            named = {f"{prefix}{setting}" for setting in kind.__dataclass_fields__}
            for option in named - {"file", *task.hidden.get(table, ()), *found}:
                having = [name for name, other in tasks.items() if option in options_of(other)]
                of = "" if DEFAULT in having else f" of {' and '.join(having)}"
                sections.setdefault(SECTIONS.get(table, table.capitalize()) + of, []).append(option)
            for title, options in sorted(sections.items()):
                without = {"model", *named} - {*options}
                found |= fields_of(kind, title, without=without, shown=shown, prefix=prefix)
    return found


def _listed(defaults: Mapping[str, Any]) -> str:
    """The default of the first task, and those of the others where they differ."""
    first, *others = defaults.items()
    return "; ".join([str(first[1]), *(f"{value} for {name}" for name, value in others if value != first[1])])


@with_options(settings=as_options("Options", _fields()))
def train(
    file: str | None = None,
    /,
    *,
    config: Path | None = None,
    preset: Annotated[
        Literal["nano", "distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] | None,
        Parameter(
            help="Sizes of the model, and the batch size, learning rate and weight decay that suit them; nano if not "
            f"given. Blocks x channels: {SIZES}."
        ),
    ] = None,
    out: Path | None = None,
    resume: Path | None = None,
    show_batch: bool = False,
    settings: Given = NOTHING,
) -> int:
    """Train a model on a text, from fresh weights or a model's, then score it on what is held out and show its work.

    Without arguments a GPT learns to write: the built-in corpus, a tokenizer trained on it, the preset nano, one
    minute. The defaults below are those of a language model; other tasks have some of their own.

    Parameters
    ----------
    file
        What to learn from: a UTF-8 text file; for a language model and masked words also a folder, a pattern in quotes
        such as "docs/**/*.md", a .jsonl or .gz file, or - for standard input. If not given: the reference manual that
        comes with Python; for the other tasks, built-in sentences, docstrings or questions.
    config
        A TOML file of settings, in the form of a run's config.toml: tables [run], [text], [model], [train] and [lora].
        The config.toml of a run makes the run again. Options override it.
    out
        The folder to make for the run; if not given, runs/PRESET-N, runs/TASK-N for another task, or runs/tuned-N with
        --init.
    resume
        The folder of a run that was stopped, to go on with it as if it had not been. Of all options, only those of its
        length, workers and saving can be given beside this, such as --steps, for a longer run; FILE if it was moved.
    show_batch
        Show the first batch and end, before anything is trained or written: each token with its role, and whether it
        counts in the loss. For instruction and preference.
    """
    spent = time.process_time()  # seconds that starting Python took
    began = time.monotonic()
    options = settings if file is None else {**settings, "file": file}
    if show_batch and resume is not None:
        raise ConfigError("--show-batch shows what a new run begins with; leave --resume out")
    if show_batch:
        with waiting("starting") as tell:
            task = prepare_task(
                options=options, file=config, preset=preset, report=lambda doing, share: tell(share, doing)
            )
        print(written(task.show_batch()))
        return 0
    with waiting("starting", lines=True) as tell:

        def report(doing: str, share: float) -> None:
            tell(share, doing)

        if resume is None:
            prepared = prepare_run(out, options=options, file=config, preset=preset, report=report)
        else:
            given = {"--config": config, "--preset": preset, "--out": out}
            if beside := [name for name, value in given.items() if value is not None]:
                raise ConfigError(f"--resume takes the {beside[0].strip('-')} from the run; leave {beside[0]} out")
            prepared = resume_run(resume, options=options, report=report)
            damaged = f"; the checkpoint of step {prepared.damaged} is damaged" if prepared.damaged else ""
            step = prepared.trainer.steps_done
            print(written(row("resumed", f"{prepared.folder.path} from step {step}{damaged}")))
    spent += time.monotonic() - began - prepared.task.untimed
    try:
        with contextlib.closing(prepared.train(spent=spent)) as events:
            code = show(prepared, events)
    except KeyboardInterrupt as error:
        saved = prepared.folder.checkpoints()
        if not saved:
            raise
        where = str(error) or f"The weights of step {max(saved)} are in {saved[max(saved)]}"
        again = f"nanograd-llm train --resume {shlex.quote(str(prepared.folder.path))}"
        raise KeyboardInterrupt(f"{where}; to go on: {again}") from None
    folder = shlex.quote(str(prepared.folder.path))
    example = shlex.quote(prepared.task.example())
    if prepared.stopped_by is not None:
        print(written(f"to go on: nanograd-llm train --resume {folder}"))
    print(written(f"\nRun folder: {folder}\nNext:       nanograd-llm {prepared.task.used_by} {folder} {example}"))
    return code
