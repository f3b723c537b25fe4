"""Calls that an op must refuse, made from a good one: two sizes where its shape line has one name, and the like.

A wrong call that computes something is worse than a wrong rule: no check of numbers will see it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from nanograd_llm.autograd.op import Op
from nanograd_llm.errors import NanogradError
from nanograd_llm.gradcheck.cases.samples import Case, axis_names, differentiated


def bad_calls(op: Op, case: Case) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls like this one, each with one thing wrong: (what is wrong in words, inputs, static).

    An input with a size of its own where the line has one name for several; with fewer axes than the line names; with
    leading axes that do not broadcast; and each static argument given, unless it is a switch, as text. Where none of
    this can be wrong, a static argument that is not given as text, or else an input of text, but for ops of any number
    of inputs. A case without numbers in it gives none.
    """
    if not all(np.size(x) for x in case.inputs if x is not None):
        return
    names = op.inputs * len(case.inputs) if op.variadic else op.inputs
    places = [i for i, _ in differentiated(op, case)]
    named = axis_names(op, case)
    lead = {i: sum(isinstance(label, int) for label in named[i]) for i in places}
    made = 0
    for i in places:
        x, line = case.inputs[i], op.shape_line.inputs[names[i]]
        for axis, label in enumerate(named[i]):
            shared = sum(other.count(label) for other in named) > 1
            if isinstance(label, str) and shared and x.shape[axis] > 1:
                yield f"{names[i]} with {label} doubled", _with(case, {i: np.concatenate([x, x], axis)}), case.static
                made += 1
        required = sum(token not in ("*", "...", "?") and not token.endswith("?") for token in line)
        if required:
            few = np.ones((2,) * (required - 1))
            yield f"{names[i]} with {few.ndim} axes", _with(case, {i: few}), case.static
            made += 1
    starred = [i for i in places if op.shape_line.inputs[names[i]][:1] in (["*"], ["..."])]
    for i, j in itertools.combinations(starred, 2):
        apart = {k: np.ones((n, *case.inputs[k].shape[lead[k] :])) for k, n in ((i, 2), (j, 3))}
        yield f"{names[i]} and {names[j]} with leading axes 2 and 3", _with(case, apart), case.static
        made += 1
    for name, value in (case.static if made or case.static else op.static_defaults).items():
        if not isinstance(value, bool):
            yield f"{name} as text", case.inputs, {**case.static, name: "nonsense"}
            made += 1
    if not made and not op.variadic:  # of bare arrays of text alone, NumPy does make one
        for i in places:
            yield f"{names[i]} of text", _with(case, {i: np.full(case.inputs[i].shape, "a")}), case.static


def refusal_problems(op: Op, case: Case) -> tuple[list[str], int]:
    """Which of the bad calls made from this case the op does not refuse with a NanogradError; how many it does."""
    problems, refused = [], 0
    for words, inputs, static in bad_calls(op, case):
        try:
            op(*inputs, **static)
            problems.append(f"{words}: it gives a result")
        except NanogradError:
            refused += 1
        except Exception as error:
            problems.append(f"{words}: it raises {type(error).__name__}, not a NanogradError: {error}")
    return problems, refused


def _with(case: Case, changed: dict[int, np.ndarray]) -> tuple[Any, ...]:
    return tuple(changed.get(i, x) for i, x in enumerate(case.inputs))
