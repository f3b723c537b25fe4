"""A race: each contender lives in a process of its own, and they take turns in bursts.

So no contender is touched by another's allocator settings, threads or imports. Turns, because machines drift. Bursts,
because threads that spin after their work slow down the next one: a turn is one step that does not count, then a few.
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
Maker = Callable[[], Step]  # runs in the contender's process; must be importable there, such as a partial of a function


@contextlib.contextmanager
def contenders(makers: Mapping[str, Maker]) -> Iterator[dict[str, Child]]:
    """A step in a process of its own for each maker, all closed at the end of the block."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(spawn(make)) for name, make in makers.items()}


def burst(step: Step, size: int) -> list[float]:
    """Seconds of each of `size` steps in a row, after one that does not count."""
    step()
    seconds = []
    for _ in range(size):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds


def warm_up(field: dict[str, Any], workload: str, optional: Sequence[str] = ()) -> Iterator[Note]:
    """Let each contender take its first steps, where much is made or compiled that is used from then on.

    An optional one that fails leaves the field, and a note says why. Raises NanogradError where another fails.
    """
    for name in list(field):
        try:
            field[name].ask(burst, 1)
        except NanogradError as error:
            if name not in optional:
                raise
            del field[name]
            yield Note(workload, f"without {name}: {str(error).splitlines()[0]}")


def race(field: Mapping[str, Any], rounds: int, size: int) -> dict[str, float]:
    """Median seconds of a step of each contender, over `rounds` turns of `size` steps."""
    seconds: dict[str, list[float]] = {name: [] for name in field}
    for _ in range(rounds):
        for name, contender in field.items():
            seconds[name] += contender.ask(burst, size)
    return {name: statistics.median(values) for name, values in seconds.items()}
