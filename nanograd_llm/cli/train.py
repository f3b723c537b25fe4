"""`nanograd-llm train`: a model learns from a text."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from nanograd_llm.backend.arrays import use_device
from nanograd_llm.cli.options import NOTHING, Device, Given, as_options, fields_of, with_options
from nanograd_llm.cli.progress import show
from nanograd_llm.cli.terminal import row, waiting, written
from nanograd_llm.errors import ConfigError
from nanograd_llm.models.gpt import PRESETS
from nanograd_llm.runs.prepare import prepare_run, prepare_task, resume_run
from nanograd_llm.runs.run import Event
from nanograd_llm.runs.tables import PREFIXED, defaults_of, tables_of, task_of
from nanograd_llm.settings import require_int
from nanograd_llm.tasks.answering import Answering
from nanograd_llm.tasks.registry import DEFAULT, complete_tasks
from nanograd_llm.tasks.task import Task

SIZES = ", ".join(f"{name} {sizes['n_layer']} x {sizes['n_embd']}" for name, sizes in PRESETS.items())
EXAMPLES = {  # for the help page of a task
    "translation": [
        "train --task translation",
        "train pairs.tsv --task translation --minutes 10",
        'translate runs/translation-1 "the small cat sees the house"',
    ],
    "masked-words": [
        "train --task masked-words",
        "train my_text.txt --task masked-words --vocab-size 4096",
        'fill runs/masked-words-1 "The [MASK] sees the house."',
    ],
    "classification": [
        "train --task classification",
        "train reviews.csv --task classification --text-column review --label-column stars",
        'classify runs/classification-1 "Return a socket."',
    ],
    "instruction": [
        "train --task instruction --init runs/nano-1",
        "train questions.jsonl --task instruction --init runs/nano-1",
        "chat runs/tuned-1",
    ],
    "preference": [
        "train --task preference --init runs/tuned-1 --steps 100",
        "train --task preference --init runs/tuned-1 --show-batch",
    ],
}
SECTIONS = {"train": "Training", "lora": "LoRA"}  # the titles that are not the table's name


def _fields(task: type[Task]) -> dict[str, Any]:
    """The options of a task by name."""
    found: dict[str, Any] = {}
    for table, kind in tables_of(task).items():
        if table == "lora" and task.tuning is None:
            continue
        # "model" and "prepared" are tokenizers that init or the text brings
        without = {"file", "model", "prepared", *task.hidden.get(table, ()), *(["init"] if task.tuning is None else ())}
        title, prefix = SECTIONS.get(table, table.capitalize()), PREFIXED.get(table, "")
        found |= fields_of(kind, title, without=without, shown=defaults_of(task), prefix=prefix)
    return found


def help_of(arguments: Sequence[str]) -> tuple[Callable[..., int], list[str]]:
    """The command with the options of one task alone, that of --task, for its help page; and examples of that task.

    A language model has none, since its examples are those of the command.
    """
    words = [part for word in arguments for part in word.split("=", 1)]
    name = words[words.index("--task") + 1] if "--task" in words[:-1] else DEFAULT
    task = task_of(name)
    files = [kind.__dataclass_fields__["file"] for kind in task.tables.values() if "file" in kind.setting_types]
    page = functools.wraps(train)(lambda: 0)
    page.__doc__ = (train.__doc__ or "").replace(DEFAULT, name)
    hidden = {"preset": not task.presets, "show_batch": not issubclass(task, Answering)}
    unseen = {name: Annotated[str | None, Parameter(show=False)] for name in hidden if hidden[name]}
    page.__annotations__ = {
        **train.__annotations__,
        **unseen,
        "files": Annotated[str, Parameter(help=files[0].metadata["help"]) if files else Parameter(show=False)],
        "settings": as_options("Options", _fields(task)),
    }
    return page, EXAMPLES.get(name, [] if name == DEFAULT else [f"train --task {name}"])


@with_options(settings=as_options("Options", ChainMap(*map(_fields, complete_tasks()))))
def train(
    *files: str,
    config: Path | None = None,
    preset: Annotated[
        Literal["nano", "distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] | None,
        Parameter(
            help="Sizes of the model, and the batch size, optimizer, learning rate and weight decay that suit them; "
            f"nano if not given. Blocks x channels: {SIZES}."
        ),
    ] = None,
    out: Path | None = None,
    resume: Path | None = None,
    show_batch: bool = False,
    device: Device = "cpu",
    watch: int = 0,
    settings: Given = NOTHING,
) -> int:
    """Train a new model on a text, or train a model further; score it on held-out text and show a sample.

    Without arguments it trains a GPT of the preset nano for one minute on the built-in corpus, with a tokenizer
    trained on it. This page has the options of the task language-model. Other tasks have other options, which
    `nanograd-llm train --task NAME --help` shows.

    Parameters
    ----------
    files
        What to learn from: the task's setting `file`; several are its setting `data`.
    config
        A TOML file of settings, in the form of a run's config.toml. The config.toml of a run makes the run again.
        Options override it.
    out
        The folder to make for the run; if not given, runs/PRESET-N, runs/TASK-N for another task, or runs/tuned-N with
        --init.
    resume
        The folder of a run that was stopped, to continue it. You may change only its length, workers, scoring and
        saving, such as --steps for a longer run; give FILE if the file was moved.
    show_batch
        Show the first batch and end, before anything is trained or written: each token with its role, and whether it
        counts in the loss.
    watch
        Every N steps record for `plot` how large the update of each layer is relative to its weights, and how saturated
        its activations are. 0 for never; each time costs about one more step.
    """
    require_int("watch", watch, 0)
    use_device(device)
    spent = time.process_time()  # seconds that starting Python took
    began = time.monotonic()
    if files and "data" in settings:
        raise ConfigError("FILE and --data are both given; give all sources in one of them")
    options = {**settings, **({"file": files[0]} if len(files) == 1 else {"data": files} if files else {})}
    if show_batch and resume is not None:
        raise ConfigError("--show-batch shows what a new run begins with; leave --resume out")
    with waiting("starting") as tell:
        if show_batch:
            batch = prepare_task(options=options, file=config, preset=preset, report=tell).show_batch()
        elif resume is None:
            run = prepare_run(out, options=options, file=config, preset=preset, report=tell)
        else:
            given = {"--config": config, "--preset": preset, "--out": out}
            if beside := [name for name, value in given.items() if value is not None]:
                another = f"(--init {shlex.quote(str(resume))} starts another run)"
                raise ConfigError(f"--resume takes {', '.join(beside)} from the run; leave that out {another}")
            run = resume_run(resume, options=options, report=tell)
    if show_batch:
        print(written(batch))
        return 0
    if resume is not None:
        damaged = f"; the checkpoint of step {run.damaged} is damaged" if run.damaged else ""
        print(written(row("resumed", f"{run.folder.path} from step {run.trainer.steps_done}{damaged}")))
    spent += time.monotonic() - began - run.task.untimed
    folder = shlex.quote(str(run.folder.path))
    try:
        with contextlib.closing(run.train(spent=spent)) as events:
            shown: Iterator[Event] = events
            if watch:
                from nanograd_llm.see.watch import watching

                shown = watching(events, run.task.model, run.batch, watch, run.append_watched)
            code = show(run, shown)
    except KeyboardInterrupt as error:
        saved = run.folder.checkpoints()
        where = str(error) or "No checkpoint was saved yet"
        if saved and not str(error):
            where = f"The weights of step {max(saved)} are in {saved[max(saved)]}"
        raise KeyboardInterrupt(f"{where}; to go on: nanograd-llm train --resume {folder}") from None
    example = run.task.example()
    following = f"{run.task.used_by} {folder}" + (f" {shlex.quote(example)}" if example else "")
    is_own = type(run.task).__module__.partition(".")[0] == "nanograd_llm"  # others are known in their script alone
    program = "nanograd-llm" if is_own else f"python {shlex.quote(sys.argv[0])}"
    print(written(f"\nRun folder: {folder}\nNext:       {program} {following}"))
    if run.stopped_by is not None:
        print(written(f"to go on:   {program} train --resume {folder}"))
    return code
