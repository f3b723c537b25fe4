"""Work divided over threads gives the results of one thread, also after a fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from nanograd_llm import Tensor, ops
from nanograd_llm.backend.threads import blas_threads, share_out

LARGE = 2**22  # enough numbers for a second thread


@pytest.mark.parametrize(("threads", "numbers", "parts"), [(1, LARGE, 1), (2, LARGE, 2), (3, LARGE, 3), (3, 100, 1)])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_work_is_divided_into_one_consecutive_part_for_each_thread(
    threads: int, numbers: int, parts: int, size: int
) -> None:
    with blas_threads(threads):
        shared = share_out(lambda part: list(range(size))[part], size, numbers)
    assert sum(shared, []) == list(range(size))
    assert len(shared) == min(parts, size)
    assert all(shared)


@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_in_any_part_is_raised_when_all_have_ended(fails: int) -> None:
    ended: list[int] = []

    def work(part: slice) -> None:
        if part.start == fails:
            raise ZeroDivisionError(f"part {fails}")
        ended.append(part.start)

    with blas_threads(2), pytest.raises(ZeroDivisionError, match=f"part {fails}"):
        share_out(work, 2, LARGE)
    assert ended == [1 - fails]


MASK = ops.sequence_mask([300, 170], 300)[:, None]


@pytest.mark.parametrize(
    "op",
    [
        ops.gelu,
        ops.softmax,
        lambda x: ops.attention(x, x, x, causal=True),
        lambda x: ops.attention(x, x, x, MASK, causal=False),
    ],
)
def test_a_large_op_gives_the_same_bits_on_one_and_two_threads(op: object) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 300, 64)).astype(np.float32)
    results = []
    for threads in (1, 2):
        with blas_threads(threads):
            t = Tensor(x, requires_grad=True)
            y = op(t)  # type: ignore[operator]
            ops.sum(y * y).backward()
            results.append((y.data, t.grad))
    for one, two in zip(*results):
        assert np.array_equal(one, two)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12, where there are threads
def test_a_forked_process_divides_work_over_its_own_threads() -> None:
    def total() -> int:
        with blas_threads(2):
            return sum(share_out(lambda part: part.stop - part.start, 10, LARGE))

    assert total() == 10  # the threads exist before the fork
    process = os.fork()
    if process == 0:
        signal.alarm(20)
        os._exit(total())
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 10


def test_the_limit_of_the_last_opened_block_applies() -> None:
    def allowed() -> int:
        return len(share_out(lambda part: part, 100, LARGE))

    with blas_threads(1):
        with blas_threads(2):
            with blas_threads(1):
                assert allowed() == 1
            assert allowed() == 2
        assert allowed() == 1


def test_the_callers_errstate_applies_in_every_part() -> None:
    with blas_threads(3), np.errstate(divide="raise", over="ignore"):
        kinds = share_out(lambda part: np.geterr(), 3, LARGE)
    assert all((kind["divide"], kind["over"]) == ("raise", "ignore") for kind in kinds)


def test_blas_limits_of_several_threads_restore_the_setting() -> None:
    def setting() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = setting()
    inside, outside = threading.Event(), threading.Event()

    def first() -> None:
        with blas_threads(1):
            inside.set()
            outside.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with blas_threads(2):
        outside.set()
        thread.join()  # the first opened block ends first
        assert setting() == [2] * len(before)
    assert setting() == before


def test_several_threads_may_use_the_package_for_the_first_time_at_once() -> None:
    """In a process of its own, where it is the first; each thread's losses are those that it has alone."""
    source = """
import sys, threading

found, start = {}, threading.Barrier(4)

def use(name):
    start.wait()
    import nanograd_llm as ng
    import numpy as np

    model = ng.GPT(ng.GPTConfig(vocab_size=11, context_length=8, n_layer=1, n_head=2, n_embd=8, dropout=0.1), seed=name)
    trainer = ng.training.Trainer(model, ng.training.TrainConfig(steps=20, workers=2, seed=name))
    tokens = np.random.default_rng(name).integers(11, size=(6, 8))
    found[name] = [trainer.step(tokens, tokens) for _ in range(20)]

sys.setswitchinterval(1e-5)
threads = [threading.Thread(target=use, args=(name,)) for name in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
together, start = dict(found), threading.Barrier(1)
for name in range(4):
    use(name)
print(found == together, len(found))
"""
    answer = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert answer.stdout == "True 4\n", answer.stderr


@pytest.mark.skipif(not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="needs a Linux with large pages")
def test_arrays_that_a_kept_heap_makes_lie_in_a_part_of_it_that_may_have_large_pages() -> None:
    code = """
import numpy as np
from nanograd_llm.backend.threads import keep_heap
if keep_heap():
    ones = np.ones(10**6)
    place = ones.ctypes.data + ones.nbytes // 2
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0] and ":" not in words[0]:
            begin, end = (int(number, 16) for number in words[0].split("-"))
        elif words[0] == "VmFlags:" and begin <= place < end:
            assert "hg" in words, line
            print("found")
else:
    print("found")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "found\n"
