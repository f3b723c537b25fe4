"""SGD takes the steps of its formula."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm import NanogradError, Parameter
from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.training import SGD


def test_steps_are_those_computed_by_hand() -> None:
    p = Parameter([1.0, 2.0])
    sgd = SGD([p], momentum=0.5)
    array = p.data
    sgd.step([np.array([1.0, 0.0], np.float32)], 0.1)  # u = (1, 0)
    sgd.step([np.array([1.0, 4.0], np.float32)], 0.1)  # u = (1.5, 4)
    np.testing.assert_allclose(p.data, [1 - 0.1 - 0.15, 2 - 0.4], rtol=1e-6)
    assert p.data is array


def test_without_momentum_it_is_plain_descent_with_weight_decay() -> None:
    p = Parameter(np.array([[2.0]]))
    for _ in range(2):
        before = p.data.copy()
        sgd = SGD([p], weight_decay=0.25)
        sgd.step([np.array([[3.0]])], 0.5)
        np.testing.assert_allclose(p.data, before - 0.5 * (3 + 0.25 * before), rtol=1e-15)


def test_a_quadratic_is_minimised() -> None:
    p = Parameter(np.array([3.0, -4.0]))
    sgd = SGD([p], momentum=0.9)
    for _ in range(300):
        p.grad = None
        (p * p * np.array([1.0, 10.0])).sum().backward()
        sgd.step([p.grad], 0.02)
    assert np.abs(p.data).max() < 1e-4


@pytest.mark.parametrize("setting", [{"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": -1.0}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=f"{name} must be a finite number"):
        SGD([Parameter([1.0])], **setting)


def test_gradients_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"shapes \[\(3,\)\]; expected one for each parameter, \[\(2,\)\]"):
        SGD([Parameter([1.0, 2.0])]).step([np.zeros(3)], 0.1)


def test_without_parameters_it_is_refused():
    with pytest.raises(NanogradError, match="SGD got no parameters"):
        SGD([])
