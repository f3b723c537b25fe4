"""Slopes from values alone: the complex step is exact, and a difference knows how far off it is."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm.gradcheck.check.comparison import line
from nanograd_llm.gradcheck.check.derivatives import (
    CONTRADICTED,
    DOUBTED,
    ComplexStepError,
    complex_step,
    derivative,
    differences,
)

EPS = np.finfo(np.float64).eps
SMOOTH = {  # φ and φ'(0), with several entries of different size
    "exp": (lambda t: np.exp(t * np.array([1.0, -2.0, 0.3])), np.array([1.0, -2.0, 0.3])),
    "sin": (lambda t: 1e6 * np.sin(1 + t * np.array([1.0, 1e-3])), 1e6 * np.cos(1) * np.array([1.0, 1e-3])),
    "cubic": (lambda t: (t + np.array([0.1, 3.0])) ** 3, 3 * np.array([0.1, 3.0]) ** 2),
    "log near its end": (lambda t: np.log(0.05 + t * np.array([1.0, -1.0])), 20 * np.array([1.0, -1.0])),
    "tanh": (lambda t: np.tanh(np.array([0.0, 4.0]) + t), 1 / np.cosh([0.0, 4.0]) ** 2),
    "constant": (lambda t: np.array([3.0]) + 0 * t, np.array([0.0])),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_the_complex_step_is_exact_to_rounding(name):
    line, slope = SMOOTH[name]
    np.testing.assert_allclose(complex_step(line).value, slope, rtol=16 * EPS, atol=0)


@pytest.mark.parametrize("name", SMOOTH)
def test_a_difference_is_accurate_and_its_error_estimate_holds(name):
    line, slope = SMOOTH[name]
    found = differences(line)
    assert (np.abs(found.value - slope) <= found.error).all()
    assert (found.error <= 1e-10 * np.abs(slope).max(initial=1)).all()


def test_error_estimates_hold_over_many_random_functions(rng):
    for _ in range(300):
        a, b, c = rng.standard_normal((3, 5))
        found = differences(lambda t, a=a, b=b, c=c: np.exp(a * t) * np.sin(b + 3 * c * t))
        slope = a * np.sin(b) + 3 * c * np.cos(b)
        assert (np.abs(found.value - slope) <= found.error).all()


def test_a_kink_nearby_makes_the_steps_smaller_than_the_way_to_it():
    found = differences(lambda t: np.abs(0.01 + t))
    assert abs(found.value - 1) <= found.error <= 1e-11
    assert 3 * found.step < 0.01


def test_an_infinity_that_stays_has_no_slope():
    found = differences(lambda t: np.array([-np.inf, 1 + t]))
    np.testing.assert_allclose(found.value, [0, 1], atol=1e-13)


def test_where_the_function_is_not_finite_no_slope_is_claimed():
    with np.errstate(invalid="ignore"):
        assert np.isinf(differences(lambda t: np.sqrt(np.asarray(-1 + t))).error)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (lambda t: np.floor(np.asarray(1.5 + t)) + t, "TypeError"),
        (lambda t: (np.ones(2) * (1 + t)).astype(np.float64) ** 2, "drops the imaginary part"),
        (lambda t: np.abs(np.ones(2) * (1 + t)) ** 2, "float64"),
        (lambda t: np.asarray(np.real(1 + t) * (1 + t)), "not analytic"),
    ],
)
def test_what_does_not_run_on_complex_numbers_is_differenced_and_says_why(line, why):
    found = derivative(line)
    assert found.method == "differences"
    assert why in found.why
    np.testing.assert_allclose(found.value, differences(line).value)


@pytest.mark.parametrize("name", SMOOTH)
def test_few_evaluations_confirm_a_complex_step(name):
    points = []
    found = derivative(lambda t: points.append(t) or np.asarray(SMOOTH[name][0](t)))
    assert found.method == "complex step" and len(points) <= 2 + 6 + 3 * 7  # beside the first, _nearest and circles


X = np.array([1.0, -2.0, 3.0])
PARTS = {  # not analytic, with their slopes along X by t
    "abs": (lambda x: np.abs(x).sum(), 6.0),
    "norm": (lambda x: np.linalg.norm(x), np.sqrt(14)),
    "var": (lambda x: np.var(x), 2 * np.var(X)),
    "log of a size": (lambda x: np.log(np.abs(x)).sum(), 3.0),
    "real": (lambda x: x.real.sum(), 2.0),
    "conjugate": (lambda x: np.conj(x).sum(), 2.0),
}


@pytest.mark.parametrize("part", [1.0, 1e-4, 1e-9])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_not_analytic_contradicts_a_complex_step_however_small_it_is(name, part):
    f, slope = PARTS[name]
    found = derivative(lambda t: np.sum((X * (1 + t)) ** 2) + part * f(X * (1 + t)))
    assert (found.method, found.why) == ("differences", CONTRADICTED)
    assert abs(found.value - (28 + part * slope)) <= found.error <= 1e-10


def test_wider_numbers_contradict_a_complex_step_by_a_part_that_rounding_of_float64_hides():
    def line(t):
        return np.asarray(np.sum((X * (1 + t)) ** 2) + np.longdouble(1e-13) * np.abs(X * (1 + t)).sum())

    assert derivative(line).method == "complex step"
    assert derivative(line, epsilon=float(np.finfo(np.longdouble).eps)).why == CONTRADICTED


def only_near(t, otherwise):
    """Half of the size of a number; farther than 0.01 to one side of it, something else."""
    z = np.asarray(1 + t)
    return otherwise(z) if z.real > 1.01 else z + 0.5 * np.abs(z)


def refuses(z):
    if np.iscomplexobj(z):
        raise ValueError("too far")
    return np.nan


@pytest.mark.parametrize("otherwise", [lambda z: np.inf + 0 * z, refuses], ids=["infinite", "refused"])
def test_a_circle_that_leaves_the_domain_of_a_function_confirms_nothing(otherwise):
    with np.errstate(all="ignore"):
        found = derivative(lambda t: np.nan if abs(t) > 0.1 else only_near(t, otherwise))
    assert (found.method, found.why) == ("differences", CONTRADICTED)


def test_infinities_on_both_sides_of_a_number_are_not_flat():
    with np.errstate(all="ignore"):
        found = differences(lambda t: np.where(np.abs(t) > 1e-3, np.inf, (1 + np.asarray(t)) ** 2))
    assert abs(found.value - 2) <= found.error <= 1e-9


def test_a_bump_that_every_difference_steps_over_leaves_a_doubt():
    with np.errstate(all="ignore"):
        found = derivative(lambda t: np.array([1e10 * t * np.exp(-((1e10 * t) ** 2))]) + t)
    assert (found.method, found.why) == ("differences", DOUBTED)


def test_complex_step_refuses_a_real_result():
    with pytest.raises(ComplexStepError, match="float64"):
        complex_step(lambda t: np.abs(np.asarray(1 + t)))


def test_derivative_takes_the_complex_step_where_it_is_right():
    found = derivative(lambda t: np.exp(np.asarray(t)))
    assert (found.method, found.step, found.why) == ("complex step", 1e-30, "")


@pytest.mark.parametrize("size", [3, 2**20])  # of the larger results only the last few are kept
def test_no_point_of_a_line_is_evaluated_twice_on_a_ladder(size):
    points = []

    class Counted:
        def evaluate(self, values):
            points.append(float(values[0]))
            return np.full(size, np.exp(values[0]))

    found = differences(line(Counted(), [np.zeros(())], 0, np.ones(())), enough=1e-7)
    assert abs(found.value[0] - 1) < 1e-6
    assert len(points) == len(set(points)) > 6


def test_a_function_that_is_flat_except_nearby_is_not_taken_for_flat():
    found = differences(lambda t: np.array([1e5 * t * np.exp(-((1e5 * t) ** 2))]))
    assert abs(found.value[0] - 1e5) <= found.error[0]


AWAY = 2e-7  # where it bends, as a part of its input: all but the shortest steps meet that


def test_short_steps_outvote_longer_ones_that_agree_that_the_function_is_flat():
    found = differences(lambda t: np.abs(np.array([AWAY, -AWAY]) + t))
    assert (np.abs(found.value - [1, -1]) <= found.error).all() and (found.error <= 1e-5).all()


def test_a_complex_step_that_only_long_steps_confirm_is_not_taken():
    found = derivative(lambda t: np.abs(AWAY + np.asarray(t)) + 0 * t)
    assert (found.method, found.why) == ("differences", CONTRADICTED)
    assert abs(found.value - 1) <= found.error <= 1e-5


def test_rounding_inside_a_function_contradicts_no_complex_step():
    found = derivative(lambda t: (1e7 + np.array([1.0, 2.0]) * (1 + t)) - 1e7)
    assert found.method == "complex step"
