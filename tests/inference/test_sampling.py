"""Each sampling strategy, on distributions small enough to work out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanograd_llm.errors import ConfigError, NonFiniteError
from nanograd_llm.inference import Sampling

P = np.array([0.1, 0.4, 0.2, 0.3])
LOGITS = np.log(P)[None]


def probabilities(logits: Any = LOGITS, **strategy: Any) -> list[float]:
    return Sampling(**strategy).probabilities(np.asarray(logits))[0].tolist()


def test_without_a_strategy_it_is_the_softmax() -> None:
    assert probabilities() == pytest.approx(P)
    assert probabilities(LOGITS + 1e4) == pytest.approx(P)


def test_temperature_divides_the_logits() -> None:
    assert probabilities(temperature=0.5) == pytest.approx(P**2 / (P**2).sum())
    assert probabilities(temperature=2.0) == pytest.approx(P**0.5 / (P**0.5).sum())


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-3, 1e-300, 5e-324])
def test_near_temperature_zero_the_likeliest_token_has_all_probability(temperature: float) -> None:
    assert probabilities(temperature=temperature) == pytest.approx([0, 1, 0, 0], abs=1e-100)


def test_at_a_huge_temperature_all_tokens_are_equal() -> None:
    assert probabilities(temperature=1e300) == pytest.approx([0.25] * 4)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (dict(temperature=0), [0, 1, 0, 0]),
        (dict(top_k=1), [0, 1, 0, 0]),
        (dict(top_k=2), [0, 0.5, 0.5, 0]),
        (dict(top_p=0.4), [0, 0.5, 0.5, 0]),
    ],
)
def test_of_equal_logits_the_lower_id_ranks_first(strategy: dict[str, Any], expected: list[float]) -> None:
    assert probabilities([[0.0, 1.0, 1.0, 1.0]], **strategy) == pytest.approx(expected)


def test_of_very_many_equal_logits_the_lower_ids_rank_first() -> None:
    logits = np.arange(3000)[None] % 3 == 1
    assert np.flatnonzero(probabilities(logits, top_k=20)).tolist() == list(range(1, 60, 3))


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [0, 1, 0, 0]), (2, [0, 4 / 7, 0, 3 / 7]), (3, [0, 4 / 9, 2 / 9, 3 / 9]), (4, P), (99, P)]
)
def test_top_k_keeps_the_k_likeliest(k: int, expected: Any) -> None:
    assert probabilities(top_k=k) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1e-9, [0, 1, 0, 0]),
        (0.39, [0, 1, 0, 0]),
        (0.41, [0, 4 / 7, 0, 3 / 7]),
        (0.69, [0, 4 / 7, 0, 3 / 7]),
        (0.71, [0, 4 / 9, 2 / 9, 3 / 9]),
        (0.91, P),
        (1.0, P),
        (1, P),
    ],
)
def test_top_p_keeps_the_likeliest_up_to_the_one_that_reaches_p(p: float, expected: Any) -> None:
    assert probabilities(top_p=p) == pytest.approx(expected)


def test_a_token_that_reaches_p_exactly_is_the_last() -> None:
    assert probabilities(np.log([[0.5, 0.25, 0.125, 0.125]]), top_p=0.75) == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_top_k_acts_before_top_p() -> None:
    # of the best three, 4/9 + 3/9 reach 0.75; of all four, three would be needed
    assert probabilities(top_k=3, top_p=0.75) == pytest.approx([0, 4 / 7, 0, 3 / 7])


def test_temperature_acts_before_top_p() -> None:
    assert probabilities(temperature=0.25, top_p=0.7) == [0, 1, 0, 0]  # 0.4⁴ is 72 % of the sum of fourth powers


@pytest.mark.parametrize("strategy", [{"top_p": p} for p in (0.01, 0.5, 0.9, 0.999)] + [{"top_k": 300, "top_p": 0.8}])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_of_a_large_vocabulary_it_is_what_sorting_all_of_it_leaves(strategy: dict[str, Any], spread: float) -> None:
    logits = np.round(spread * np.random.default_rng(0).standard_normal((1, 9000)), 2)  # many are equal
    order = np.argsort(-logits[0], kind="stable")
    p = np.exp(logits[0] - logits.max())[order]
    p[strategy.get("top_k", len(p)) :] = 0
    p /= p.sum()
    p[np.cumsum(p) - p >= strategy["top_p"]] = 0
    expected = np.zeros(len(p))
    expected[order] = p / p.sum()
    found = Sampling(**strategy).probabilities(logits)[0]
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_each_row_is_ranked_by_itself() -> None:
    found = Sampling(top_k=2).probabilities(np.concatenate([LOGITS, LOGITS[:, ::-1]]))
    assert np.allclose(found, [[0, 4 / 7, 0, 3 / 7], [3 / 7, 0, 4 / 7, 0]])


@pytest.mark.parametrize("strategy", [{}, dict(temperature=0), dict(top_k=3), dict(top_p=0.999)])
def test_a_logit_of_minus_infinity_excludes_its_token(strategy: dict[str, Any]) -> None:
    found = probabilities([[-np.inf, 0.0, -np.inf, 0.0]], **strategy)
    assert found[0] == found[2] == 0
    assert sum(found) == pytest.approx(1)


@pytest.mark.parametrize("bad", [[0.0, np.nan], [0.0, np.inf], [-np.inf, -np.inf]])
@pytest.mark.parametrize("strategy", [{}, dict(temperature=0), dict(top_k=1), dict(top_p=0.5)])
def test_logits_that_are_not_finite_are_refused(bad: list[float], strategy: dict[str, Any]) -> None:
    with pytest.raises(NonFiniteError, match="the largest of 2 logits is .*; look for NaN in the weights"):
        Sampling(**strategy).probabilities(np.array([[1.0, 2.0], bad]))


def test_greedy_over_a_large_vocabulary_takes_little_memory() -> None:
    logits = np.zeros((2, 300_000), np.float32)  # a square matrix of this size would take 720 GB
    logits[1, 7] = 1
    assert Sampling(temperature=0).choose(logits, np.zeros(2)).tolist() == [0, 7]


# Drawing


def choose(uniform: float, logits: Any = LOGITS, **strategy: Any) -> int:
    return int(Sampling(**strategy).choose(np.asarray(logits), np.array([uniform]))[0])


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.09, 0), (0.11, 1), (0.49, 1), (0.51, 2), (0.69, 2), (0.71, 3), (1 - 2**-53, 3)]
)
def test_a_uniform_number_chooses_the_token_whose_share_it_falls_into(uniform: float, token: int) -> None:
    assert choose(uniform) == token


def test_evenly_spread_uniform_numbers_give_every_token_its_share() -> None:
    uniform = (np.arange(1000) + 0.5) / 1000
    drawn = Sampling().choose(np.repeat(LOGITS, 1000, axis=0), uniform)
    assert np.bincount(drawn).tolist() == [100, 400, 200, 300]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("strategy", [dict(temperature=0), dict(top_k=1), dict(top_p=1e-9), dict(temperature=1e-300)])
def test_an_excluded_token_is_never_chosen(uniform: float, strategy: dict[str, Any]) -> None:
    assert choose(uniform, **strategy) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_uniform_number_chooses_a_token_of_the_vocabulary(seed: int) -> None:
    logits = np.random.default_rng(seed).standard_normal((50, 97)) * 5
    assert Sampling().choose(logits, np.full(50, 1 - 2**-53)).max() < 97


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", bad) for bad in (-0.1, np.nan, np.inf, True, "1")),
        *(("top_k", bad) for bad in (0, -1, 1.5, True)),
        *(("top_p", bad) for bad in (0, -0.1, 1.1, np.nan, True)),
        *(("seed", bad) for bad in (-1, 1.5, True, 2**64)),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        Sampling(**{field: value})
