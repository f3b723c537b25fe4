"""How sharp the gradient check is, and how calm: mistakes that it misses, right gradients called wrong or in doubt.

Every trial draws an op, inputs and random numbers of its own. Right gradients are checked in all regions of
`samples.REGIONS`: all scales and offsets, mixed magnitudes, saturated, large products, nearly constant, at ties and
near them.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.bench.figures import Figure, Note, Report
from nanograd_llm.errors import NanogradError
from nanograd_llm.gradcheck.cases.samples import REGIONS, Case, differentiated, draw_cases, moved
from nanograd_llm.gradcheck.check.progress import Progress
from nanograd_llm.gradcheck.every_op import check_case
from nanograd_llm.gradcheck.mutation.mutants import gradients_of, scaled

TRIALS = 1_000
ALARMS = 100  # right gradients for each mistake
_POINTS = (("scale", (1e-3, 1.0, 1e3)), ("offset", (1e3, 1e6)))  # where the sharpness for each op is measured
_MISTAKES = tuple(10.0**-k for k in range(12, 0, -1))  # from small to large
MISTAKE = 1e-9
_VISIBLE = 1e-6  # a gradient below this cannot show a billionth of itself
_RESIDUE = 1e-12  # below this part of the largest entry a gradient is what rounding left of zero
_AT_ONCE = 25  # cases drawn of one op


def bench(against: bool, rounds: int | None = None, *, seed: int = 0) -> Iterator[Report]:
    """How many mistakes of a billionth are missed, how many right gradients are called wrong, and a table of sharpness.

    rounds: mistakes of each kind to plant, 1,000 if not given; a hundred times as many right gradients are checked.
    """
    trials = rounds or TRIALS
    one = sum(not catches_one(number, np.random.default_rng((seed, number))) for number in range(trials))
    yield Figure("detection", "one entry of 1,000 off by a billionth, missed", one, f"of {trials:,}")
    visible = (pair for pair in _drawn(seed + 1) if _is_visible(*pair))
    pairs = enumerate(itertools.islice(visible, trials))
    every = sum(not _catches_all(op, case, number) for number, (op, case) in pairs)
    yield Figure("detection", "all entries off by a billionth, missed", every, f"of {trials:,}")
    rng, found = np.random.default_rng(seed + 2), collections.Counter[str]()
    progress = Progress(ALARMS * trials, 0)
    for number, (op, case) in enumerate(itertools.islice(_drawn(seed + 2), ALARMS * trials)):
        progress.next(op.name)
        region = ("", *REGIONS)[number // 7 % (1 + len(REGIONS))]
        found[verdict(op, moved(op, case, region, rng) if region else case, number)] += 1
    progress.end()
    yield Figure("detection", "right gradients, called wrong", found["wrong"], f"of {ALARMS * trials:,}")
    yield Figure("detection", "right gradients, in doubt", found["cannot tell"], f"of {ALARMS * trials:,}")
    yield Note("detection", "the smallest relative mistake that is caught, at scales of the input and with an offset:")
    names = [f"{kind} {size:g}" for kind, sizes in _POINTS for size in sizes]
    yield Note("detection", f"{'op':24}" + "".join(f"{name:>13}" for name in names))
    for op in _package():
        yield Note("detection", f"{op.name:24}" + "".join(f"{cell:>13}" for cell in sharpness(op, seed)))


def verdict(op: Op, case: Case, number: int) -> str:
    """What the check says of a right gradient: "right", "wrong" or "cannot tell"."""
    report = check_case(op, case, seed=number, explain=False)
    if report.passed:
        return "right"
    return "wrong" if report.problems or any(f.verdict == "wrong" for f in report.findings) else "cannot tell"


def sharpness(op: Op, seed: int) -> Iterator[str]:
    """For each of the points the smallest mistake that is caught, "-" where no gradient is left or none is defined."""
    case = max(draw_cases(op, np.random.default_rng(seed), 12), key=lambda case: case.size)
    for kind, sizes in _POINTS:
        for size in sizes:
            there = _at(op, case, kind, size)
            found = (m for m in _MISTAKES if there and _is_visible(op, there) and _catches_all(op, there, seed, m))
            yield f"{next(found, 0):.0e}" if there and _is_visible(op, there) else "-"


def _at(op: Op, case: Case, kind: str, size: float) -> Case | None:
    """The case at this scale or offset; None where the op does not take it, or is not finite there."""
    inputs = list(case.inputs)
    for i, name in differentiated(op, case):
        if kind == "scale" or (op.domain.get(name, (0,))[0] >= 0 or name not in op.domain):
            inputs[i] = inputs[i] * size if kind == "scale" else inputs[i] + size
    found = dataclasses.replace(case, inputs=tuple(inputs))
    with np.errstate(all="ignore"):
        try:
            is_finite = np.isfinite(op(*inputs, **case.static)).all()
        except NanogradError:
            return None
    return found if is_finite else None


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


def _catches_all(op: Op, case: Case, number: int, mistake: float | None = None) -> bool:
    with scaled(op, 1 + (MISTAKE if mistake is None else mistake)).planted():
        return any(finding.verdict == "wrong" for finding in check_case(op, case, seed=number, explain=False).findings)


def _drawn(seed: int) -> Iterator[tuple[Op, Case]]:
    """Cases of all ops in turn, without end."""
    package = _package()
    for turn in itertools.count():
        rngs = [np.random.default_rng((seed, turn, place)) for place in range(len(package))]
        for of_each in itertools.zip_longest(*(draw_cases(op, rng, _AT_ONCE) for op, rng in zip(package, rngs))):
            yield from ((op, case) for op, case in zip(package, of_each) if case is not None)


def _package() -> list[Op]:
    return [op for op in registry.values() if op.__module__.startswith(ops.__name__)]


def _is_visible(op: Op, case: Case) -> bool:
    return any(np.abs(g).max(initial=0) > _VISIBLE for g in gradients_of(op, case))
