"""The tests here compare a GPU with the CPU; without CuPy and a GPU they are skipped (pytest -m gpu)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nanograd_llm.backend.arrays import library, use_device
from nanograd_llm.errors import DeviceError


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    """Skip where there is no GPU; after a test new Tensors are on the CPU again."""
    try:
        library("cuda")
    except DeviceError as error:
        pytest.skip(str(error))
    with use_device("cpu"):
        yield
