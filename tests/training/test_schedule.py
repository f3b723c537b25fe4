"""The learning rate rises, peaks and falls where it should."""

from __future__ import annotations

import math

import pytest

from nanograd_llm.training import scheduled
from nanograd_llm.training.schedule import SCHEDULES


def rate(progress: float, **changes: float) -> float:
    return scheduled("cosine", progress, **{**dict(peak=0.4, warmup=0.1, final=0.25), **changes})


@pytest.mark.parametrize("progress", [0.0, 0.01, 0.05, 0.09])
def test_it_rises_linearly(progress: float) -> None:
    assert rate(progress) == pytest.approx(0.4 * progress / 0.1)


def test_it_peaks_at_the_end_of_the_warm_up() -> None:
    assert rate(0.1) == 0.4
    assert rate(0.1 - 1e-9) == pytest.approx(0.4)


@pytest.mark.parametrize("progress", [0.1, 0.3, 0.55, 0.8, 1.0])
def test_it_falls_as_half_a_cosine(progress: float) -> None:
    angle = math.pi * (progress - 0.1) / 0.9
    assert rate(progress) == pytest.approx(0.1 + 0.3 * (1 + math.cos(angle)) / 2)


def test_it_ends_at_its_final_share_and_stays_there() -> None:
    assert rate(1.0) == pytest.approx(0.1)
    assert rate(7.0) == pytest.approx(0.1)
    assert rate(1.0, final=0.0) == pytest.approx(0.0)


def test_it_is_highest_at_the_peak() -> None:
    rates = [rate(i / 1000) for i in range(1001)]
    assert max(rates) == rates[100] == 0.4
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_without_warm_up_it_starts_at_the_peak() -> None:
    assert rate(0.0, warmup=0.0) == 0.4


def test_a_final_share_of_one_keeps_the_peak() -> None:
    assert {rate(p / 10, final=1.0) for p in range(1, 11)} == {0.4}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_after_the_end_of_a_run_the_rate_stays_that_of_the_last_step(schedule: str) -> None:
    rates = [scheduled(schedule, progress, peak=0.1, warmup=0.1, final=0.02) for progress in (1.0, 1.5, 3.0)]
    assert rates[0] == rates[1] == rates[2] > 0
