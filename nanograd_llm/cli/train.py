"""`nanograd-llm train`: a model learns from a text."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections import ChainMap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from nanograd_llm.backend.arrays import use_device
from nanograd_llm.cli.options import NOTHING, Device, Given, as_options, fields_of, with_options
from nanograd_llm.cli.progress import show
from nanograd_llm.cli.terminal import row, waiting, written
from nanograd_llm.errors import ConfigError
from nanograd_llm.models.gpt import PRESETS
from nanograd_llm.runs.prepare import PREFIXED, prepare_run, prepare_task, resume_run
from nanograd_llm.runs.tables import tables_of
from nanograd_llm.settings import require_int
from nanograd_llm.tasks.answering import Answering
from nanograd_llm.tasks.language_model import LanguageModelling
from nanograd_llm.tasks.registry import DEFAULT, TASKS, task_named
from nanograd_llm.tasks.task import NamedTask
from nanograd_llm.training.config import TrainConfig

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
SLOW_START = 0.2  # share of the time from which it is said that reading took it
SECTIONS = {"train": "Training", "lora": "LoRA"}  # the titles that are not the table's name


def _fields(task: type[NamedTask]) -> dict[str, Any]:
    """The options of a task by name. The help of each has its default, also that with --init."""
    shown = {name: value for name, value in task.fresh.items() if name != "vocab_size"}
    if task.presets:
        shown = {name: f"the preset's, {value} for {task.presets[0]}" for name, value in shown.items()}
    further: dict[str, Any] = task.tuning.described()
    for name in {*shown, *further} & {*TrainConfig.setting_types, "context_length"}:
        usual = getattr(TrainConfig, name, None)
        other = further.get(name, usual)
        before = shown.get(name, usual) if task.fresh else other
        shown[name] = f"{before}" if str(before) == str(other) else f"{before}; {other} with --init"
    shown["learning_rate"] += "; ten times that for adapters"
    shown |= {"steps": None, "minutes": 1.0, "lora_rank": None}
    found: dict[str, Any] = {}
    for table, kind in tables_of(task).items():
        # "model" and "prepared" are tokenizers that init or the text brings
        without = {"file", "model", "prepared", *task.hidden.get(table, ())}
        title, prefix = SECTIONS.get(table, table.capitalize()), PREFIXED.get(table, "")
        found |= fields_of(kind, title, without=without, shown=shown, prefix=prefix)
    return found


def help_of(arguments: Sequence[str]) -> tuple[Callable[..., int], list[str]]:
    """The command with the options of one task alone, that of --task, for its help page; and examples of that task.

    There are none for a language model, whose examples are those of the command.
    """
    words = [part for word in arguments for part in word.split("=", 1)]
    name = words[words.index("--task") + 1] if "--task" in words[:-1] else DEFAULT
    task = task_named(name)
    page = FunctionType(train.__code__, train.__globals__, "train", train.__defaults__)
    page.__kwdefaults__, page.__doc__ = train.__kwdefaults__, (train.__doc__ or "").replace(DEFAULT, name)
    table = next(kind for kind in task.tables.values() if "file" in kind.setting_types)
    own = {
        "files": Annotated[str, Parameter(help=table.__dataclass_fields__["file"].metadata["help"])],
        "settings": as_options("Options", _fields(task)),
    }
    hidden = {"preset": not task.presets, "show_batch": not issubclass(task, Answering)}
    own |= {name: Annotated[str | None, Parameter(show=False)] for name, is_hidden in hidden.items() if is_hidden}
    page.__annotations__ = {**train.__annotations__, **own}
    return page, EXAMPLES.get(name, [])


@with_options(settings=as_options("Options", ChainMap(*map(_fields, map(task_named, TASKS)))))
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
    """Train a model on a text, from fresh weights or a model's, then score it on what is held out and show its work.

    Without arguments a GPT learns to write: the built-in corpus, a tokenizer trained on it, the preset nano, one
    minute. This page has the options of the task language-model. Other tasks have other options, which
    `nanograd-llm train --task NAME --help` shows.

    Parameters
    ----------
    files
        What to learn from: a UTF-8 text file, a folder, a pattern in quotes such as "docs/**/*.md", a .jsonl or .gz
        file, - for standard input, several of these, or folders that `nanograd-llm prepare` made. If not given: the
        reference manual that comes with Python.
    config
        A TOML file of settings, in the form of a run's config.toml. The config.toml of a run makes the run again.
        Options override it.
    out
        The folder to make for the run; if not given, runs/PRESET-N, runs/TASK-N for another task, or runs/tuned-N with
        --init.
    resume
        The folder of a run that was stopped, to go on with it. Beside this, give only options of its length, workers
        and saving, such as --steps for a longer run, and FILE if the file was moved.
    show_batch
        Show the first batch and end, before anything is trained or written: each token with its role, and whether it
        counts in the loss.
    watch
        After every N steps note how large the update of each layer was beside its weights, and how saturated its
        activations are, for `plot`. 0 for never; it costs about one step more each time.
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
    if isinstance(prepared.task, LanguageModelling) and (table := _table_among(files)):
        print(written(row("note", f"{table} is learned as plain text; --task classification learns its labels")))
    spent += time.monotonic() - began - prepared.task.untimed
    if (minutes := prepared.trainer.config.minutes) and spent > SLOW_START * 60 * minutes:
        can_prepare = isinstance(prepared.task, LanguageModelling) and not prepared.task.text.is_prepared
        remedy = "nanograd-llm prepare does this once" if can_prepare else "give more --minutes"
        print(row("note", f"{spent:.3g} s of {60 * minutes:.3g} s went into reading the data; {remedy}"))
    try:
        with contextlib.closing(prepared.train(spent=spent)) as events:
            if watch:
                from nanograd_llm.see.watch import watching

                model = prepared.task.model
                code = show(prepared, watching(events, model, prepared.batch, watch, prepared.append_watched))
            else:
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
    print(written(f"\nRun folder: {folder}\nNext:       nanograd-llm {prepared.task.used_by} {folder} {example}"))
    if prepared.stopped_by is not None:
        print(written(f"to go on:   nanograd-llm train --resume {folder}"))
    return code


def _table_among(files: Sequence[str]) -> str:
    """The first of these files that is a table, such as one of labelled texts; "" if none is."""
    return next((file for file in files if file.lower().endswith((".csv", ".tsv"))), "")
