"""Hypothesis strategies for gradient tests: whole cases of an op, and the layouts and numbers they are made of.

    from hypothesis import given
    from nanograd_llm.gradcheck import assert_case, strategies

    @given(strategies.cases(my_op))
    def test_my_op(case):
        assert_case(my_op, case)

Hypothesis draws shapes and a seed, and the seed the numbers: as sharp as to draw each number, and far faster. It then
shrinks shapes and layouts. Shapes for `arrays` are in `hypothesis.extra.numpy`. Needs the extra "test".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nanograd_llm.autograd.op import Op
from nanograd_llm.errors import ConfigError
from nanograd_llm.gradcheck.cases import samples
from nanograd_llm.gradcheck.cases.samples import LAYOUTS, Case, Draw

try:
    from hypothesis import strategies as st
except ModuleNotFoundError:
    raise ConfigError("gradcheck.strategies needs Hypothesis, which is not installed; pip install hypothesis") from None

_SMOOTH = tuple(region for region in samples.REGIONS if "ties" not in region)
_SEEDS = st.integers(0, 2**32 - 1)


def layouts() -> st.SearchStrategy[str]:
    """Names of layouts, for `gradcheck.laid_out(x, layout)`."""
    return st.sampled_from(LAYOUTS)


@st.composite
def arrays(
    draw: Callable[..., Any],
    shape: tuple[int, ...] | st.SearchStrategy[tuple[int, ...]],
    *,
    domain: tuple[float, float] | None = None,
    layout: str | st.SearchStrategy[str] = "contiguous",
    kinks: bool = False,
) -> np.ndarray:
    """Float64 arrays of this shape, in this layout; several of a test are drawn apart from each other.

    domain: (low, high) for uniform numbers; without one they are drawn as `samples.Draw` says, away from kinks.
    kinks: where no domain is given, every fourth number lies at a kink instead: at 0 or ±1.

        @given(arrays((3, 4), layout=layouts()))
        def test_relu(x):
            assert_gradients(relu, x)
    """
    size = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    name = draw(layout) if isinstance(layout, st.SearchStrategy) else layout
    numbers = Draw(np.random.default_rng(draw(_SEEDS)), kinks=kinks)
    return samples.laid_out(numbers(*size) if domain is None else numbers.within(*domain, size), name)


@st.composite
def cases(draw: Callable[..., Any], op: Op, *, kinks: bool = False) -> Case:
    """Whole calls of an op, for `gradcheck.assert_case`:

        @given(strategies.cases(my_op))
        def test_second_order(case):
            assert_case(my_op, case, order=2)

    Shapes fit the op's shape line, numbers its domain; an op with samples gives those. Many cases are moved to other
    scales and offsets: see `samples.moved`. The case also says how inputs are laid out, which of them require a
    gradient, and which two are one Tensor.

    kinks: numbers lie where functions have kinks, so that a right gradient may be called "at a kink".
    Raises NanogradError for an op that needs samples and declares none.
    """
    choices = _Choices(draw)
    numbers = Draw(np.random.default_rng(draw(_SEEDS)), kinks=kinks)
    if op.samples is None:
        case = samples.case_from_shape_line(op, numbers, choices, left_out=draw(st.integers(0, 2)) == 1)
    else:
        case = draw(st.sampled_from(samples.cases_from_samples(op, numbers)))
    if draw(st.integers(0, 3)) == 1:
        case = samples.emptied(op, case, choices)
    if not kinks and (region := draw(st.sampled_from(("", "", *_SMOOTH)))):
        case = samples.moved(op, case, region, choices)
    return samples.varied(op, case, choices) if draw(st.booleans()) else case


class _Choices:
    """Hypothesis in the place of a NumPy generator: the same code draws a case, and Hypothesis can shrink it."""

    def __init__(self, draw: Callable[..., Any]):
        self._draw = draw

    def integers(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        low, high = (0, low) if high is None else (low, high)
        if size is None:
            return self._draw(st.integers(low, high - 1))
        return np.array([self._draw(st.integers(low, high - 1)) for _ in range(size)], dtype=np.int64)

    def random(self) -> float:
        return self._draw(st.integers(0, 9)) / 10
