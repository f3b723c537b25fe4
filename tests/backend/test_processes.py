"""Child processes: calls, exceptions, Ctrl-C, and processes that are stopped or killed."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nanograd_llm.backend import processes
from nanograd_llm.backend.processes import CAN_FORK, Child, as_sent, deferred_ctrl_c, fork, signals_blocked
from nanograd_llm.errors import NanogradError, ShapeError, WorkerError

needs_fork = pytest.mark.skipif(not CAN_FORK, reason="processes are forked on Linux only")


def test_ctrl_c_takes_effect_at_the_end_of_the_block() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        with deferred_ctrl_c():
            signal.raise_signal(signal.SIGINT)
            done.append("whole")
        done.append("never")
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_is_raised_and_the_handler_is_restored() -> None:
    with pytest.raises(ZeroDivisionError), deferred_ctrl_c():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="there are no signal masks")
def test_signals_are_blocked_within_the_block_only() -> None:
    def mask() -> set[int]:
        return signal.pthread_sigmask(signal.SIG_BLOCK, ())

    before = mask()
    with signals_blocked():
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= mask()
    assert mask() == before


# Functions that a child process computes


def plus_late(held: int, x: int) -> int:
    time.sleep(5 * processes._SOON)
    return held + x


def plus(held: int, x: int) -> int:
    return held + x


def process(_held: int) -> int:
    return os.getpid()


def raise_(_held: int, error: Exception) -> None:
    raise error


def die(_held: int) -> None:
    os._exit(9)


def unpicklable(_held: int) -> Callable[[], None]:
    return lambda: None


def sleep(_held: int, seconds: float) -> None:
    time.sleep(seconds)


def seven() -> int:
    return 7


@pytest.fixture
def child() -> Iterator[Child]:
    with fork(seven) as child:
        yield child


@needs_fork
def test_calls_are_computed_in_the_child_and_answered_in_order(child: Child) -> None:
    assert child.ask(plus, 1) == 8
    assert child.ask(process) == child.process.pid != os.getpid()
    child.send(plus, 2)
    child.send(plus, 3)
    assert [child.receive(), child.receive()] == [9, 10]


class Odd(NanogradError):
    """An exception that cannot be unpickled."""

    def __init__(self, what: str, where: str):
        super().__init__(what)


@needs_fork
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ShapeError("two rows"), ShapeError, "^two rows$"),
        (MemoryError("80 GiB"), MemoryError, "^80 GiB$"),
        (ValueError("deep down"), NanogradError, "^ValueError: deep down$"),
    ],
)
def test_an_exception_in_the_child_is_raised_and_the_next_call_is_answered(
    error: Exception, kind: type[Exception], message: str, child: Child
) -> None:
    with pytest.raises(kind, match=message):
        child.ask(raise_, error)
    assert child.ask(plus, 1) == 8


def test_an_error_that_cannot_be_pickled_is_sent_with_its_name() -> None:
    sent = as_sent(Odd("bad token", "row 3"))
    assert type(sent) is NanogradError and str(sent) == "Odd: bad token"


@needs_fork
def test_an_answer_that_cannot_be_pickled_is_an_error(child: Child) -> None:
    with pytest.raises(NanogradError, match=r"(Pickling|Attribute)Error: .*local object"):
        child.ask(unpicklable)
    assert child.ask(plus, 1) == 8


@needs_fork
def test_an_error_while_the_subject_is_made_is_raised_at_the_first_call() -> None:
    def missing() -> Any:
        raise ShapeError("no such thing")

    with fork(missing) as child, pytest.raises(ShapeError, match="no such thing"):
        child.ask(plus, 1)


@needs_fork
def test_a_process_that_dies_is_reported_within_a_second(child: Child) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerError, match=rf"child process {child.process.pid} ended without an answer"):
        child.ask(die)
    assert time.monotonic() - began < 1


@needs_fork
def test_a_process_killed_while_idle_is_reported_at_the_next_call(child: Child) -> None:
    os.kill(child.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(WorkerError, match="ended without an answer"):
        child.ask(plus, 1)


@needs_fork
@pytest.mark.parametrize("large", [b"", bytes(2**22)])
def test_a_stopped_process_is_reported_and_not_waited_for(large: bytes, child: Child) -> None:
    os.kill(child.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.process.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(WorkerError, match=rf"child process {child.process.pid} is stopped"):
        child.ask(plus, large)


@needs_fork
def test_a_process_stopped_during_a_call_is_reported_and_not_waited_for(child: Child) -> None:
    child.send(sleep, 60)
    os.kill(child.process.pid, signal.SIGSTOP)
    with pytest.raises(WorkerError, match="is stopped"):
        child.receive()


@needs_fork
def test_a_process_that_continues_within_a_second_answers(child: Child) -> None:
    os.kill(child.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.process.pid, os.WSTOPPED | os.WNOWAIT)
    poll = child.pipe.poll

    def go_on(timeout: float) -> bool:  # as a shell continues a process group, the parent first
        os.kill(child.process.pid, signal.SIGCONT)
        return poll(timeout)

    child.pipe.poll = go_on  # type: ignore[method-assign,assignment]
    assert child.ask(plus, 1) == 8


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_process_group_does_not_stop_the_child(number: int, child: Child) -> None:
    os.kill(child.process.pid, number)
    assert child.ask(plus, 1) == 8


@needs_fork
def test_a_process_that_cannot_be_forked_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    with pytest.raises(WorkerError, match=r"cannot start a worker process: .*temporarily unavailable; use fewer"):
        fork(seven)


def has_ended(pid: int) -> bool:
    """Does the process end within five seconds?"""
    for _ in range(500):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                if file.read().split()[2] in "ZX":
                    return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@needs_fork
def test_a_process_ends_with_its_block() -> None:
    with fork(seven) as child:
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(child.process.pid, 0)


@needs_fork
def test_a_parent_that_is_killed_leaves_no_child_behind() -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            children = [fork(seven) for _ in range(3)]
            os.write(writing, " ".join(str(child.process.pid) for child in children).encode())
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(parent, 0)
    assert all(has_ended(pid) for pid in map(int, os.read(reading, 100).split()))


@needs_fork
def test_a_child_has_no_open_pipe_of_another_child() -> None:
    first, second = fork(seven), fork(seven)
    first.pipe.close()  # the second child would keep a copy of this end if it had not closed it
    assert has_ended(first.process.pid)
    assert second.ask(plus, 1) == 8
    first.close()
    second.close()


@needs_fork
@pytest.mark.parametrize("has_poll", [True, False])
def test_a_message_is_received_at_once_and_after_the_time_without_sleep(
    has_poll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_poll:
        monkeypatch.delattr(select, "poll")
    with fork(lambda: 10) as child:
        assert child.ask(plus, 1) == 11  # the child awaits it
        time.sleep(5 * processes._SOON)
        assert child.ask(plus, 2) == 12  # and goes to sleep
        assert child.ask(plus_late, 3) == 13  # this process goes to sleep


@needs_fork
def test_waiting_for_a_message_ends_with_the_message_or_after_a_while() -> None:
    from multiprocessing import Pipe

    here, there = Pipe()
    with here, there:
        processes._await_soon(here)
        assert not here.poll()
        there.send("message")
        processes._await_soon(here)
        assert here.recv() == "message"
        there.close()
        processes._await_soon(here)
        with pytest.raises(EOFError):
            here.recv()
