"""How sharp the check is, and how calm: mistakes of one part in a billion that it catches, right gradients it doubts.

Every trial draws an op, inputs and random numbers of its own.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.tensor import Tensor, grad, registry
from nanograd_llm.gradcheck.cases.samples import Case, draw_cases
from nanograd_llm.gradcheck.check.check import verdicts
from nanograd_llm.gradcheck.check.report import Report
from nanograd_llm.settings import require_int, require_seed

TRIALS, CHECKS = 1_000, 10_000
MISTAKE = 1e-9
_VISIBLE = 1e-6  # a gradient below this cannot show a billionth of itself
_RESIDUE = 1e-12  # below this part of the largest entry a gradient is what rounding left of zero
_AT_ONCE = 25  # cases drawn of one op


@dataclass(frozen=True)
class Figure:
    """`count` of `trials` trials; what was tried in words."""

    what: str
    count: int
    trials: int
    wanted: int

    @property
    def reached(self) -> bool:
        return self.count == self.wanted

    def __str__(self) -> str:
        return f"{self.what}: {self.count:,} of {self.trials:,}"


def figures(*, trials: int = TRIALS, checks: int = CHECKS, seed: int = 0) -> Iterator[Figure]:
    """One figure after the other: minutes in all.

    Raises ConfigError unless the numbers are integers, of at least 1.
    """
    require_int("trials", trials, 1)
    require_int("checks", checks, 1)
    require_seed(seed)
    one = sum(_catches_one(number, np.random.default_rng((seed, number))) for number in range(trials))
    yield Figure(f"one entry of 1,000 wrong by {MISTAKE:.0e} of itself, caught", one, trials, trials)
    visible = (pair for pair in _drawn(seed + 1) if _is_visible(*pair))
    every = sum(_catches_all(op, case, number) for number, (op, case) in enumerate(itertools.islice(visible, trials)))
    yield Figure(f"all entries wrong by {MISTAKE:.0e} of themselves, caught", every, trials, trials)
    pairs = enumerate(itertools.islice(_drawn(seed + 2), checks))
    alarms = sum(not _report(op, case, number).passed for number, (op, case) in pairs)
    yield Figure("right gradients, over all ops, that were not called right", alarms, checks, 0)


def _normal(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    return lambda rng: tuple(rng.standard_normal(shape) for shape in shapes)


# Functions with 1,000 numbers in their first input.
_THOUSAND: list[tuple[str, Callable[[np.random.Generator], tuple[Any, ...]]]] = [
    ("exp", _normal((1000,))),
    ("sin", _normal((1000,))),
    ("tanh", _normal((10, 100))),
    ("gelu", _normal((10, 100))),
    ("silu", _normal((1000,))),
    ("add", _normal((1000,), (1000,))),
    ("multiply", _normal((1000,), (1000,))),
    ("divide", lambda rng: (rng.standard_normal(1000), rng.uniform(0.5, 2, 1000))),
    ("sum", _normal((10, 100))),
    ("mean", _normal((1000,))),
    ("matmul", _normal((20, 50), (50, 8))),
    ("linear", _normal((20, 50), (50, 8), (8,))),
    ("softmax", _normal((20, 50))),
    ("log_softmax", _normal((20, 50))),
    ("logsumexp", _normal((20, 50))),
    ("layernorm", _normal((20, 50), (50,), (50,))),
    ("rmsnorm", _normal((20, 50), (50,))),
    ("cross_entropy", lambda rng: (rng.standard_normal((20, 50)), rng.integers(0, 50, 20))),
    ("embedding", lambda rng: (rng.standard_normal((50, 20)), rng.permutation(50))),
    ("attention", _normal((2, 50, 10), (2, 50, 10), (2, 50, 10))),
]


def _catches_one(number: int, rng: np.random.Generator) -> bool:
    """Is one entry of the first input's gradient, chosen by chance among those that are not zero, seen to be off?

    What rounding leaves of a zero is none to choose: the query that sees one key only has a gradient of 1e-16.
    """
    name, draw = _THOUSAND[number % len(_THOUSAND)]
    op, case = registry[name], Case(draw(rng), {"causal": True} if name == "attention" else {})
    right = _gradients(op, case)[0]
    factor = np.ones(right.shape)
    factor.flat[rng.choice(np.flatnonzero(np.abs(right) > _RESIDUE * np.abs(right).max()))] += MISTAKE
    with _multiplied(op, factor):
        return _report(op, case, number).findings[0].verdict == "wrong"


def _catches_all(op: Op, case: Case, number: int) -> bool:
    """Is it seen that all gradients of the op are off?"""
    with _multiplied(op, 1 + MISTAKE, others=1 + MISTAKE):
        return any(finding.verdict == "wrong" for finding in _report(op, case, number).findings)


@contextlib.contextmanager
def _multiplied(op: Op, first: Any, others: float = 1.0) -> Iterator[None]:
    """Inside this block the op's first gradient is multiplied by something, and the others by something else."""
    rule = op.rule
    assert rule is not None

    @functools.wraps(rule)
    def mistaken(*saved: Any) -> tuple[Any, ...]:
        gradients = rule(*saved)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        factors = itertools.chain([first], itertools.repeat(others))
        return tuple(None if g is None else g * factor for g, factor in zip(gradients, factors))

    op.rule = mistaken
    try:
        yield
    finally:
        op.rule = rule


def _drawn(seed: int) -> Iterator[tuple[Op, Case]]:
    """Cases of all ops in turn, without end."""
    package = [op for op in registry.values() if op.__module__.startswith(ops.__name__)]
    for turn in itertools.count():
        many = [
            list(draw_cases(op, np.random.default_rng((seed, turn, place)), _AT_ONCE))
            for place, op in enumerate(package)
        ]
        for of_each in itertools.zip_longest(*many):
            yield from ((op, case) for op, case in zip(package, of_each) if case is not None)


def _report(op: Op, case: Case, seed: int) -> Report:
    f, arrays = case.on(op)
    return verdicts(f, *arrays, seed=seed)


def _gradients(op: Op, case: Case) -> list[np.ndarray]:
    """The gradient of each input, for a random cotangent; none where the call has none."""
    f, arrays = case.on(op)
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    y = f(*leaves)
    if not y.requires_grad:
        return []
    return grad(y, leaves, np.random.default_rng(0).uniform(0.5, 1.5, y.shape).astype(y.dtype))


def _is_visible(op: Op, case: Case) -> bool:
    return any(np.abs(g).max(initial=0) > _VISIBLE for g in _gradients(op, case))
