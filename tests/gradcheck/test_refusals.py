"""Calls that make no sense are made from good ones, and an op that answers one is found."""

from __future__ import annotations

import numpy as np
import pytest
from refusals import bad_calls, refusal_problems

from nanograd_llm import ops
from nanograd_llm.gradcheck import Case


def ones(*shape):
    return np.ones(shape)


@pytest.mark.parametrize(
    ("op", "case", "wanted"),
    [
        (ops.matmul, Case((ones(2, 3), ones(3, 4))), {"a with k doubled", "b with k doubled"}),
        (ops.add, Case((ones(2), ones(2))), {"a and b with leading axes 2 and 3"}),
        (ops.softmax, Case((ones(2, 3),), {"axis": -1}), {"axis as text"}),
        (ops.softmax, Case((ones(2, 3),)), {"axis as text"}),
        (ops.exp, Case((ones(2),)), {"x of text"}),
        (ops.layernorm, Case((ones(2, 3), ones(3), ones(3))), {"w with C doubled", "b with 0 axes"}),
        (ops.exp, Case((ones(0),)), set()),
    ],
)
def test_each_bad_call_has_one_thing_wrong(op, case, wanted):
    words = {words for words, _, _ in bad_calls(op, case)}
    assert wanted <= words and (wanted or not words)
    assert refusal_problems(op, case) == ([], len(words))


def test_an_op_that_answers_a_bad_call_or_raises_what_is_not_ours_is_found(monkeypatch):
    case = Case((ones(2), ones(2)))
    monkeypatch.setattr(ops.add, "forward", lambda a, b: np.zeros(2))
    assert refusal_problems(ops.add, case) == (["a and b with leading axes 2 and 3: it gives a result"], 0)

    def raises(a, b):
        raise RuntimeError("no")

    monkeypatch.setattr(ops.add, "forward", raises)
    assert "RuntimeError, not a NanogradError" in refusal_problems(ops.add, case)[0][0]
