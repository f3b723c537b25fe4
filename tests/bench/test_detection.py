"""The figures of how sharp the check is: what is counted is what the words say."""

from __future__ import annotations

import pytest

from nanograd_llm.autograd.tensor import registry
from nanograd_llm.bench import detection as module
from nanograd_llm.bench.detection import figures
from nanograd_llm.errors import ConfigError


def test_the_figures_are_reached_in_a_small_sample():
    found = list(figures(trials=20, checks=52))
    assert [(figure.count, figure.trials, figure.reached) for figure in found] == [
        (20, 20, True),
        (20, 20, True),
        (0, 52, True),
    ]
    assert str(found[0]) == "one entry of 1,000 wrong by 1e-09 of itself, caught: 20 of 20"


def test_every_function_of_1000_numbers_has_so_many():
    for name, draw in module._THOUSAND:
        assert draw(module.np.random.default_rng(0))[0].size == 1000, name


def test_a_mistake_that_is_none_is_not_caught(monkeypatch):
    monkeypatch.setattr(module, "MISTAKE", 0.0)
    one, every, alarms = figures(trials=3, checks=1)
    assert (one.count, every.count) == (0, 0)
    assert not one.reached and not every.reached and alarms.reached


def test_a_wrong_rule_is_counted_among_the_gradients_that_are_not_called_right(monkeypatch):
    name = next(iter(registry))
    rule = registry[name].rule
    monkeypatch.setattr(registry[name], "rule", lambda *saved: 2 * rule(*saved))
    *_, alarms = figures(trials=1, checks=1)
    assert alarms.count == 1 and not alarms.reached


@pytest.mark.parametrize("setting", [{"trials": 0}, {"checks": 0}, {"seed": -1}])
def test_figures_of_nothing_are_refused(setting):
    with pytest.raises(ConfigError, match="must be an integer"):
        next(figures(**setting))
