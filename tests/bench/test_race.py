"""Contenders run in their own processes, take turns, and fail with one line."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from multiprocessing import resource_tracker

import pytest
from makers import blocked_signals, broken, counter, end_process, refused, signalled_late, slow, where_and_what

from nanograd_llm.backend.processes import spawn
from nanograd_llm.bench.figures import Note
from nanograd_llm.bench.race import burst, contenders, race, warm_up
from nanograd_llm.errors import NanogradError


class Recorded:
    """A contender that records its turns."""

    def __init__(self, name, turns, seconds):
        self.name, self.turns, self.seconds = name, turns, seconds

    def ask(self, function, size):
        assert function is burst
        self.turns.append((self.name, size))
        return [next(self.seconds) for _ in range(size)]


def test_contenders_take_turns_in_bursts_and_the_median_counts():
    turns: list[tuple[str, int]] = []
    children = {
        "a": Recorded("a", turns, iter([1.0, 9.0, 2.0, 1.0, 2.0, 100.0])),
        "b": Recorded("b", turns, iter([5.0] * 6)),
    }
    assert race(children, rounds=3, size=2) == {"a": 2.0, "b": 5.0}
    assert turns == [("a", 2), ("b", 2)] * 3


@pytest.mark.parametrize(("limit", "most", "rounds"), [(0, 9, 1), (3600, 3, 3)])
def test_a_race_without_a_number_of_rounds_ends_by_its_limit_or_at_the_most(limit, most, rounds):
    turns: list[tuple[str, int]] = []
    race({"a": Recorded("a", turns, iter([1.0] * 99))}, None, 2, most=most, limit=limit)
    assert turns == [("a", 2)] * rounds


def test_the_first_step_of_a_turn_is_not_timed():
    step = counter()
    assert len(burst(step, 4)) == 4
    assert step() == 1 + 4 + 1


def test_a_contender_steps_in_its_own_process_and_ends_with_the_block():
    with contenders({"from 0": counter, "from 10": functools.partial(counter, 10)}) as children:
        answers = [children[name].ask(where_and_what, "x") for name in ("from 0", "from 10", "from 0")]
        assert [(calls, rest) for _, calls, rest in answers] == [(1, ("x",)), (11, ("x",)), (2, ("x",))]
        assert len({os.getpid(), *(pid for pid, _, _ in answers)}) == 3
    assert not any(contender.process.is_alive() for contender in children.values())


@pytest.mark.parametrize(
    ("make", "function", "message"),
    [
        (refused, burst, "no such thing"),
        (broken, burst, "ZeroDivisionError: by nothing"),
        (counter, divmod, "TypeError"),
        (counter, end_process, "ended without an answer"),
    ],
)
def test_an_exception_in_a_contender_is_raised_here(make, function, message):
    with spawn(make) as contender, pytest.raises(NanogradError, match=message):
        contender.ask(function)


def test_an_optional_contender_that_fails_is_removed_with_a_note():
    with contenders({"ours": counter, "compiled": broken}) as children:
        assert list(warm_up(children, "toy", optional=["compiled"])) == [
            Note("toy", "without compiled: ZeroDivisionError: by nothing")
        ]
        assert list(children) == ["ours"]


def test_an_optional_contender_that_takes_too_long_is_removed_and_ends():
    with contenders({"compiled": slow}) as children:
        process = children["compiled"].process
        assert list(warm_up(children, "toy", optional=["compiled"], limit=0.1)) == [
            Note("toy", "without compiled: its first steps take more than 0.1 s; --rounds N waits for them")
        ]
        assert not children and not process.is_alive()


@pytest.mark.parametrize("end", ["pass", "raise KeyboardInterrupt"])
def test_a_contender_leaves_no_semaphore_behind_also_after_ctrl_c(end):
    script = f"""
import makers, contextlib
from nanograd_llm.backend.processes import spawn
from nanograd_llm.bench.race import burst
if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), spawn(makers.with_semaphore) as contender:
        assert contender.ask(callable)
        contender.send(burst, 1)  # it takes two minutes
        {end}
"""
    folder = os.path.dirname(__file__)
    answer = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="the system has no SIGUSR1")
def test_a_contender_that_ends_by_itself_prints_no_traceback(capfd):
    with spawn(signalled_late) as contender:
        assert contender.ask(callable)
    assert capfd.readouterr().err == ""


def test_a_required_contender_that_fails_ends_the_race():
    with contenders({"ours": broken}) as children, pytest.raises(NanogradError, match="by nothing"):
        list(warm_up(children, "toy"))


def test_a_contender_killed_while_it_waits_is_an_error():
    with spawn(counter) as contender:
        contender.ask(where_and_what)
        contender.process.kill()
        contender.process.join()
        with pytest.raises(NanogradError, match="ended without an answer"):
            contender.ask(where_and_what)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="the system has no signal masks")
def test_ctrl_c_is_blocked_in_every_contender_even_the_first():
    resource_tracker._resource_tracker._stop()  # as it is before the first process is spawned
    for _ in range(2):
        with spawn(counter) as contender:
            assert signal.SIGINT in contender.ask(blocked_signals)
