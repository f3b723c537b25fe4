"""The settings of a run, by table, as its config.toml has them: which there are, and whether a file's can be."""

from __future__ import annotations

import os
from typing import Any

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.nn.lora import LoRAConfig
from nanograd_llm.settings import Settings, check_keys, check_settings, setting
from nanograd_llm.tasks.registry import DEFAULT, TASKS, task_named
from nanograd_llm.tasks.task import Task
from nanograd_llm.training.config import TrainConfig

# The learning rate of adapters ÷ that of all weights, which suits LoRA (Schulman et al. 2025, "LoRA Without Regret").
# Schulman et al. fit no model narrower than 1,000 channels; on nano a rate above HIGHEST_RATE spoils a classifier.
HIGHER_RATE, HIGHEST_RATE = 10, 6e-3
PREFIXED = {"lora": "lora_"}  # tables whose settings have other names among the options
COMMAND = ("files", "config", "preset", "out", "resume", "show_batch", "device", "watch", "help")  # its other options


class RunConfig(Settings):
    """Settings of a run besides those of its task and its training. Raises ConfigError that names the field."""

    task: str = setting(f"What the model learns, one of {', '.join(TASKS)}.", default=DEFAULT)

    init: str | None = setting(
        "Start from the weights and the tokenizer of this model: the folder of a run, or a pretrained model (a folder, "
        "a file, or a name such as gpt2).",
        default=None,
    )
    evaluate_every: int | None = setting(
        "Score the held-out part every N steps; five times in a run if not given.", default=None, low=1
    )
    checkpoint_every: int | None = setting(
        "Save a checkpoint every N steps; every 5 minutes (the last two are kept) and at the end if not given.",
        default=None,
        low=1,
    )
    keep: int | None = setting(
        "Keep only the newest N checkpoints and the one with the best score, which this option also saves; no "
        "such limit if not given.",
        default=None,
        low=1,
    )
    patience: int | None = setting(
        "Stop early after N scores in a row whose loss is not below the best; never if not given.", default=None, low=1
    )
    norms_every: int | None = setting(
        "Every N steps write the norms of the gradient and of the update of each parameter to metrics.jsonl; never if "
        "not given.",
        default=None,
        low=1,
    )
    same_batch: bool = setting(
        "Train on the first batch alone, as a test: a model and a task without a fault learn it by heart.",
        default=False,
    )
    long_samples: bool = setting(
        "Let each sample during training be as long as that at the end; otherwise they are short.", default=False
    )
    spare: str | None = setting(
        "A folder, best on another disk, in which the run goes on if its own folder cannot be written to; none if not "
        "given.",
        default=None,
    )


def tables_of(task: type[Task]) -> dict[str, type[Settings]]:
    """The kinds of settings that a run of this task has, by table, in the order of its config.toml."""
    return {"run": RunConfig, **task.tables, "train": TrainConfig, "lora": LoRAConfig}


def task_of(name: str) -> type[Task]:
    """The class of a task, as `task_named`. Raises ConfigError also where an option of it has a name that is taken."""
    task = task_named(name)
    tables: dict[str, type[Settings]] = {"run": RunConfig, "train": TrainConfig, "lora": LoRAConfig}
    where: dict[str, str] = dict.fromkeys(COMMAND, "train itself")
    for table, kind in [*tables.items(), *task.tables.items()]:
        if table in task.tables and table in tables:
            raise ConfigError(f"the task {name} has a table {table!r}, which every run has; give it another name")
        for option in kind.setting_types.keys() - {*task.hidden.get(table, ())}:
            option = f"{PREFIXED.get(table, '')}{option}"
            if option in where:
                own = f"{kind.__name__}.{option} of the task {name}"
                raise ConfigError(f"{own} has a name that {where[option]} has already; rename it")
            where[option] = f"[{table}]"
    return task


def defaults_of(task: type[Task]) -> dict[str, str | None]:
    """What to show as the default of each setting for which this task, or a model to start from, has another one."""
    fresh: dict[str, Any] = {name: value for name, value in task.fresh.items() if name != "vocab_size"}
    if task.presets:
        fresh = {name: f"the preset's, {value} for {task.presets[0]}" for name, value in fresh.items()}
    tuned, shown = {} if task.tuning is None else task.tuning.described(), fresh
    for name in {*fresh, *tuned} & {*TrainConfig.setting_types, "context_length"}:
        usual = getattr(TrainConfig, name, None)
        other = tuned.get(name, usual or "the model's")
        before = fresh.get(name, usual) if task.fresh else other
        shown[name] = f"{before}" if not tuned or str(before) == str(other) else f"{before}; {other} with --init"
    if tuned:
        shown["learning_rate"] += f"; ten times that for adapters, at most {HIGHEST_RATE:g}"
    return {**shown, "steps": None, "minutes": "1.0", "lora_rank": None}


def check_tables(
    task: type[Task], content: dict[str, dict[str, Any]], path: str | os.PathLike[str], *, others: bool = False
) -> None:
    """Raise BadFileError, with the file and the setting, where the content of a settings file cannot be.

    others: leave settings and tables of other names unchecked, which runs of older versions have.
    """
    tables = tables_of(task)
    try:
        if not others:
            check_keys(content, tables, str(path))
        for name in content.keys() & tables.keys() if others else content:
            kind, table = tables[name], content[name]
            known = {key: value for key, value in table.items() if key in kind.setting_types} if others else table
            check_settings(kind, known, f"{path} [{name}]")
    except ConfigError as error:
        raise BadFileError(str(error)) from None
