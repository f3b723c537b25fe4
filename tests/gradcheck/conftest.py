"""What tests of the gradient check share: ops of their own."""

from __future__ import annotations

import pytest

from nanograd_llm.autograd.op import op
from nanograd_llm.autograd.tensor import registry


@pytest.fixture
def own_op():
    """Declare ops that are gone from the registry afterwards."""
    before = dict(registry)
    yield op
    registry.clear()
    registry.update(before)
