"""The figures of how sharp the check is: what is counted is what the words say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nanograd_llm import ops
from nanograd_llm.bench import detection
from nanograd_llm.bench.figures import Figure
from nanograd_llm.gradcheck import Case


def test_nothing_is_missed_or_doubted_in_a_small_sample_and_a_table_follows(monkeypatch):
    reports = detection.bench(False, 1)
    found = list(itertools.islice(reports, 4))
    assert all(isinstance(figure, Figure) for figure in found)
    assert [(figure.value, figure.unit) for figure in found[:3]] == [(0, "of 1"), (0, "of 1"), (0, "of 100")]
    assert all(figure.target.is_met(figure.value) for figure in found[:3]) and found[3].value <= 1
    monkeypatch.setattr(detection, "_package", lambda: [ops.exp, ops.softmax])  # of the 58 rows of the table
    assert [report.note.split()[0] for report in reports] == ["the", "op", "exp", "softmax"]
    assert " ".join(str(found[0]).split()) == "one entry of 1,000 off by a billionth, missed 0 of 1"


def test_every_function_of_1000_numbers_has_so_many_and_its_first_mistake_is_caught():
    for number, (name, draw) in enumerate(detection.THOUSAND):
        assert draw(np.random.default_rng(0))[0].size == 1000, name
        assert detection.catches_one(number, np.random.default_rng(0)), name


def test_a_mistake_that_is_none_is_missed(monkeypatch):
    monkeypatch.setattr(detection, "MISTAKE", 0.0)
    one, every = itertools.islice(detection.bench(False, 2), 2)
    assert (one.value, every.value) == (2, 2)
    assert not one.target.is_met(one.value) and not every.target.is_met(every.value)


def test_a_wrong_rule_is_counted_among_the_gradients_that_are_called_wrong(monkeypatch):
    rule = ops.exp.rule
    case = Case((np.array([0.3, -0.7]),))
    assert detection.verdict(ops.exp, case, 0) == "right"
    monkeypatch.setattr(ops.exp, "rule", lambda *saved: 2 * rule(*saved))
    assert detection.verdict(ops.exp, case, 0) == "wrong"


@pytest.mark.parametrize("op", [ops.exp, ops.layernorm, ops.log], ids=lambda op: op.name)
def test_a_mistake_of_a_millionth_is_caught_at_every_scale_and_offset_where_a_gradient_is_left(op):
    cells = [cell for cell in detection.sharpness(op, 0) if cell != "-"]
    assert len(cells) >= 2 and all(0 < float(cell) <= 1e-6 for cell in cells)
