"""A race: each contender lives in a process of its own, and they take turns in bursts.

In a process of its own no contender is touched by another's allocator settings, threads or imports. Turns, because
machines drift. Bursts, because threads that spin after their work (OpenMP's do, for milliseconds) slow down whoever
comes next: so a turn is one step that does not count, then a few that do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from nanograd_llm.backend.interrupts import born_deaf, ctrl_c_later
from nanograd_llm.backend.pipes import receive, send, told
from nanograd_llm.bench.figures import Note
from nanograd_llm.errors import NanogradError

Step = Callable[[], Any]
Maker = Callable[[], Step]  # runs in the contender's process; must be importable there, such as a partial of a function


class Asked(Protocol):
    """What a race needs of a contender: function(step, *arguments), computed where its step is."""

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any: ...


class Contender:
    """A step in a process of its own, made there by `make()`.  Close it, or use it in a `with` block."""

    def __init__(self, make: Maker):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, make))
        self.is_made = False
        try:
            with ctrl_c_later():  # also since imports, of which the first start makes some, can lose what breaks in
                _start_helper()
                with born_deaf(signal.SIGINT):
                    self.process.start()
                there.close()
        except BaseException:
            self.close(at_once=True)
            raise

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(step, *arguments) as computed there; what fails there is raised here as NanogradError."""
        ended = "a contender's process ended without an answer; was there enough memory?"
        if not self.is_made:
            receive(self.pipe, ended)
            self.is_made = True
        send(self.pipe, (function, arguments))
        return receive(self.pipe, ended)

    def close(self, *, at_once: bool = False) -> None:
        """End the process; at_once: even amid a step, which nobody waits for any more."""
        self.pipe.close()
        if self.process.pid is None:  # it has not been started
            return
        if at_once:
            self.process.terminate()
        self.process.join()

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, error: Any, *_: Any) -> None:
        self.close(at_once=error is not None)


def _start_helper() -> None:
    """Start what the first process that is spawned would start, since it unblocks Ctrl-C by the way."""
    if sys.platform != "win32":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()


def _serve(pipe: Connection, make: Maker) -> None:
    """The life of a contender's process: make the step, then answer until the other side hangs up."""
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            step = make()
            send(pipe, None)
        except Exception as error:
            return send(pipe, told(error))
        while True:
            function, arguments = pipe.recv()
            try:
                answer = function(step, *arguments)
            except Exception as error:
                answer = told(error)
            send(pipe, answer)


@contextlib.contextmanager
def contenders(makers: Mapping[str, Maker]) -> Iterator[dict[str, Contender]]:
    """A contender for each maker, all closed at the end of the block."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Contender(make)) for name, make in makers.items()}


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


def race(field: Mapping[str, Asked], rounds: int, size: int) -> dict[str, float]:
    """Median seconds of a step of each contender, over `rounds` turns of `size` steps."""
    seconds: dict[str, list[float]] = {name: [] for name in field}
    for _ in range(rounds):
        for name, contender in field.items():
            seconds[name] += contender.ask(burst, size)
    return {name: statistics.median(values) for name, values in seconds.items()}
