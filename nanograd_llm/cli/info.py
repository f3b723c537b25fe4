"""`nanograd-llm info`: what a model is made of, and for a run how it came to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nanograd_llm.cli.options import Model

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened
    from nanograd_llm.runs.opening import OpenedRun


def info(model: Model, /) -> None:
    """Show a model: its sizes, tokenizer and parameters; of a run its settings, scores and checkpoints as well."""
    from rich.console import Console
    from rich.table import Table

    from nanograd_llm.runs.opening import open_model

    console = Console(highlight=False)
    opened = open_model(model)
    loaded = opened.model()
    told = _told(opened, loaded.loss_items)
    for name, value in told.items():
        console.print(f"{name:<11}", value, markup=False, soft_wrap=True)
    rows = [("parameter", "shape", "dtype", "numbers")]
    rows += [(name, str(x.shape), str(x.dtype), f"{x.size:,}") for name, x in loaded.named_parameters()]
    others = sum(max(map(len, column)) for column in list(zip(*rows))[1:])
    room = console.width - others - 13  # of lines and of spaces beside them
    parameters = Table(*rows[0])
    for name, *row in rows[1:]:
        parameters.add_row(_shortened(name, room), *row)
    parameters.add_section()
    parameters.add_row("all", "", "", f"{loaded.parameter_count():,}")
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
    return told | (_history(opened, items) if isinstance(opened, OpenedRun) else {})


def _history(run: OpenedRun, items: str) -> dict[str, str]:
    """How a run went: its last step, its last score and its checkpoints. items: what its loss is a mean over."""
    metrics = run.folder.read_metrics()
    told = {}
    if steps := [record for record in metrics if "loss" in record]:
        last = steps[-1]
        items = f"{last['items']:,} {items}, " if "items" in last else ""
        told["trained"] = f"{last['step']:,} steps, {items}loss {last['loss']:.3f}"
    if scores := [record for record in metrics if "loss" not in record and len(record) > 1]:
        step, (name, figure) = scores[-1].pop("step"), next(iter(scores[-1].items()))
        told["held out"] = f"{figure:.3f} {name.replace('_', ' ')} at step {step:,}"
    told["checkpoints"] = ", ".join(map(str, run.folder.checkpoints()))
    if run.step is not None:
        told["checkpoints"] += f"; these weights are of step {run.step:,}"
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
