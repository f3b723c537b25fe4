"""How sharp the gradient check is, and how calm: mistakes of a billionth that it misses, right gradients it doubts.

Every trial draws an op, inputs and random numbers of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.bench.figures import Figure
from nanograd_llm.gradcheck.cases.samples import Case, draw_cases
from nanograd_llm.gradcheck.every_op import check_case
from nanograd_llm.gradcheck.mutation.mutants import gradients_of, scaled

TRIALS = 1_000
ALARMS = 10  # right gradients for each mistake
MISTAKE = 1e-9
_VISIBLE = 1e-6  # a gradient below this cannot show a billionth of itself
_RESIDUE = 1e-12  # below this part of the largest entry a gradient is what rounding left of zero
_AT_ONCE = 25  # cases drawn of one op


def bench(against: bool, rounds: int | None = None, *, seed: int = 0) -> Iterator[Figure]:
    """How many mistakes of a billionth are missed, and how many right gradients are not called right.

    rounds: mistakes of each kind to plant, 1,000 if not given; ten times as many right gradients are checked.
    """
    trials = rounds or TRIALS
    one = sum(not catches_one(number, np.random.default_rng((seed, number))) for number in range(trials))
    yield Figure("detection", "one entry of 1,000 off by a billionth, missed", one, f"of {trials:,}")
    visible = (pair for pair in _drawn(seed + 1) if _is_visible(*pair))
    pairs = enumerate(itertools.islice(visible, trials))
    every = sum(not _catches_all(op, case, number) for number, (op, case) in pairs)
    yield Figure("detection", "all entries off by a billionth, missed", every, f"of {trials:,}")
    pairs = enumerate(itertools.islice(_drawn(seed + 2), ALARMS * trials))
    alarms = sum(not check_case(op, case, seed=number, explain=False).passed for number, (op, case) in pairs)
    yield Figure("detection", "right gradients, not called right", alarms, f"of {ALARMS * trials:,}")


def _normal(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    return lambda rng: tuple(rng.standard_normal(shape) for shape in shapes)


# Functions with 1,000 numbers in their first input.
THOUSAND: list[tuple[str, Callable[[np.random.Generator], tuple[Any, ...]]]] = [
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


def catches_one(number: int, rng: np.random.Generator) -> bool:
    """Is one entry of the first input's gradient, chosen by chance among those that are not zero, seen to be off?"""
    name, draw = THOUSAND[number % len(THOUSAND)]
    op, case = registry[name], Case(draw(rng), {"causal": True} if name == "attention" else {})
    right = gradients_of(op, case)[0]
    factor = np.ones(right.shape)
    factor.flat[rng.choice(np.flatnonzero(np.abs(right) > _RESIDUE * np.abs(right).max()))] += MISTAKE
    with scaled(op, factor, place=0).planted():
        return check_case(op, case, seed=number, explain=False).findings[0].verdict == "wrong"


def _catches_all(op: Op, case: Case, number: int) -> bool:
    with scaled(op, 1 + MISTAKE).planted():
        return any(finding.verdict == "wrong" for finding in check_case(op, case, seed=number, explain=False).findings)


def _drawn(seed: int) -> Iterator[tuple[Op, Case]]:
    """Cases of all ops in turn, without end."""
    package = [op for op in registry.values() if op.__module__.startswith(ops.__name__)]
    for turn in itertools.count():
        rngs = [np.random.default_rng((seed, turn, place)) for place in range(len(package))]
        for of_each in itertools.zip_longest(*(draw_cases(op, rng, _AT_ONCE) for op, rng in zip(package, rngs))):
            yield from ((op, case) for op, case in zip(package, of_each) if case is not None)


def _is_visible(op: Op, case: Case) -> bool:
    return any(np.abs(g).max(initial=0) > _VISIBLE for g in gradients_of(op, case))
