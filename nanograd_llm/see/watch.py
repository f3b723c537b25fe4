"""Watching a training run from outside: how large updates are beside the weights, and how saturated activations are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from nanograd_llm.nn.module import Module
from nanograd_llm.see.record import Call, Record, norm, recorded

ACTIVATIONS = "gelu", "gelu_exact", "relu", "silu", "tanh", "sigmoid"
BINS = 40
FLAT = 0.01  # a slope below this lets almost no gradient through


def watching(
    events: Iterable[Any],
    model: Module,
    batch: Callable[[int], tuple[np.ndarray, ...]],
    every: int,
    append: Callable[[dict[str, Any]], None],
) -> Iterator[Any]:
    """Pass the events of a run on; after every `every`th step append what `update_ratios` and `activations` find.

    batch: gives the arrays that the step after so many steps trains on.  append: takes a record.
    """
    before = _copies(model)
    for event in events:
        step = event.step if hasattr(event, "learning_rate") else None
        if step is not None and step % every == 0:
            found = {"update": update_ratios(model, before), "activations": activations(model, batch(step - 1))}
            append({"step": step, **found})
        if step is not None:
            before = _copies(model) if (step + 1) % every == 0 else {}
        yield event


def _copies(model: Module) -> dict[str, np.ndarray]:
    return {name: np.array(p.numpy()) for name, p in model.named_parameters()}


def update_ratios(model: Module, before: dict[str, np.ndarray]) -> dict[str, float]:
    """|new - old| / |old| of each parameter that has changed and is finite."""
    found = {}
    for name, p in model.named_parameters():
        size = norm(before[name])
        change = norm(p.numpy() - before[name])
        if size and 0 < change < np.inf:
            found[name] = float(f"{change / size:.4g}")
    return found


def activations(model: Module, batch: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """For each activation of the model's loss on a batch: a histogram of its input, mean, std, and the flat share.

    Those with an input that is not finite are left out: the trainer's next step stops there and says why.
    """
    with np.errstate(all="ignore"):
        record: Record = recorded(model.loss, batch, {})
    calls = [call for call in record.calls if call.op.name in ACTIVATIONS]
    return {_place(call): _summary(call) for call in calls if np.isfinite(call.inputs[0].array).all()}  # type: ignore[union-attr]


def _place(call: Call) -> str:
    return f"{call.module} {call.op.name}" if call.module else f"{call.number} {call.op.name}"


def _summary(call: Call) -> dict[str, Any]:
    x = call.inputs[0].array.astype(np.float64).reshape(-1)  # type: ignore[union-attr]
    slope = np.imag(call.op(x + 1e-30j)) / 1e-30  # they work on each number by itself
    counts, edges = np.histogram(x, BINS)
    return {
        "mean": float(x.mean()), "std": float(x.std()), "low": float(edges[0]), "high": float(edges[-1]),
        "flat": float(np.mean(np.abs(slope) < FLAT)), "counts": counts.tolist(),
    }  # fmt: skip
