"""A check keeps to its budget of seconds, whatever an evaluation takes: measured by a clock that evaluations move."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from nanograd_llm.gradcheck import gradcheck
from nanograd_llm.gradcheck.check import progress


@pytest.mark.parametrize("seconds", [0, 40, 400])
def test_single_entries_take_no_more_than_what_the_directions_of_all_inputs_leave(seconds, own_op, monkeypatch):
    now = [0.0]

    @own_op("y = x", "x̄ = ȳ")
    def slow(x):
        """The same; in complex numbers it takes 20 times as long.  x (*) -> y (*)"""
        now[0] += 0.2 if x.dtype.kind == "c" else 0.01
        return x + 0

    @slow.backward
    def slow_backward(dy):
        return dy

    def mixed(a, b, c, d):
        return slow(a * b * c * d)

    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    inputs = [np.random.default_rng(i).standard_normal(60) for i in range(4)]
    report = gradcheck(mixed, *inputs, seconds=seconds)
    whole = [finding.compared == "each entry compared" for finding in report.findings]
    assert report.passed and all(whole) == (seconds == 400) and any(whole) == (seconds >= 40), report
    assert now[0] <= (seconds or 10), report  # 10 for the directions, which are always compared


def test_moving_an_entry_by_differences_is_known_to_take_many_evaluations(monkeypatch):
    now = [0.0]

    def f(x):
        now[0] += 0.01
        if x.dtype.kind == "c":
            raise ValueError("real numbers only")
        return x * x

    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    x = np.random.default_rng(0).standard_normal(60)
    report = gradcheck(f, x, seconds=15)
    assert report.passed and (needs := re.search(r"give seconds=(\d+) for them", report.findings[0].compared)), report
    assert now[0] <= 15
    now[0] = 0.0
    whole = gradcheck(f, x, seconds=int(needs[1]))
    assert whole.findings[0].compared == "each entry compared" and now[0] <= int(needs[1]), whole
