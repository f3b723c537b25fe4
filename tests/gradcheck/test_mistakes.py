"""Wrong rules of many kinds: `gradcheck` at one ordinary point, or `check_op` on its own cases, notices each."""

from __future__ import annotations

import pytest
from mistakes import MISTAKES

from nanograd_llm.errors import NanogradError
from nanograd_llm.gradcheck import check_op, gradcheck

UNSEEN = {}  # by gradcheck at the one point: their mistake lies where it does not


def noticed_by_gradcheck(op, inputs):
    arguments = {"axis": 0} if op.name == "cumsum" else {"axis": -1, "ddof": 1} if op.name == "var" else {}
    try:
        return not gradcheck(op, *inputs, explain=False, **arguments).passed
    except NanogradError:
        return True


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_rule_is_noticed(name, monkeypatch):
    op, inputs, make = MISTAKES[name]
    monkeypatch.setattr(op, "rule", make(op.rule))
    assert noticed_by_gradcheck(op, inputs) or not check_op(op, order=1, cases=40).passed


@pytest.mark.parametrize("name", MISTAKES)
def test_the_right_rule_passes(name):
    op, inputs, _ = MISTAKES[name]
    assert not noticed_by_gradcheck(op, inputs)
