"""The time of each part of a step: the forward and the rule of every op, and the parts of training around them.

Only the calling thread is timed, so one worker; its waiting for the other workers is part of the rest.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from nanograd_llm.autograd.tensor import registry
from nanograd_llm.bench.race import Step
from nanograd_llm.inference.decoder import (
    AttentionStep,
    BlockStep,
    Decoder,
    LinearStep,
    NormStep,
    OneAttentionStep,
    OneNormStep,
)
from nanograd_llm.nn import KeyValueCache
from nanograd_llm.training.workers import Workers

# Methods that are timed besides the ops, and the name of what they do.
PARTS: list[tuple[type, str, str]] = [
    (Workers, "compute_share", "tape and modules"),
    (Workers, "add_shares", "gradients added up"),
    (Workers, "update_blocks", "AdamW"),
    (LinearStep, "__call__", "linear, one token"),
    (NormStep, "__call__", "layernorm, one token"),
    (OneNormStep, "__call__", "layernorm, one token"),
    (AttentionStep, "__call__", "attention, one token"),
    (OneAttentionStep, "__call__", "attention, one token"),
    (BlockStep, "__call__", "activation and sums, one token"),
    (Decoder, "__call__", "embedding and head, one token"),
    (KeyValueCache, "extend", "key-value cache"),
]


class Stopwatch:
    """Adds up calls and seconds by name. If one timed call makes another, that time counts only for the inner one."""

    def __init__(self, wait: Callable[[], Any] | None = None) -> None:
        self.wait = wait or (lambda: None)  # before the clock is read: for a GPU to compute what it was given
        self.times: dict[str, list[float]] = {}  # name: [calls, seconds]
        self.thread = threading.get_ident()
        self.inner = [0.0]  # for each timed call that is running, the seconds of the timed calls inside it

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != self.thread:
                return function(*arguments, **named)
            self.inner.append(0.0)
            self.wait()
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.wait()
                took = time.perf_counter() - began
                entry = self.times.setdefault(name, [0, 0.0])
                entry[0] += 1
                entry[1] += took - self.inner.pop()
                self.inner[-1] += took

        return watched


@contextlib.contextmanager
def stopwatch(wait: Callable[[], Any] | None = None) -> Iterator[Stopwatch]:
    """Inside this block every op and every part of training is timed. wait: called before the clock is read."""
    watch = Stopwatch(wait)
    places: list[tuple[Any, str, str]] = [(op, "forward", op.name) for op in registry.values()]
    places += [(op, "rule", f"{op.name}, backward") for op in registry.values() if op.rule] + PARTS
    before = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in places]
    try:
        for (owner, attribute, name), (_, _, original) in zip(places, before):
            setattr(owner, attribute, watch.watch(name, original))
        yield watch
    finally:
        for owner, attribute, original in before:
            setattr(owner, attribute, original)


def profile(step: Step, steps: int, wait: Callable[[], Any] | None = None) -> list[tuple[str, float, float, float]]:
    """(name, calls, seconds, share) per step, over `steps` steps, slowest first; the rest of the step comes last.

    wait: for a GPU, waits until it has computed what it was given; then the parts of a step do not overlap as usual.
    """
    step()
    with stopwatch(wait) as watch:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        whole = time.perf_counter() - began
    rows = [(name, calls, seconds) for name, (calls, seconds) in watch.times.items()]
    rows.sort(key=lambda row: -row[2])
    rows.append(("everything else, and waiting", steps, whole - sum(row[2] for row in rows)))
    return [(name, calls / steps, seconds / steps, seconds / whole) for name, calls, seconds in rows]
