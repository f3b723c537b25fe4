"""Work shared out over threads is the work of one, and a fork does not break it."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from nanograd_llm import Tensor, ops
from nanograd_llm.backend.threads import blas_threads, share_out

LARGE = 2**22  # numbers worth a second thread


@pytest.mark.parametrize(("threads", "numbers", "parts"), [(1, LARGE, 1), (2, LARGE, 2), (3, LARGE, 3), (3, 100, 1)])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_parts_follow_each_other_and_are_as_many_as_threads(
    threads: int, numbers: int, parts: int, size: int
) -> None:
    with blas_threads(threads):
        shared = share_out(lambda part: list(range(size))[part], size, numbers)
    assert sum(shared, []) == list(range(size))
    assert len(shared) == min(parts, size)
    assert all(shared)


@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_in_any_part_is_raised_here_once_all_have_ended(fails: int) -> None:
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
def test_a_large_op_on_two_threads_has_the_bits_of_one(op: object) -> None:
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
def test_a_fork_shares_out_over_threads_of_its_own() -> None:
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


def test_of_blocks_that_are_open_the_last_one_opened_counts() -> None:
    def allowed() -> int:
        return len(share_out(lambda part: part, 100, LARGE))

    with blas_threads(1):
        with blas_threads(2):
            with blas_threads(1):
                assert allowed() == 1
            assert allowed() == 2
        assert allowed() == 1


def test_warnings_are_as_the_caller_has_them_in_every_part() -> None:
    with blas_threads(3), np.errstate(divide="raise", over="ignore"):
        kinds = share_out(lambda part: np.geterr(), 3, LARGE)
    assert all((kind["divide"], kind["over"]) == ("raise", "ignore") for kind in kinds)
