"""Workers run the same method on different tasks: threads and forked processes alike, and none is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, Parameter, Tensor, checked, no_grad
from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.errors import IndexRangeError, NanogradError, NonFiniteError
from nanograd_llm.nn import Module
from nanograd_llm.training import Trainer
from nanograd_llm.training.config import TrainConfig
from nanograd_llm.training.parallel import CAN_FORK
from nanograd_llm.training.team import Processes, Threads

pytestmark = [
    pytest.mark.skipif(not CAN_FORK, reason="processes are forked on Linux only"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),  # Python 3.12, where there are threads
]


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

    def break_(self, who: int) -> int:
        if who:
            raise ZeroDivisionError("deep down")
        return who

    def die(self, who: int) -> int:
        if who:
            os._exit(9)
        return who


def forked(owner: Owner, size: int = 3) -> Processes:
    team = Processes(size)
    team.prepare(owner, b"as it is")
    return team


def test_results_come_in_the_order_of_the_tasks() -> None:
    owner = Owner()
    for team in (Threads(3), forked(owner)):
        assert team.run(owner.times, [(1,), (2,), (3,)]) == [2, 4, 6]
        assert team.run(owner.times, [(5,)]) == [10]


def test_the_caller_is_the_first_worker_and_the_others_are_other_processes() -> None:
    owner = Owner()
    first, *others = forked(owner).run(owner.process, [(0,), (1,), (2,)])
    assert first == os.getpid()
    assert len({first, *others}) == 3


@pytest.mark.parametrize(
    ("method", "who", "message"),
    [("fail", 2, "worker 2 fails"), ("break_", 1, "ZeroDivisionError: deep down"), ("fail", 0, "worker 7 fails")],
)
def test_an_error_of_any_worker_is_raised_here_and_the_next_use_forks_anew(method: str, who: int, message: str) -> None:
    owner = Owner()
    team = forked(owner)
    tasks = [(0,), (0,), (0,)]
    tasks[who] = (who or 7,)
    with pytest.raises(NanogradError, match=message):
        team.run(getattr(owner, method), tasks)
    with pytest.raises(NanogradError, match="3 tasks for 1 workers; call prepare first"):
        team.run(owner.times, [(1,), (2,), (3,)])
    team.prepare(owner, b"as it is")
    assert team.run(owner.times, [(1,), (2,), (3,)]) == [2, 4, 6]


def test_a_worker_that_is_killed_is_told_and_the_next_use_forks_anew() -> None:
    owner = Owner()
    team = forked(owner)
    with pytest.raises(NanogradError, match="ended without an answer"):
        team.run(owner.die, [(0,), (1,), (0,)])
    team.prepare(owner, b"as it is")
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


def test_a_fork_of_the_leader_that_drops_its_team_leaves_the_workers_at_work() -> None:
    owner = Owner()
    teams = [forked(owner)]
    assert in_a_fork(teams.clear)
    assert teams[0].run(owner.times, [(1,), (2,), (3,)]) == [2, 4, 6]


def test_a_worker_killed_while_idle_is_told_where_it_should_answer() -> None:
    owner = Owner()
    team = forked(owner)
    os.kill(team.workers[0][0], signal.SIGKILL)
    os.waitid(os.P_PID, team.workers[0][0], os.WEXITED | os.WNOWAIT)
    with pytest.raises(NanogradError, match="ended without an answer"):
        team.run(owner.times, [(1,), (2,), (3,)])


def test_processes_are_forked_anew_when_the_fingerprint_changes_and_only_then() -> None:
    owner = Owner()
    team = forked(owner)
    before = team.run(owner.process, [(0,), (0,), (0,)])
    owner.factor = 10
    team.prepare(owner, b"as it is")
    assert team.run(owner.process, [(0,), (0,), (0,)]) == before
    team.prepare(owner, b"changed")
    assert team.run(owner.times, [(1,), (2,), (3,)]) == [10, 20, 30]


def test_processes_end_with_their_team() -> None:
    owner = Owner()
    team = forked(owner)
    _, *others = team.run(owner.process, [(0,), (0,), (0,)])
    del team
    for other in others:
        with pytest.raises(ProcessLookupError):
            os.kill(other, 0)


def test_an_interrupted_call_leaves_no_thread_running() -> None:
    class Interrupted(Exception): ...

    ended: list[int] = []

    def work(n: int) -> None:
        if n == 0:
            raise Interrupted
        threading.Event().wait(0.2)
        ended.append(n)

    with pytest.raises(Interrupted):
        Threads(2).run(work, [(0,), (1,)])
    assert ended == [1]


# Training in processes

SIZES = dict(vocab_size=11, context_length=6, n_layer=2, n_head=2, n_embd=8)


def trained(steps: int = 4, model: Module | None = None, **changes: Any) -> tuple[Trainer, list[float]]:
    model = model or GPT(GPTConfig(**SIZES, dropout=0.1))
    trainer = Trainer(model, TrainConfig(batch_size=6, steps=steps, **changes))
    rng = np.random.default_rng(0)
    return trainer, [trainer.step(*rng.integers(11, size=(2, 6, 6))) for _ in range(steps)]


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_train_to_the_same_bits_as_threads(threads: int, accumulate: int) -> None:
    results = [trained(processes=p, threads=threads, accumulate=accumulate) for p in (False, True)]
    (one, losses), (other, other_losses) = results
    assert losses == other_losses
    for name, array in one.state_dict().items():
        assert np.array_equal(array, other.state_dict()[name]), name


def test_a_run_in_a_process_that_is_killed_leaves_no_worker_behind() -> None:
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            owner = Owner()
            team = forked(owner)  # kept: it ends its workers itself when it goes
            workers = team.run(owner.process, [(0,), (0,), (0,)])[1:]
            os.write(writing, " ".join(map(str, workers)).encode())
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(process, 0)
    for worker in map(int, os.read(reading, 100).split()):
        for _ in range(500):
            with contextlib.suppress(OSError), open(f"/proc/{worker}/stat", encoding="ascii") as file:
                if file.read().split()[2] not in "ZX":
                    threading.Event().wait(0.01)
                    continue
            break
        else:
            pytest.fail(f"worker {worker} still runs")


def test_what_changes_in_a_model_between_steps_reaches_the_processes() -> None:
    def run(processes: bool) -> np.ndarray:
        trainer, _ = trained(processes=processes, threads=2)
        trainer.model.blocks[1].mlp.dropout.rate = 0.5
        trainer.model.wte.data[...] *= 2
        trainer.step(*np.ones((2, 6, 6), int))
        return trainer.optimizer.flat.data.copy()

    assert np.array_equal(run(False), run(True))


def test_a_loss_that_is_not_finite_is_explained_in_processes_too() -> None:
    trainer, _ = trained(processes=True, threads=2)
    trainer.model.blocks[1].mlp.up.bias.data[3] = np.inf
    with pytest.raises(NonFiniteError, match=r"in module blocks\.1\.mlp\.up"):
        trainer.step(*np.ones((2, 6, 6), int))


def test_an_error_in_a_process_is_the_error_it_would_be_here() -> None:
    trainer, _ = trained(processes=True, threads=2)
    tokens = np.zeros((2, 6, 6), int)
    tokens[0, 5] = 99
    with pytest.raises(IndexRangeError, match="token ids go from 0 to 10; got 0 to 99"):
        trainer.step(*tokens)
    trainer.step(*np.ones((2, 6, 6), int))


class Local(Module):
    """Its attribute is a function that pickle cannot name."""

    def __init__(self) -> None:
        self.model = GPT(GPTConfig(**SIZES))
        self.extra = lambda x: x

    def loss(self, tokens: Any, targets: Any) -> Tensor:
        return self.extra(self.model.loss(tokens, targets))


def test_a_model_whose_changes_would_go_unseen_is_trained_in_threads_and_that_is_said_once() -> None:
    with pytest.warns(UserWarning, match="training in threads, since processes could miss a change"):
        trainer = Trainer(Local(), TrainConfig(batch_size=6, threads=2, processes=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.step(*np.ones((2, 6, 6), int))


@pytest.mark.parametrize("processes", [False, True])
def test_a_trainer_in_a_fork_of_its_process_says_so_and_a_new_one_trains(processes: bool) -> None:
    trainer, _ = trained(processes=processes, threads=2)

    def work() -> None:
        with pytest.raises(NanogradError, match=f"workers belong to process {os.getppid()}"):
            trainer.step(*np.ones((2, 6, 6), int))
        trained(processes=processes, threads=2)

    assert in_a_fork(work)
    trainer.step(*np.ones((2, 6, 6), int))


def test_a_parameter_that_came_after_the_trainer_is_told_and_training_goes_on_in_threads() -> None:
    trainer, _ = trained(processes=True, threads=2)
    trainer.model.extra = Parameter(np.ones(3, np.float32))
    with pytest.warns(UserWarning, match="a parameter came to the model after its trainer was made"):
        trainer.step(*np.ones((2, 6, 6), int))


def test_a_hook_on_a_parameter_is_called_whoever_works() -> None:
    trainer, _ = trained(processes=True, threads=2)
    seen: list[int] = []
    trainer.model.wte.register_hook(lambda g: seen.append(1))
    with pytest.warns(UserWarning, match="a parameter has a hook"):
        trainer.step(*np.ones((2, 6, 6), int))
    assert len(seen) == 2


def test_checked_mode_works_in_the_process_that_asked() -> None:
    trainer, _ = trained(processes=True, threads=2)
    with checked():
        trainer.step(*np.ones((2, 6, 6), int))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_the_workers_at_work(number: int) -> None:
    owner = Owner()
    team = forked(owner, 2)
    _, worker = team.run(owner.process, [(0,), (0,)])
    os.kill(worker, number)
    assert team.run(owner.times, [(1,), (2,)]) == [2, 4]


class Scaled(Module):
    """Its loss depends on an attribute of its class."""

    factor = 1.0

    def __init__(self) -> None:
        self.model = GPT(GPTConfig(**SIZES))

    def loss(self, tokens: Any, targets: Any) -> Tensor:
        return self.model.loss(tokens, targets) * self.factor


def test_a_changed_attribute_of_a_class_reaches_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for processes in (False, True):
        monkeypatch.setattr(Scaled, "factor", 1.0)
        trainer, _ = trained(model=Scaled(), processes=processes, threads=2)
        monkeypatch.setattr(Scaled, "factor", 3.0)
        losses.append(trainer.step(*np.ones((2, 6, 6), int)))
    assert losses[0] == losses[1]


class Counting(Scaled):
    """Its loss writes into the model."""

    calls = 0

    def loss(self, tokens: Any, targets: Any) -> Tensor:
        self.calls += 1
        return super().loss(tokens, targets)


def test_a_model_that_its_loss_writes_into_is_trained_in_threads_and_that_is_said_once() -> None:
    model = Counting()
    with pytest.warns(UserWarning, match="the loss writes into the model, which other processes do not see") as said:
        trainer, _ = trained(steps=3, model=model, processes=True, threads=2)
    assert len(said) == 1
    before = model.calls
    trainer.step(*np.ones((2, 6, 6), int))
    assert model.calls == before + 2


def test_processes_forked_within_no_grad_record_all_the_same() -> None:
    model = GPT(GPTConfig(**SIZES))
    with no_grad():
        trainer = Trainer(model, TrainConfig(batch_size=6, threads=2, processes=True))
    trainer.step(*np.ones((2, 6, 6), int))


class Odd(NanogradError):
    """Pickle cannot make it again."""

    def __init__(self, what: str, where: str):
        super().__init__(what)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError("80 GiB"), MemoryError, "^80 GiB$"),
        (Odd("bad token", "row 3"), NanogradError, "^Odd: bad token$"),
        (ValueError("deep down"), NanogradError, "^ValueError: deep down$"),
    ],
)
def test_any_error_of_a_worker_can_be_told(error: Exception, kind: type[Exception], message: str) -> None:
    owner = Owner()

    def fail(who: int) -> int:
        if who:
            raise error
        return who

    owner.fail = fail  # type: ignore[method-assign]
    with pytest.raises(kind, match=message):
        forked(owner, 2).run(owner.fail, [(0,), (1,)])


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
            team = forked(owner, 2)
            assert team.workers[0][1].poll(0) is False
            assert team.run(owner.times, [(1,), (2,)]) == [2, 4]
    finally:
        stop.set()
        thread.join()


def test_a_process_that_cannot_be_forked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(NanogradError, match=r"cannot start a worker process: .*temporarily unavailable; use fewer"):
        forked(Owner())


@pytest.mark.parametrize("processes", [False, True])
def test_ctrl_c_amid_an_update_is_heard_once_the_step_is_whole(
    processes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = trained(processes=processes, threads=2)
    whole, _ = trained(processes=processes, threads=2)
    whole.step(*np.ones((2, 6, 6), int))
    update = trainer.optimizer.update

    def interrupted(*arguments: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        update(*arguments)

    monkeypatch.setattr(trainer.optimizer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.step(*np.ones((2, 6, 6), int))
    for name, array in whole.state_dict().items():
        assert np.array_equal(array, trainer.state_dict()[name]), name


def test_numbers_that_an_update_left_of_no_step_are_neither_saved_nor_trained_on() -> None:
    trainer, _ = trained(processes=True, threads=2)
    saved = {name: array.copy() for name, array in trainer.state_dict().items()}
    with pytest.raises(NanogradError, match="ended without an answer"):
        os.kill(trainer.workers.team.workers[0][0], signal.SIGKILL)
        trainer.workers.update(0.1, 1.0)
    assert not trainer.is_whole
    for use in (trainer.state_dict, lambda: trainer.step(*np.ones((2, 6, 6), int))):
        with pytest.raises(NanogradError, match="an update failed after step 4, so the numbers are of no step"):
            use()
    trainer.load_state_dict(saved)
    assert trainer.is_whole
