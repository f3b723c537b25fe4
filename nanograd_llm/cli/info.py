"""`nanograd-llm info`: what a model is made of, and for a run how it came to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanograd_llm.cli.options import Model
from nanograd_llm.settings import printable

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened
    from nanograd_llm.runs.folder import RunFolder


def info(model: Model, /) -> None:
    """Show a model: its sizes, tokenizer and parameters; of a run its settings, scores and checkpoints as well.

    Of a folder of runs, such as runs, it shows each with its last score.
    """
    from rich.console import Console
    from rich.table import Table

    from nanograd_llm.runs.folder import RunFolder
    from nanograd_llm.runs.opening import open_model

    console = Console(highlight=False)
    runs = sorted(path.parent for path in Path(model).glob("*/config.toml"))
    if runs and not (Path(model) / "config.toml").exists():
        for path in runs:
            told = _history(RunFolder(path), "items")
            print(printable(f"{path}: {told.get('trained', 'no step')}; {told.get('held out', 'no score')}"))
        return
    opened = open_model(model)
    loaded = opened.model()
    told = _told(opened, loaded.loss_items)
    for name, value in told.items():
        print(printable(f"{name:<11} {value}"))
    rows = [("parameter", "shape", "dtype", "numbers")]
    rows += [(name, str(x.shape), str(x.dtype), f"{x.size:,}") for name, x in loaded.named_parameters()]
    rows += [("all", "", "", f"{loaded.parameter_count():,}")]
    columns = list(zip(*rows))
    while True:  # where the terminal is narrow, without dtype, then without shape, and at last with shorter names
        room = console.width - 1 - sum(max(map(len, column)) + 3 for column in columns[1:]) - 3
        if room >= min(30, max(map(len, columns[0]))) or len(columns) == 2:
            break
        del columns[-2]
    columns[0] = tuple(_shortened(name, room) for name in columns[0])
    head, *rows, last = zip(*columns)
    parameters = Table(*head)
    for row in rows:
        parameters.add_row(*row)
    parameters.add_section()
    parameters.add_row(*last)
    console.print(parameters)


def _told(opened: Opened, items: str) -> dict[str, str]:
    """What there is to say of a model, by name. items: what its loss is a mean over."""
    from nanograd_llm.errors import NanogradError
    from nanograd_llm.runs.opening import OpenedRun

    if isinstance(opened, OpenedRun):
        opened.settings.get("text", {}).pop("vocab_size", None)  # what was asked for; the model's is what it came to
        told = {name: _settings(table) for name, table in opened.settings.items()}
    else:
        told = {"from": f"{opened.path} ({opened.form})", "model": _settings(dataclasses.asdict(opened.config))}
    try:
        told["tokenizer"] = str(opened.tokenizer())
    except NanogradError as error:  # the model can be looked at without one
        told["tokenizer"] = f"none: {error}"
    return told | (_history(opened.folder, items, opened.step) if isinstance(opened, OpenedRun) else {})


def _history(run: RunFolder, items: str, step: int | None = None) -> dict[str, str]:
    """How a run went: its last step, its last score and its checkpoints; `step` is of the one that was given."""
    metrics = run.read_metrics()
    told = {}
    if steps := [record for record in metrics if "loss" in record]:
        last = steps[-1]
        items = f"{last['items']:,} {items}, " if "items" in last else ""
        told["trained"] = f"{last['step']:,} steps, {items}loss {last['loss']:.3f}"
    if scores := [record for record in metrics if "loss" not in record and len(record) > 1]:
        scored, (name, figure) = scores[-1].pop("step"), next(iter(scores[-1].items()))
        told["held out"] = f"{figure:.3f} {name.replace('_', ' ')} at step {scored:,}"
    told["checkpoints"] = ", ".join(map(str, run.checkpoints()))
    if step is not None:
        told["checkpoints"] += f"; these weights are of step {step:,}"
    return told


def _settings(table: Mapping[str, Any]) -> str:
    """The settings that are set, a float as a person would write it."""
    shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in table.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items() if value is not None)


def _shortened(name: str, room: int) -> str:
    """The name, its middle left out where it is longer than `room`: its beginning and its end tell it from others.

    >>> _shortened("blocks.0.attention.qkv.weight", 21)
    'blocks.0.a…qkv.weight'
    """
    room = max(room, 9)
    return name if len(name) <= room else f"{name[: room // 2]}…{name[len(name) - (room - 1) // 2 :]}"
