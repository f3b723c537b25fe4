"""`nanograd-llm info`: what a model is made of, and for a run how it came to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from nanograd_llm.models import GPT


def info(model: str, /) -> None:
    """Show a model: its sizes, tokenizer and parameters; of a run its settings, scores and checkpoints as well.

    Parameters
    ----------
    model
        The folder of a run, or a pretrained model: a folder, a file or a name, such as gpt2.
    """
    from rich.console import Console
    from rich.table import Table

    from nanograd_llm.runs.opening import find_run

    console = Console(highlight=False)
    run = find_run(model)
    loaded, told = _pretrained(model) if run is None else _run(*run)
    for name, value in told.items():
        console.print(f"{name:<11}", value, markup=False, soft_wrap=True)
    rows = [(name, str(x.shape), str(x.dtype), f"{x.size:,}") for name, x in loaded.named_parameters()]
    rows += [("all", "", "", f"{loaded.parameter_count():,}")]
    heads = ("parameter", "shape", "dtype", "numbers")
    others = sum(max(map(len, column)) for column in list(zip(heads, *rows))[1:])
    room = console.width - others - 13  # of lines and of spaces beside them
    parameters = Table(*heads)
    for name, *row in rows[:-1]:
        parameters.add_row(_shortened(name, room), *row)
    parameters.add_section()
    parameters.add_row(*rows[-1])
    console.print(parameters)


def _run(path: Path, step: int | None) -> tuple[GPT, dict[str, str]]:
    """The model of a run, of a step or the newest, and what there is to say of it."""
    from nanograd_llm.runs.folder import RunFolder
    from nanograd_llm.runs.run import load_run_model
    from nanograd_llm.text import load_tokenizer

    folder = RunFolder.open(path)
    model, tokenizer = load_run_model(folder, step), load_tokenizer(folder.tokenizer_path)
    metrics = folder.read_metrics()
    steps = [record for record in metrics if "loss" in record]
    scores = [record for record in metrics if "bits_per_byte" in record]
    config = folder.read_config()
    config.get("text", {}).pop("vocab_size", None)  # what was asked for; the model's is what it came to
    if "minutes" in config.get("train", {}):
        config["train"].pop("steps", None)
    told = {name: _settings(table) for name, table in config.items()} | {"tokenizer": str(tokenizer)}
    if steps:
        last = steps[-1]
        items = f"{last['items']:,} {model.loss_items}, " if "items" in last else ""
        told["trained"] = f"{last['step']:,} steps, {items}loss {last['loss']:.3f}"
    if scores:
        last = scores[-1]
        told["held out"] = f"{last['bits_per_byte']:.3f} bits per byte at step {last['step']:,}"
    told["checkpoints"] = ", ".join(map(str, folder.checkpoints()))
    if step is not None:
        told["checkpoints"] += f"; these weights are of step {step:,}"
    return model, told


def _pretrained(source: str) -> tuple[GPT, dict[str, str]]:
    """A pretrained model, and what there is to say of it."""
    from nanograd_llm.errors import NanogradError
    from nanograd_llm.pretrained import find_source, load_gpt2, load_gpt2_tokenizer

    found, model = find_source(source), load_gpt2(source)
    told = {"from": f"{found.weights} ({found.form})", "model": _settings(dataclasses.asdict(model.config))}
    try:
        told["tokenizer"] = str(load_gpt2_tokenizer(source, model.config.vocab_size))
    except NanogradError as error:  # the model can be looked at without one
        told["tokenizer"] = f"none: {error}"
    return model, told


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
