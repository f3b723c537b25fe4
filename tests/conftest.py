"""Shared by all tests: the same random numbers in every run, and the helper modules beside the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# strict_cupy; oracle, fuzz, bombs; refusals; make_marian; passes; make_wordpiece
ROOMS = "backend", "files", "gradcheck", "pretrained", "see", "text"
sys.path += [str(Path(__file__).parent / room) for room in ROOMS]

settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts from the same seed in every test."""
    return np.random.default_rng(0)
