"""Worked examples: forward and backward results that can be computed with pencil and paper.

The docstrings of the ops walk through most of them. Each is held against the fast op and against its definition.
Logits are logarithms of small whole numbers, so probabilities are fractions.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import Tensor, grad
from nanograd_llm.ops import composed

HALF, THIRD, QUARTER, SIXTH = (Fraction(1, n) for n in (2, 3, 4, 6))
LOG2, LOG3 = np.log(2), np.log(3)


def leaf(values):
    return Tensor(np.array(values, dtype=np.float64), requires_grad=True)


def comes_to(found, expected):
    """Equal up to rounding."""
    found = found.data if isinstance(found, Tensor) else found
    expected = np.array(expected, dtype=np.float64)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() <= 2e-15 * np.abs(expected).max()


def both(name):
    """The fused op and the composition that it equals."""
    forms = [getattr(ops, name), getattr(composed, name)]
    return pytest.mark.parametrize("form", forms, ids=["fast", "definition"])


@both("softmax")
def test_softmax_of_log_1_log_2_log_3_is_1_2_3_sixths(form):
    x = leaf([0, LOG2, LOG3])
    y = form(x)
    assert comes_to(y, [SIXTH, 2 * SIXTH, 3 * SIXTH])
    # Σ ȳ*y = 6/6 = 1, so x̄ = y*(ȳ - 1)
    assert comes_to(grad(y, x, [6.0, 0.0, 0.0]), [5 * SIXTH, -2 * SIXTH, -3 * SIXTH])


@both("softmax")
def test_a_cotangent_that_is_the_same_everywhere_leaves_softmax_no_gradient(form):
    x = leaf([0, LOG2, LOG3])
    assert np.abs(grad(form(x), x, [6.0, 6.0, 6.0])).max() <= 6 * 2e-15


@both("layernorm")
def test_layernorm_of_1_and_3_is_minus_1_and_1_with_zero_gradient(form):
    x, w, b = leaf([1, 3]), leaf([2, 5]), leaf([10, 20])
    y = form(x, w, b, eps=0)  # mean 2, variance ((-1)² + 1²)/2 = 1
    assert comes_to(y, [10 - 2, 20 + 5])
    dx, dw, db = grad(y, [x, w, b], [7.0, 11.0])
    assert comes_to(dw, [-7, 11]) and comes_to(db, [7, 11])
    assert np.abs(dx).max() <= 55 * 2e-15  # any two numbers are normalised to -1 and 1


@both("layernorm")
def test_layernorm_of_0_0_4_4_gives_the_gradient_2_minus_2_1_minus_1(form):
    x, w, b = leaf([0, 0, 4, 4]), leaf([3, 1, 5, 1]), leaf([10, 10, 10, 10])
    y = form(x, w, b, eps=0)  # mean 2, variance 4, r = 1/2, x̂ = (-1, -1, 1, 1)
    assert comes_to(y, [10 - 3, 10 - 1, 10 + 5, 10 + 1])
    dx, dw, db = grad(y, [x, w, b], [3.0, 1.0, 1.0, 1.0])
    # g = ȳ*w = (9, 1, 5, 1), ⟨g⟩ = 16/4 = 4, ⟨g*x̂⟩ = (-9 - 1 + 5 + 1)/4 = -1, x̄ = r*(g - 4 + x̂)
    assert comes_to(dx, [HALF * (9 - 4 - 1), HALF * (1 - 4 - 1), HALF * (5 - 4 + 1), HALF * (1 - 4 + 1)])
    assert comes_to(dw, [-3, -1, 1, 1]) and comes_to(db, [3, 1, 1, 1])


@both("cross_entropy")
def test_cross_entropy_of_probabilities_1_2_and_1_3_is_half_the_log_of_6(form):
    # the last row is ignored, also in the mean
    logits = leaf([[0, LOG2, LOG3], [0, 0, 0], [5, 6, 7]])
    loss = form(logits, np.array([2, 0, -100]))
    assert comes_to(loss, HALF * (LOG2 + LOG3))  # -log(3/6) and -log(1/3)
    assert comes_to(
        grad(loss, logits),
        [
            [HALF * SIXTH, HALF * 2 * SIXTH, HALF * (3 * SIXTH - 1)],
            [HALF * (THIRD - 1), HALF * THIRD, HALF * THIRD],
            [0, 0, 0],
        ],
    )


@both("attention")
def test_attention_with_weights_1_4_and_3_4(form):
    q, k, v = leaf([[5], [1]]), leaf([[0], [LOG3]]), leaf([[4], [8]])
    y = form(q, k, v, causal=True)
    assert comes_to(y, [[4], [QUARTER * 4 + 3 * QUARTER * 8]])
    dq, dk, dv = grad(y, [q, k, v], [[2.0], [1.0]])
    # the first query sees one key, so q̄ = 0. In the second row p̄ = (4, 8), Σ p̄*p = 7, s̄ = p*(p̄ - 7)
    s = [QUARTER * (4 - 7), 3 * QUARTER * (8 - 7)]
    assert comes_to(dv, [[2 + QUARTER], [3 * QUARTER]])
    assert comes_to(dk, [[s[0] * 1], [s[1] * 1]])
    assert comes_to(dq, [[0], [s[1] * LOG3]])


@both("attention")
def test_attention_divides_its_scores_by_the_root_of_the_width(form):
    # four channels: 2*log 3/√4 = log 3, the same weights as above
    q, k, v = leaf([[5, 0, 0, 0], [2, 0, 0, 0]]), leaf([[0, 0, 0, 0], [LOG3, 0, 0, 0]]), leaf([[4], [8]])
    y = form(q, k, v, causal=True)
    assert comes_to(y, [[4], [7]])
    dq, dk = grad(y, [q, k], [[2.0], [1.0]])
    assert comes_to(dk, [[-3 * QUARTER * 2 * HALF, 0, 0, 0], [3 * QUARTER * 2 * HALF, 0, 0, 0]])
    assert comes_to(dq, [[0, 0, 0, 0], [3 * QUARTER * HALF * LOG3, 0, 0, 0]])


def test_an_embedding_row_that_is_used_twice_gets_the_sum_of_both_cotangents():
    w = leaf([[1, 2], [3, 4], [5, 6]])
    y = ops.embedding(w, [1, 0, 1])
    assert y.data.tolist() == [[3, 4], [1, 2], [3, 4]]
    assert grad(y, w, [[1.0, 0.0], [0.0, 1.0], [10.0, 20.0]]).tolist() == [[0, 1], [1 + 10, 0 + 20], [0, 0]]


@both("linear_cross_entropy")
def test_the_gradient_of_a_tied_table_is_that_of_the_head_plus_that_of_the_embedding(form):
    def gradients(embedding_table, head_table, wanted):
        loss = form(ops.embedding(embedding_table, np.array([0])), head_table, np.array([0]))
        assert comes_to(loss, np.log(4))  # logits 1 and 1 + log 3, probabilities 1/4 and 3/4
        return grad(loss, wanted)

    table = [[1], [1 + LOG3]]
    embedding_table, head_table, tied_table = leaf(table), leaf(table), leaf(table)
    as_embedding, as_head = gradients(embedding_table, head_table, [embedding_table, head_table])
    # the logits' gradient is (1/4 - 1, 3/4); the head's is that times the vector 1, the embedding's its product with w
    assert comes_to(as_head, [[-3 * QUARTER], [3 * QUARTER]])
    assert comes_to(as_embedding, [[-3 * QUARTER * 1 + 3 * QUARTER * (1 + LOG3)], [0]])
    tied = gradients(tied_table, tied_table, tied_table)
    assert comes_to(tied, [[-3 * QUARTER + 3 * QUARTER * LOG3], [3 * QUARTER]])
