"""AdamW on one flat array gives what the textbook's loop over separate arrays gives; clipping; the flat array."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

from nanograd_llm import NanogradError, Parameter, nn
from nanograd_llm.errors import DtypeError, GraphError, ShapeError, SignatureError
from nanograd_llm.training import SGD, AdamW, Muon, clip_by_global_norm
from nanograd_llm.training.flat import BLOCK, FlatParameters

SHAPES = [(5,), (4, 3), (), (2, 3, 2), (1, 7), (3,)]


def parameters(dtype: Any = np.float64, shapes: Any = SHAPES) -> list[Parameter]:
    rng = np.random.default_rng(0)
    return [Parameter(np.asarray(rng.standard_normal(shape), dtype=dtype)) for shape in shapes]


def gradients(steps: int, shapes: Any = SHAPES) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(1)
    return [[np.asarray(rng.standard_normal(shape)) for shape in shapes] for _ in range(steps)]


def textbook(
    values: list[np.ndarray],
    steps: list[list[np.ndarray]],
    rates: list[float],
    b1: float,
    b2: float,
    eps: float,
    wd: float,
) -> list[np.ndarray]:
    """Loshchilov and Hutter 2019, algorithm 2, for each array by itself; decay where there are two axes or more."""
    results = []
    for i, start in enumerate(values):
        p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
        for t, (given, rate) in enumerate(zip(steps, rates), start=1):
            g = given[i]
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g**2
            m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
            p = p - rate * (m_hat / (np.sqrt(v_hat) + eps) + (wd * p if p.ndim >= 2 else 0))
        results.append(p)
    return results


RATES = [0.01 * (i + 1) for i in range(10)]


@pytest.mark.parametrize("settings", [(0.9, 0.95, 1e-8, 0.1), (0.9, 0.999, 1e-3, 0.0), (0.3, 0.5, 1e-8, 0.5)])
def test_ten_steps_are_the_textbooks(settings: tuple[float, float, float, float]) -> None:
    own = parameters()
    expected = textbook([p.data for p in own], gradients(10), RATES, *settings)
    b1, b2, eps, wd = settings
    optimizer = AdamW(own, beta1=b1, beta2=b2, eps=eps, weight_decay=wd)
    for given, rate in zip(gradients(10), RATES):
        optimizer.step(given, rate)
    assert all(np.allclose(p.data, e, rtol=1e-12, atol=1e-12) for p, e in zip(own, expected, strict=True))


def test_decay_acts_on_matrices_only() -> None:
    own = parameters()
    before = [p.data.copy() for p in own]
    AdamW(own, weight_decay=0.5).step([np.zeros(shape) for shape in SHAPES], 0.1)
    for p, start in zip(own, before):
        assert np.array_equal(p.data, start * 0.95 if p.ndim >= 2 else start)


def flattened(optimizer: AdamW, given: list[np.ndarray]) -> np.ndarray:
    """A list of gradients as one array in the layout of `optimizer.flat`."""
    array = np.empty_like(optimizer.flat.data)
    for view, p in zip(optimizer.flat.views(array), optimizer.flat.parameters):
        view[...] = next(g for g, q in zip(given, optimizer.order) if q is p)
    return array


def test_a_list_and_a_flat_array_of_gradients_are_the_same_step() -> None:
    listed, flat = AdamW(parameters()), AdamW(parameters())
    (given,) = gradients(1)
    listed.step(given, 0.1)
    flat.update(flat.flat.blocks(0, 1), flattened(flat, given), flat.next_rates(0.1))
    assert np.array_equal(listed.flat.data, flat.flat.data)


def test_a_scaled_step_is_a_step_against_the_scaled_gradient() -> None:
    scaled, plain = AdamW(parameters()), AdamW(parameters())
    (given,) = gradients(1)
    scaled.update(scaled.flat.blocks(0, 1), flattened(scaled, given), scaled.next_rates(0.1, scale=0.25))
    plain.step([g / 4 for g in given], 0.1)
    assert np.array_equal(scaled.flat.data, plain.flat.data)


@pytest.mark.parametrize("count", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("matrix", [0, 1000, BLOCK])
@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_change_nothing_but_the_speed(count: int, matrix: int, workers: int) -> None:
    shapes = [(count,)] + ([(2, matrix)] if matrix else [])
    own = parameters(shapes=shapes)
    expected = textbook([p.data for p in own], gradients(2, shapes), [0.1, 0.1], 0.9, 0.95, 1e-8, 0.1)
    optimizer = AdamW(own)
    for given in gradients(2, shapes):
        rates = optimizer.next_rates(0.1)
        for worker in range(workers):
            optimizer.update(optimizer.flat.blocks(worker, workers), flattened(optimizer, given), rates)
    assert all(np.allclose(p.data, e, rtol=1e-12, atol=1e-12) for p, e in zip(own, expected, strict=True))


def test_float32_stays_float32() -> None:
    optimizer = AdamW(parameters(np.float32))
    optimizer.step([g.astype(np.float32) for g in gradients(1)[0]], 0.1)
    assert {optimizer.m.dtype, optimizer.v.dtype, optimizer.flat.data.dtype} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "given", [[], [np.zeros(5)], [np.zeros((3, 4)) if s == (4, 3) else np.zeros(s) for s in SHAPES]]
)
def test_gradients_of_other_shapes_are_refused_before_anything_moves(given: Any) -> None:
    optimizer = AdamW(parameters())
    before = optimizer.flat.data.copy()
    with pytest.raises(ShapeError, match="expected"):
        optimizer.step(given, 0.1)
    assert optimizer.steps == 0
    assert np.array_equal(optimizer.flat.data, before)


# Clipping


def test_a_long_gradient_is_scaled_to_the_limit() -> None:
    gradient = np.array([3.0, 4.0, 12.0])
    assert clip_by_global_norm([gradient], 6.5) == 13
    assert gradient.tolist() == [1.5, 2.0, 6.0]


@pytest.mark.parametrize("limit", [13.0, 14.0])
def test_a_short_gradient_stays(limit: float) -> None:
    gradient = np.array([3.0, 4.0, 12.0])
    assert clip_by_global_norm([gradient], limit) == 13
    assert gradient.tolist() == [3.0, 4.0, 12.0]


def test_several_gradients_are_clipped_by_their_global_norm() -> None:
    gradients = [np.array([[3.0], [4.0]]), np.array([12.0])]
    assert clip_by_global_norm(gradients, 6.5) == 13
    assert [g.tolist() for g in gradients] == [[[1.5], [2.0]], [6.0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_stays_as_it_is(bad: float) -> None:
    gradient = np.array([3.0, bad])
    assert not math.isfinite(clip_by_global_norm([gradient], 1.0))
    assert np.array_equal(gradient, [3.0, bad], equal_nan=True)


# The flat array


def test_a_flat_array_holds_the_values_with_matrices_first() -> None:
    own = parameters()
    before = [p.data.copy() for p in own]
    flat = FlatParameters(own)
    assert all(np.array_equal(p.data, b) and p.shape == b.shape for p, b in zip(own, before))
    assert [p.ndim >= 2 for p in flat.parameters] == [True, True, True, False, False, False]
    assert flat.decayed == 12 + 12 + 7
    assert flat.data.size == 12 + 12 + 7 + 5 + 1 + 3


def test_a_write_into_the_array_is_a_write_into_the_parameters_and_back() -> None:
    own = parameters()
    flat = FlatParameters(own)
    flat.data[:] = 1
    assert all((p.data == 1).all() for p in own)
    for p in own:
        p.data[...] = 2
    assert (flat.data == 2).all()


def test_views_of_an_array_tile_it_in_the_parameters_shapes() -> None:
    flat = FlatParameters(parameters())
    array = np.arange(flat.data.size)
    views = flat.views(array)
    assert [v.shape for v in views] == [p.shape for p in flat.parameters]
    assert np.array_equal(np.concatenate([v.reshape(-1) for v in views]), array)
    assert all(np.shares_memory(v, array) for v in views)


def test_parameters_of_two_dtypes_are_refused() -> None:
    with pytest.raises(DtypeError, match=r"got \['float32', 'float64'\]; use model.astype"):
        FlatParameters([Parameter(np.ones(2)), Parameter(np.ones(2, np.float32))])


def test_a_step_is_refused_where_a_parameter_has_left_the_flat_array() -> None:
    own = parameters()
    optimizer = AdamW(own)
    own[1].data = own[1].data.copy()
    with pytest.raises(GraphError, match="no longer lies in this flat array .* make a new trainer"):
        optimizer.step(gradients(1)[0], 0.1)


def test_without_parameters_it_is_refused():
    with pytest.raises(NanogradError, match="AdamW got no parameters"):
        AdamW([])


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_gradient_that_is_missing_and_an_unknown_argument_are_said(kind: Any) -> None:
    with pytest.raises(GraphError, match=r"gradient of parameter 1 is None: it is frozen, .*leave out"):
        kind(parameters(shapes=[(2,), (3,)])).step([np.zeros(2), None], 0.1)
    with pytest.raises(SignatureError, match=r"has no argument lr=; .* step\(gradients, learning_rate\)"):
        kind(parameters(), lr=0.1)


@pytest.mark.parametrize("kind", [AdamW, SGD, functools.partial(Muon, matrices=[])])
def test_what_pytorch_would_take_is_refused_with_what_to_write(kind: Any) -> None:
    model = nn.Linear(2, 3)
    for given in (model, model.named_parameters(), {"weight": model.weight}, "weight", 3, [model]):
        with pytest.raises(DtypeError, match=r"takes a list of Parameters; got .*\(model.parameters\(\)\)$"):
            kind(given)
    with pytest.raises(DtypeError, match=r"got Parameter; write .*\(\[table\]\)$"):
        kind(model.weight)
    optimizer = kind(model.parameters())
    grads = [np.ones_like(p.data) for p in model.parameters()]
    for args, named in (((), {}), ((grads,), {}), ((0.1,), {}), ((), {"lr": 0.1}), ((model, 0.1), {})):
        with pytest.raises(
            SignatureError, match=r"write step\(\[p.grad for p in model.parameters\(\)\], learning_rate"
        ):
            optimizer.step(*args, **named)
    with pytest.raises(DtypeError, match="gradient of parameter 0 is a Tensor"):
        optimizer.step(model.parameters(), 0.1)
    with pytest.raises(AttributeError, match=r"use model.zero_grad\(\)"):
        optimizer.zero_grad()
    optimizer.step(iter(grads), learning_rate=0.1)
