"""Removes the ops that a test has declared, so that tests over the whole registry do not include them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nanograd_llm.autograd.tensor import registry


@pytest.fixture(autouse=True)
def registry_as_before() -> Iterator[None]:
    before = dict(registry)
    yield
    registry.clear()
    registry.update(before)
