"""A race: each contender runs in its own process, and they take turns of a few steps.

In its own process, a contender is not affected by another's allocator settings, threads or imports. They take turns
because the speed of a machine changes over time. The first step of a turn is not timed, because threads of the
contender before may still be spinning.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nanograd_llm.backend.processes import Child, spawn
from nanograd_llm.bench.figures import Note
from nanograd_llm.errors import NanogradError

Step = Callable[[], Any]
Maker = Callable[[], Step]  # runs in the contender's process, which imports it: a function or a partial of one


@contextlib.contextmanager
def contenders(makers: Mapping[str, Maker]) -> Iterator[dict[str, Child]]:
    """A process with a step for each maker; all end with the block."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(spawn(make)) for name, make in makers.items()}


def burst(step: Step, size: int) -> list[float]:
    """The seconds of each of `size` steps, after one step that is not timed."""
    step()
    seconds = []
    for _ in range(size):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds


def warm_up(children: dict[str, Any], workload: str, optional: Sequence[str] = ()) -> Iterator[Note]:
    """Let each contender do its first steps, which create and compile what later steps use.

    A contender in `optional` that fails is removed, and a note says why. Raises NanogradError if another fails.
    """
    for name in list(children):
        try:
            children[name].ask(burst, 1)
        except NanogradError as error:
            if name not in optional:
                raise
            del children[name]
            yield Note(workload, f"without {name}: {str(error).splitlines()[0]}")


def race(children: Mapping[str, Any], rounds: int, size: int) -> dict[str, float]:
    """The median seconds of a step of each contender, over `rounds` turns of `size` steps."""
    seconds: dict[str, list[float]] = {name: [] for name in children}
    for _ in range(rounds):
        for name, contender in children.items():
            seconds[name] += contender.ask(burst, size)
    return {name: statistics.median(values) for name, values in seconds.items()}
