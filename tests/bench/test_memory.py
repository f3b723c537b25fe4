"""Memory is that of a whole family of processes, each page once, and a peak is not missed when it has passed."""

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
def test_what_was_held_counts_though_it_is_given_back(sizes):
    less, more = (memory.peak(functools.partial(holding, **s), 1) for s in ({}, sizes))
    assert more - less == pytest.approx(200 * MB, rel=0.1)


@needs_proc
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_shared_pages_count_once_and_a_workers_own_count():
    less, more = (memory.peak(functools.partial(Sharing, size), 2) for size in (4, 50 * MB))
    assert more - less == pytest.approx(3 * 50 * MB, rel=0.1)


def test_without_proc_a_note_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    (report,) = memory.bench(False)
    assert isinstance(report, Note) and "/proc" in report.note
