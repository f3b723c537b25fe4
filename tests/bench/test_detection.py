"""The figures of how sharp the check is: what is counted is what the words say."""

from __future__ import annotations

import numpy as np

from nanograd_llm.autograd.tensor import registry
from nanograd_llm.bench import detection


def test_nothing_is_missed_or_doubted_in_a_small_sample():
    found = list(detection.bench(False, 6))
    assert [(figure.value, figure.unit) for figure in found] == [(0, "of 6"), (0, "of 6"), (0, "of 60")]
    assert all(figure.target.is_met(figure.value) for figure in found)
    assert " ".join(str(found[0]).split()) == "one entry of 1,000 off by a billionth, missed 0 of 6"


def test_every_function_of_1000_numbers_has_so_many_and_its_first_mistake_is_caught():
    for number, (name, draw) in enumerate(detection.THOUSAND):
        assert draw(np.random.default_rng(0))[0].size == 1000, name
        assert detection.catches_one(number, np.random.default_rng(0)), name


def test_a_mistake_that_is_none_is_missed(monkeypatch):
    monkeypatch.setattr(detection, "MISTAKE", 0.0)
    one, every, alarms = detection.bench(False, 2)
    assert (one.value, every.value, alarms.value) == (2, 2, 0)
    assert not one.target.is_met(one.value) and not every.target.is_met(every.value)


def test_a_wrong_rule_is_counted_among_the_gradients_that_are_not_called_right(monkeypatch):
    name = next(iter(registry))
    rule = registry[name].rule
    monkeypatch.setattr(registry[name], "rule", lambda *saved: 2 * rule(*saved))
    *_, alarms = detection.bench(False, 1)
    assert alarms.value >= 1 and not alarms.target.is_met(alarms.value)
