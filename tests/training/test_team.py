"""Teams run one method on several tasks, in threads or forked processes, and leave none of them running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest

from nanograd_llm.backend.processes import CAN_FORK
from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.errors import ConfigError, IndexRangeError, NanogradError, WorkerError
from nanograd_llm.training import team as team_module
from nanograd_llm.training.team import Processes, Threads, make_team

needs_fork = pytest.mark.skipif(not CAN_FORK, reason="processes are forked on Linux only")
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12, beside threads


class Owner:
    def __init__(self) -> None:
        self.factor = 2

    def times(self, x: float) -> float:
        return self.factor * x

    def process(self, _: int) -> int:
        return os.getpid()

    def fail(self, who: int) -> int:
        if who:
            raise IndexRangeError(f"worker {who} fails")
        return who

    def die(self, who: int) -> int:
        if who:
            os._exit(9)
        return who


@pytest.mark.parametrize("kind", [Threads, pytest.param(Processes, marks=needs_fork)])
def test_results_come_in_the_order_of_the_tasks(kind: Any) -> None:
    owner, team = Owner(), kind(3)
    assert team.run(owner.times, [(1,), (2,), (3,)]) == [2, 4, 6]
    assert team.run(owner.times, [(5,)]) == [10]


@needs_fork
def test_the_caller_is_the_first_worker_and_the_others_are_other_processes() -> None:
    owner = Owner()
    first, *others = Processes(3).run(owner.process, [(0,), (1,), (2,)])
    assert first == os.getpid()
    assert len({first, *others}) == 3


@needs_fork
def test_processes_hold_a_copy_of_the_owner_as_it_was_when_they_started() -> None:
    owner, team = Owner(), Processes(3)
    team.start(owner)
    owner.factor = 10
    assert team.run(owner.times, [(1,), (2,), (3,)]) == [10, 4, 6]
    team.start(owner)
    assert team.run(owner.times, [(1,), (2,), (3,)]) == [10, 20, 30]


@needs_fork
@pytest.mark.parametrize(("who", "message"), [(2, "worker 2 fails"), (0, "worker 7 fails")])
def test_an_error_of_any_worker_is_raised_here_and_the_next_use_starts_new_ones(who: int, message: str) -> None:
    owner, team = Owner(), Processes(3)
    tasks = [(0,), (0,), (0,)]
    tasks[who] = (who or 7,)
    with pytest.raises(NanogradError, match=message):
        team.run(owner.fail, tasks)
    assert team.run(owner.times, [(1,), (2,), (3,)]) == [2, 4, 6]


@needs_fork
def test_a_worker_that_is_killed_is_an_error_and_the_next_use_starts_new_ones() -> None:
    owner, team = Owner(), Processes(3)
    with pytest.raises(WorkerError, match="ended without an answer"):
        team.run(owner.die, [(0,), (1,), (0,)])
    assert team.run(owner.times, [(1,), (2,), (3,)]) == [2, 4, 6]


def in_a_fork(work: Callable[[], object]) -> bool:
    """Does this end without an error, and within ten seconds, in a process forked from here?"""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            signal.alarm(10)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(process, 0)[1] == 0


@needs_fork
def test_a_fork_of_the_caller_that_deletes_its_team_leaves_the_workers_running() -> None:
    owner, teams = Owner(), [Processes(3)]
    before = teams[0].run(owner.process, [(0,), (0,), (0,)])
    assert in_a_fork(teams.clear)
    assert teams[0].run(owner.process, [(0,), (0,), (0,)]) == before


@needs_fork
def test_processes_end_with_their_team() -> None:
    owner, team = Owner(), Processes(3)
    _, *others = team.run(owner.process, [(0,), (0,), (0,)])
    del team
    for other in others:
        with pytest.raises(ProcessLookupError):
            os.kill(other, 0)


def test_an_interrupted_call_leaves_no_thread_running() -> None:
    class Interrupted(Exception): ...

    ended: list[int] = []

    class Owner:
        def work(self, n: int) -> None:
            if n == 0:
                raise Interrupted
            threading.Event().wait(0.2)
            ended.append(n)

    with pytest.raises(Interrupted):
        Threads(2).run(Owner().work, [(0,), (1,)])
    assert ended == [1]


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="no other Python can interrupt a thread")
def test_ctrl_c_ends_the_work_of_every_thread_at_once_and_the_next_call_works() -> None:
    begun, ended = threading.Event(), list[int]()

    class Owner:
        def work(self, n: int) -> None:
            if n == 0:
                begun.wait()
                raise KeyboardInterrupt
            begun.set()
            for _ in range(10**10):  # minutes
                pass
            ended.append(n)

        def number(self, n: int) -> int:
            return n

    team, owner = Threads(2), Owner()
    with pytest.raises(KeyboardInterrupt):
        team.run(owner.work, [(0,), (1,)])
    assert ended == [] and team.run(owner.number, [(0,), (1,)]) == [0, 1]


@needs_fork
def test_a_fork_waits_for_threads_that_set_blas_threads() -> None:
    stop = threading.Event()

    def toggle() -> None:
        while not stop.is_set():
            with blas_threads(1):
                pass

    thread = threading.Thread(target=toggle)
    thread.start()
    try:
        owner = Owner()
        for _ in range(20):
            assert Processes(2).run(owner.times, [(1,), (2,)]) == [2, 4]
    finally:
        stop.set()
        thread.join()


# Which team is made


def chosen(monkeypatch: pytest.MonkeyPatch, size: int = 2, processes: bool | None = None) -> str:
    """str() of the team that is made while only the main thread is running."""
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    return str(make_team(size, processes))


@needs_fork
def test_a_plain_script_has_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch) == "2 processes"
    assert chosen(monkeypatch, processes=True) == "2 processes"
    assert chosen(monkeypatch, processes=False) == "2 threads"
    assert chosen(monkeypatch, 1) == chosen(monkeypatch, 1, processes=True) == "1 thread"


@needs_fork
def test_a_notebook_has_threads_unless_processes_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert chosen(monkeypatch) == "2 threads: a notebook is running"
    assert chosen(monkeypatch, processes=True) == "2 processes"


def test_a_system_without_a_safe_fork_has_threads_and_refuses_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team_module, "CAN_FORK", False)
    assert chosen(monkeypatch) == "2 threads: this system has no safe fork"
    with pytest.raises(ConfigError, match="processes=True needs Linux"):
        make_team(2, True)


@needs_fork
def test_a_forked_process_has_threads() -> None:
    def work() -> None:
        assert str(make_team(2)) == "2 threads: this process is itself a worker"

    assert in_a_fork(work)


@needs_fork
def test_a_thread_has_threads() -> None:
    made: list[str] = []
    thread = threading.Thread(target=lambda: made.append(str(make_team(2))))
    thread.start()
    thread.join()
    assert made == ["2 threads: this is not the main thread"]


@needs_fork
def test_threads_are_used_if_other_threads_run_except_our_own_and_monitors() -> None:
    source = """
import threading
from nanograd_llm.backend.threads import blas_threads, share_out
from nanograd_llm.training.team import make_team, Threads

class TMonitor(threading.Thread):
    pass

stop = threading.Event()
TMonitor(target=stop.wait, daemon=True).start()
with blas_threads(2):
    assert share_out(lambda part: part, 2, 2**20) == [slice(0, 1), slice(1, 2)]
team = Threads(3)
team.run(str, [(1,), (2,), (3,)])
print(make_team(2))
threading.Thread(target=stop.wait, name="busy", daemon=True).start()
print(make_team(2))
"""
    answer = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert answer.stdout == "2 processes\n2 threads: another thread is running, 'busy'\n", answer.stderr


@needs_fork
def test_a_warning_is_given_once_and_not_by_each_process() -> None:
    source = """
import warnings
from nanograd_llm.training.team import Processes

class Owner:
    def warn(self, worker):
        warnings.warn(f"of worker {worker}")

Processes(3).run(Owner().warn, [(0,), (1,), (2,)])
"""
    answer = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert answer.stderr.count("UserWarning: of worker") == 1 and "of worker 0" in answer.stderr, answer.stderr
