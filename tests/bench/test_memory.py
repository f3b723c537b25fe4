"""Memory is that of a process and its workers, with each page counted once, and a short peak is not missed."""

from __future__ import annotations

import functools
import multiprocessing

import pytest
from makers import Sharing, holding

from nanograd_llm.bench import memory
from nanograd_llm.bench.figures import Note

MB = 10**6
needs_proc = pytest.mark.skipif(not memory.can_measure(), reason="needs Linux's /proc")


@needs_proc
@pytest.mark.parametrize("sizes", [{"kept": 200 * MB}, {"passing": 200 * MB}])
def test_memory_that_is_freed_again_counts_for_the_peak(sizes):
    less, more = (memory.peak(functools.partial(holding, **s), 1) for s in ({}, sizes))
    assert more - less == pytest.approx(200 * MB, rel=0.1)


@needs_proc
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_shared_pages_count_once_and_each_workers_own_pages_count():
    less, more = (memory.peak(functools.partial(Sharing, size), 2) for size in (4, 50 * MB))
    assert more - less == pytest.approx(3 * 50 * MB, rel=0.1)


def test_without_proc_a_note_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    (report,) = memory.bench(False)
    assert isinstance(report, Note) and "/proc" in report.note
