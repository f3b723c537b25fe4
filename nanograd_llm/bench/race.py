"""A race: each contender runs in its own process, and they take turns of a few steps.

In its own process, a contender is not affected by another's allocator settings, threads or imports. They take turns
because the speed of a machine changes over time. The first step of a turn is not timed, because threads of the
contender before may still be spinning. A race has a time limit, and on a terminal it shows how far it has come.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nanograd_llm.backend.processes import Child, spawn
from nanograd_llm.bench.figures import Note
from nanograd_llm.errors import NanogradError

SECONDS, COMPILING = 20.0, 25.0  # limits of a race, and of the first steps of an optional contender

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


def warm_up(
    children: dict[str, Any], workload: str, optional: Sequence[str] = (), limit: float | None = COMPILING
) -> Iterator[Note]:
    """Let each contender do its first steps, which create and compile what later steps use.

    A contender in `optional` that fails, or takes more than `limit` seconds, is removed, and a note says why. Raises
    NanogradError if another fails.
    """
    for place, name in enumerate(list(children)):
        show(f"{workload}: first steps of {name}", place / len(children))
        try:
            children[name].send(burst, 1)
            if name in optional and not children[name].pipe.poll(limit):
                raise NanogradError(f"its first steps take more than {limit:g} s; --rounds N waits for them")
            children[name].receive()
        except NanogradError as error:
            if name not in optional:
                raise
            children.pop(name).close()
            yield Note(workload, f"without {name}: {str(error).splitlines()[0]}")
    show()


def race(
    children: Mapping[str, Any], rounds: int | None, size: int, *, most: int = 20, limit: float = SECONDS
) -> dict[str, float]:
    """The median seconds of a step of each contender, over `rounds` turns of `size` steps.

    If rounds is None, there are at most `most`, and no turn begins that would probably end after `limit` seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in children}
    began, done = time.monotonic(), 0
    while done < (rounds or most):
        elapsed = time.monotonic() - began
        if rounds is None and done and elapsed * (done + 1) / done > limit:
            break
        show(f"round {done + 1} of at most {rounds or most}", done / (rounds or most))
        for name, contender in children.items():
            seconds[name] += contender.ask(burst, size)
        done += 1
    show()
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(doing: str = "", share: float = 0) -> None:
    """Write on a terminal's stderr what is being done, in place of the line before; without words, remove it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{f'{doing}, {share:.0%}' if doing else ''}", end="", file=sys.stderr, flush=True)
