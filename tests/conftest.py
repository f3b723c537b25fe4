"""Shared by all tests: the same random numbers in every run, and the helper modules beside the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# strict_cupy; oracle, fuzz, bombs; refusals; make_marian; disk; passes; make_wordpiece
ROOMS = "backend", "files", "gradcheck", "pretrained", "runs", "see", "text"
sys.path += [str(Path(__file__).parent / room) for room in ROOMS]

settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts from the same seed in every test."""
    return np.random.default_rng(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many bad inputs and kill points the tests of this call covered.

    A test records how many; one whose name says that something is refused counts once for each parameter.
    """
    counts = {"bad inputs": 0, "kill points": 0}
    for report in terminalreporter.stats.get("passed", []):
        recorded = dict(report.user_properties)
        for what in counts:
            counts[what] += recorded.get(what, 0)
        counts["bad inputs"] += "bad inputs" not in recorded and "refused" in report.nodeid
    if any(counts.values()):
        terminalreporter.write_line(
            f"covered {counts['bad inputs']:,} bad inputs, {counts['kill points']:,} kill points"
        )
