"""Whose rule is at fault: every op call on the tape, checked by itself at the numbers that it really met."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from nanograd_llm.autograd.modes import watched
from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.backend.arrays import is_array
from nanograd_llm.gradcheck.check.function import place_of
from nanograd_llm.gradcheck.check.kinks import IN_STEPS
from nanograd_llm.gradcheck.check.report import Culprit, Report

MOST = 3  # culprits to name


def culprits(record: Callable[[], Tensor], check: Callable[..., Report]) -> tuple[list[Culprit], int]:
    """The op calls on the tape of what `record` returns whose own rule `check` reports as wrong; how many there are.

    Calls nearest to the inputs come first. Of several calls by the same line only the first is named.
    """
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = []

    def note(node: Any, y: Any, arrays: Any, static: dict[str, Any], place: str) -> None:
        inputs = tuple(
            Tensor(a, requires_grad=source is not None) if is_array(a) and a.dtype.kind == "f" else a
            for a, source in zip(arrays, node.sources)
        )
        calls.append((node.op, inputs, static, place))

    with watched(note):
        record()
    found: dict[tuple[str, str], Culprit] = {}
    for op, inputs, static, place in calls:
        key = op.name, place.rpartition("called at")[2]
        if key in found or len(found) == MOST:
            continue
        with np.errstate(all="ignore"):
            report = check(functools.partial(op, **static), *inputs)
        wrong = [f for f in report.findings if f.verdict == "wrong" or report.problems and f.kinks]  # as ties are
        wrong = wrong or [f for f in report.findings if f.reason == IN_STEPS]
        if wrong:
            names = tuple(dict.fromkeys(finding.name for finding in wrong))
            rule = place_of(op.rule) or repr(op.rule)
            found[key] = Culprit(op.name, place, rule, names, wrong[0].pattern or wrong[0].reason)
    return list(found.values()), len(calls)
