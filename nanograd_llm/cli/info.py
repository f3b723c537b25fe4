"""`nanograd-llm info`: show what a model is made of, and how a run was trained."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from nanograd_llm.cli.options import Model
from nanograd_llm.cli.terminal import row, written
from nanograd_llm.settings import counted, printable

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened
    from nanograd_llm.runs.folder import RunFolder


def info(model: Model, /, *, verify: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Show a model: its sizes, tokenizer and parameters; for a run also its settings, score and checkpoints.

    For a folder of runs, such as runs, show each run with its last score; for a prepared folder, what it holds.

    Parameters
    ----------
    verify
        Check a LoRA run instead: with adapters off it is the model that it started from, bit for bit; with adapters
        merged, its results stay the same within rounding. Exit code 1 if not.
    """
    if verify:
        from nanograd_llm.runs.verifying import verify as verify_run

        found = verify_run(model)
        print(written(str(found)))
        return 0 if found.passed else 1
    from rich.console import Console
    from rich.table import Table

    from nanograd_llm.runs.folder import RunFolder
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.text.prepared import described
    from nanograd_llm.text.sources import is_prepared

    console = Console(highlight=False)
    runs = sorted(path.parent for path in Path(model).glob("*/config.toml"))
    if runs and not (Path(model) / "config.toml").exists():
        for path in runs:
            history = _history(RunFolder(path))
            print(written(f"{path}: {history.get('trained', 'no checkpoint')}; {history.get('held out', 'no score')}"))
        return 0
    if is_prepared(model):
        for table, values in described(model).items():
            print(row(table, printable(_settings(values))))
        print(written(f"{model} is a prepared folder; next: nanograd-llm train {shlex.quote(model)}"))
        return 0
    opened = open_model(model)
    loaded = opened.model()
    for name, value in _facts(opened, loaded.loss_items).items():
        print(row(name, printable(value)))
    rows = [("parameter", "shape", "dtype", "numbers")]
    rows += [(name, str(x.shape), str(x.dtype), f"{x.size:,}") for name, x in loaded.named_parameters()]
    rows += [("all", "", "", f"{loaded.parameter_count():,}")]
    columns = list(zip(*rows))
    while True:  # on a narrow terminal leave out dtype, then shape; then shorten the names
        room = console.width - 1 - sum(max(map(len, column)) + 3 for column in columns[1:]) - 3
        if room >= min(30, max(map(len, columns[0]))) or len(columns) == 2:
            break
        del columns[-2]
    columns[0] = tuple(_shortened(name, room) for name in columns[0])
    head, *rows, last = zip(*columns)
    parameters = Table(*head)
    for cells in rows:
        parameters.add_row(*cells)
    parameters.add_section()
    parameters.add_row(*last)
    console.print(parameters)
    return 0


def _facts(opened: Opened, items: str) -> dict[str, str]:
    """Facts about a model, by name. items: what its loss is a mean over."""
    from nanograd_llm.errors import NanogradError
    from nanograd_llm.files.atomic import read_bytes
    from nanograd_llm.runs.opening import OpenedRun

    if isinstance(opened, OpenedRun):
        opened.settings.get("text", {}).pop("vocab_size", None)  # as asked for; the model's is the real one
        facts = {name: shown for name, table in opened.settings.items() if (shown := _settings(table))}
        if opened.folder.hash_path.exists():
            facts["text hash"] = f"SHA-256 {read_bytes(opened.folder.hash_path, at_most=10_000)[:12].decode('latin-1')}"
    else:
        facts = {"from": f"{opened.path} ({opened.form})", "model": _settings(dataclasses.asdict(opened.config))}
    if hasattr(opened.config, "vocab_size"):  # else the model is not given tokens
        try:
            facts["tokenizer"] = str(opened.tokenizer())
        except NanogradError as error:  # the model can be shown without one
            facts["tokenizer"] = f"none: {error}"
    return facts | (_history(opened.folder, items, opened.step) if isinstance(opened, OpenedRun) else {})


def _history(run: RunFolder, items: str = "", step: int | None = None) -> dict[str, str]:
    """The last step of a run, its last score and its checkpoints. step: of the checkpoint that was given, else None."""
    from nanograd_llm.tasks.task import Score

    saved = run.checkpoints()
    last, score = run.last_metrics(max(saved, default=0) if step is None else step)  # later ones were lost with a kill
    history = {}
    if last:
        items = f"{last['items']:,} {items}, " if items and "items" in last else ""
        history["trained"] = f"{counted(last['step'], 'step')}, {items}loss {last['loss']:.3f}"
    if score:
        scored, share = score.pop("step"), score.get("scored_share", 1.0)
        part = f", on {100 * share:.2g} % of what is held out" if share < 1 else ""
        history["held out"] = f"{Score.figure_of(score)} at step {scored:,}{part}"
    history["checkpoints"] = ", ".join(map(str, saved))
    if step is not None:
        history["checkpoints"] += f"; these weights are of step {step:,}"
    return history


def _settings(table: Mapping[str, Any]) -> str:
    """The settings that are not None, floats in short form."""
    shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in table.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items() if value is not None)


def _shortened(name: str, room: int) -> str:
    """The name without its middle if it is longer than `room`: beginning and end tell names apart.

    >>> _shortened("blocks.0.attention.qkv.weight", 21)
    'blocks.0.a…qkv.weight'
    """
    room = max(room, 9)
    return name if len(name) <= room else f"{name[: room // 2]}…{name[len(name) - (room - 1) // 2 :]}"
