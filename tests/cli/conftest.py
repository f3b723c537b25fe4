"""Nothing is piped into the commands, unless a test does."""

from __future__ import annotations

import io

import pytest


@pytest.fixture(autouse=True)
def nothing_is_piped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
