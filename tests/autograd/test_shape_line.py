"""The shape line: parsing, checking shapes, drawing shapes."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nanograd_llm.ops
from nanograd_llm.autograd.shapes import ShapeLine, axes_of
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import ShapeError

OPS = {name: op for name, op in registry.items() if op.__module__.startswith(nanograd_llm.ops.__name__)}
DRAWN = sorted(
    name
    for name, op in OPS.items()
    if op.samples is None
    and not op.constants
    and not any(default is inspect.Parameter.empty for default in op.static_defaults.values())
)
SEEDS = st.integers(0, 2**32 - 1)


def problem(line: str, inputs, output, **static):
    """Why these shapes, in the order of the line, do not match; None if they do."""
    parsed = ShapeLine(line)
    return parsed.mismatch({name: [shape] for name, shape in zip(parsed.inputs, inputs)}, static, output)


# Parsing


def test_a_line_is_found_in_a_docstring_and_read():
    line = ShapeLine.find("Normalise (see the paper).\n\n    x (..., C), w (C), b () -> y (..., C)\n\n    More words.")
    assert line.text == "x (..., C), w (C), b () -> y (..., C)"
    assert line.inputs == {"x": ["...", "C"], "w": ["C"], "b": []}
    assert line.output == ["...", "C"]


def test_words_before_the_line_are_ignored():
    assert ShapeLine.find("Reshape; one size may be -1.  x (*) -> y (shape)").text == "x (*) -> y (shape)"


@pytest.mark.parametrize("doc", [None, "", "words", "x (n)", "x -> y", "x (n) -> y", "x (n) y (n)", "(n) -> (n)"])
def test_a_docstring_without_a_line_gives_none(doc):
    assert ShapeLine.find(doc) is None


@pytest.mark.parametrize("text", ["x (n)", "x (n) ->", "x (n) -> y (n), z (n)"])
def test_a_line_with_several_outputs_or_none_is_refused(text):
    with pytest.raises(ShapeError, match="one output after '->'"):
        ShapeLine(text)


@pytest.mark.parametrize("text", ["x (..., T) -> y (..., ?)", "x (?, n) -> y (n)"])
def test_a_question_mark_that_does_not_stand_alone_is_refused(text):
    with pytest.raises(ShapeError, match=r"stands alone, as in y \(\?\)"):
        ShapeLine(text)


@pytest.mark.parametrize("text", ["x (n, *) -> y (n)", "x (B, ..., C) -> y (B)", "x (n), w (m, ...) -> y (n)"])
def test_a_star_or_dots_that_are_not_first_are_refused(text):
    with pytest.raises(ShapeError, match="come first"):
        ShapeLine(text)


def test_unbound_names_are_listed():
    assert ShapeLine("x (n), w (..., m) -> y (..., n, m, 3)").unbound() == set()
    assert ShapeLine("x (*) -> y (shape)").unbound() == {"shape"}
    assert ShapeLine("x (*) -> y (* - axis)").unbound() == {"axis"}
    assert ShapeLine("x (?) -> y (?)").unbound() == set()


# Checking


@pytest.mark.parametrize(
    ("line", "inputs", "output", "static"),
    [
        ("x (*) -> y (*)", [()], (), {}),
        ("x (*) -> y (*)", [(0, 3)], (0, 3), {}),
        ("a (*), b (*) -> y (*)", [(2, 1), (3,)], (2, 3), {}),
        ("a (*), b (*) -> y (*)", [(0, 1), (1, 3)], (0, 3), {}),
        ("x (..., C), w (C) -> y (..., C)", [(2, 3, 4), (4,)], (2, 3, 4), {}),
        ("x (..., C), w (C) -> y (..., C)", [(4,), (4,)], (4,), {}),
        ("q (..., n, D), k (..., m, D) -> y (..., n, m)", [(5, 1, 2, 3), (4, 6, 3)], (5, 4, 2, 6), {}),
        ("a (..., n?, k), b (..., k, m?) -> y (..., n?, m?)", [(3,), (3,)], (), {}),
        ("a (..., n?, k), b (..., k, m?) -> y (..., n?, m?)", [(3,), (2, 3, 4)], (2, 4), {}),
        ("a (..., n?, k), b (..., k, m?) -> y (..., n?, m?)", [(2, 5, 3), (3,)], (2, 5), {}),
        ("a (..., n?, k), b (..., k, m?) -> y (..., n?, m?)", [(2, 5, 3), (7, 1, 3, 4)], (7, 2, 5, 4), {}),
        ("x (n, 3) -> y (n)", [(2, 3)], (2,), {}),
        ("x (n) -> y (n, 2)", [(5,)], (5, 2), {}),
        ("x (?) -> y (?)", [(2, 3, 4)], (7,), {}),
        ("x (*) -> y (shape)", [(2, 3)], (6,), {"shape": -1}),
        ("x (*) -> y (shape)", [(2, 3)], (3, 2), {"shape": [3, -1]}),
        ("x (*) -> y (shape)", [(2, 0)], (0,), {"shape": (-1,)}),
        ("x (n) -> y (times, n)", [(2,)], (3, 2), {"times": 3}),
        ("x (*) -> y (* - axis)", [(2, 3)], (), {"axis": None}),
        ("x (*) -> y (* - axis)", [(2, 3)], (1, 1), {"axis": None, "keepdims": True}),
        ("x (*) -> y (* - axis)", [(2, 3)], (2,), {"axis": -1}),
        ("x (*) -> y (* - axis)", [(2, 3)], (2, 3), {"axis": ()}),
        ("x (*) -> y (* - axis)", [(2, 3, 4)], (1, 3, 1), {"axis": (0, -1), "keepdims": True}),
    ],
)
def test_shapes_that_match_the_line_are_accepted(line, inputs, output, static):
    assert problem(line, inputs, output, **static) is None


@pytest.mark.parametrize(
    ("line", "inputs", "output", "static", "said"),
    [
        ("x (*) -> y (*)", [(2,)], (3,), {}, "the result has shape (3,) where the line says (2,)"),
        ("a (*), b (*) -> y (*)", [(2,), (3,)], (3,), {}, "[(2,), (3,)] do not broadcast together"),
        ("x (..., C), w (C) -> y (..., C)", [(2, 3), (4,)], (2, 3), {}, "w (4,): C is 4 here and 3 in x"),
        ("x (..., C), w (C) -> y (..., C)", [(2, 3), (1, 3)], (2, 3), {}, "w (1, 3): expected (C)"),
        ("x (..., C), w (C) -> y (..., C)", [(), (3,)], (3,), {}, "x (): expected (..., C)"),
        ("x (n, n) -> y (n)", [(2, 3)], (2,), {}, "x (2, 3): n is 2 here and 3 elsewhere"),
        ("x (n, 3) -> y (n)", [(2, 4)], (2,), {}, "x (2, 4): 3 is 4 here and 3 elsewhere"),
        ("x (n, m) -> y (n)", [(2,)], (2,), {}, "x (2,): expected (n, m)"),
        ("a (..., n?, k), b (..., k, m?) -> y (..., n?, m?)", [(3,), (3,)], (1,), {}, "the line says ()"),
        ("a (..., n?, k), b (..., k, m?) -> y (..., n?, m?)", [(2, 3), (4, 5)], (2, 5), {}, "k is 4 here and 3 in a"),
        ("x (*) -> y (shape)", [(2, 3)], (6,), {"shape": (2, -1)}, "the line says (2, 3)"),
        ("x (*) -> y (* - axis)", [(2, 3)], (3,), {"axis": 1}, "the line says (2,)"),
        ("x (*) -> y (* - axis)", [(2, 3)], (2,), {"axis": 1, "keepdims": True}, "the line says (2, 1)"),
    ],
)
def test_shapes_that_break_the_line_are_reported(line, inputs, output, static, said):
    assert said in problem(line, inputs, output, **static)


def test_several_inputs_under_one_name_broadcast_together():
    line = ShapeLine("xs (*) -> y (*)")
    assert line.mismatch({"xs": [(2, 1), (3,), ()]}, {}, (2, 3)) is None
    assert "do not broadcast" in line.mismatch({"xs": [(2,), (3,)]}, {}, (3,))


def test_an_omitted_input_is_ignored():
    line = ShapeLine("x (..., n), b (n) -> y (..., n)")
    assert line.mismatch({"x": [(2, 3)]}, {}, (2, 3)) is None


# Drawing


LINES = [op.shape_line.text for op in OPS.values()] + [
    "x (n, n) -> y (n)", "x (n, 3), w (3) -> y (n)", "a (..., n), b (..., n, m) -> y (..., m)", "x () -> y ()"
]  # fmt: skip


@pytest.mark.parametrize("text", sorted({line for line in LINES if "(?)" not in line.partition("->")[0]}))
@settings(max_examples=30)
@given(seed=SEEDS)
def test_drawn_inputs_match_the_line(text, seed):
    line = ShapeLine(text)
    shapes = line.draw(np.random.default_rng(seed))
    assert list(shapes) == list(line.inputs)
    answer = line.mismatch({name: [s] for name, s in shapes.items()}, {"axis": None, "shape": -1}, (-1,))
    assert answer is None or answer.startswith("the result has shape (-1,)")


@pytest.mark.parametrize("name", DRAWN)
@settings(max_examples=30)
@given(seed=SEEDS)
def test_numpys_result_on_drawn_inputs_matches_the_line(name, seed):
    op, rng = OPS[name], np.random.default_rng(seed)
    shapes = op.shape_line.draw(rng)
    arrays = [rng.uniform(*op.domain.get(n, (-1, 1)), shapes[n]) for n in op.inputs]
    assert op.shape_problem(arrays, {}, np.shape(op(*arrays))) is None


@pytest.mark.parametrize("name", DRAWN)
@settings(max_examples=30)
@given(seed=SEEDS, place=st.integers(0, 3))
def test_a_forward_with_another_output_shape_would_be_reported(name, seed, place):
    op, rng = OPS[name], np.random.default_rng(seed)
    shapes = op.shape_line.draw(rng)
    arrays = [rng.uniform(*op.domain.get(n, (-1, 1)), shapes[n]) for n in op.inputs]
    shape = list(np.shape(op(*arrays)))
    shape.insert(min(place, len(shape)), 1)
    assert op.shape_problem(arrays, {}, tuple(shape)) is not None


def test_draws_broadcast_and_leave_optional_axes_out():
    rng = np.random.default_rng(0)
    drawn = [ShapeLine("a (*), b (*) -> y (*)").draw(rng) for _ in range(200)]
    assert any(s["a"] != s["b"] for s in drawn)
    assert any(len(s["a"]) != len(s["b"]) for s in drawn)
    assert any(1 in s["a"] and s["a"] != s["b"] for s in drawn)
    assert any(s["a"] == () for s in drawn)
    products = [registry["matmul"].shape_line.draw(rng) for _ in range(200)]
    assert {len(s["a"]) == 1 for s in products} == {len(s["b"]) == 1 for s in products} == {True, False}


def test_draws_are_determined_by_the_generator():
    line = registry["matmul"].shape_line
    assert line.draw(np.random.default_rng(3)) == line.draw(np.random.default_rng(3))


# Axes


@given(ndim=st.integers(0, 5), data=st.data())
def test_axes_are_numbered_from_zero(ndim, data):
    axes = data.draw(st.permutations(range(ndim)))[: data.draw(st.integers(0, ndim))]
    given_axes = tuple(a - ndim if data.draw(st.booleans()) else a for a in axes)
    assert axes_of(given_axes, ndim) == tuple(axes)
    assert axes_of(None, ndim) == tuple(range(ndim))


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        (True, "must be an integer"), (np.True_, "must be an integer"), (1.0, "must be an integer"),
        ("0", "must be an integer"), ((0, False), "must be an integer"), ((0, None), "must be an integer"),
        (2, "axis 2 is out of range for 2"), (-3, "use -2 to 1"), ((0, 2), "out of range"),
        ((0, 0), "names an axis twice"), ((1, -1), "names an axis twice"),
    ],
)  # fmt: skip
def test_an_axis_that_does_not_exist_is_refused(axis, said):
    with pytest.raises(ShapeError, match=said):
        axes_of(axis, 2)


# Broadcasting


@pytest.mark.parametrize(
    ("line", "name", "shape", "whole", "expected"),
    [
        ("a (*), b (*) -> y (*)", "b", (3,), (2, 3), True),
        ("a (*), b (*) -> y (*)", "b", (1, 3), (2, 3), True),
        ("x (N, D), b (D) -> y (N, D)", "b", (3,), (2, 3), True),  # NumPy's rule, written by names
        ("a (..., n?, k), b (..., k, m?) -> y (..., n?, m?)", "b", (3, 2), (4, 3, 2), True),
        ("x (*) -> y (shape)", "x", (3,), (2, 3), True),
        ("x (?) -> y (?)", "x", (3,), (2, 3), True),
        ("x (B, C), g (1, C) -> y (B, C)", "g", (1, 4), (3, 4), True),
        ("x (..., C), m (..., 1) -> y (..., C)", "m", (3, 1), (3, 4), True),
        ("x (C) -> y (3, C)", "x", (4,), (3, 4), False),
        ("a (N), b (K) -> y (N, K)", "b", (4,), (3, 4), False),
        ("x (..., C) -> y (..., 3, C)", "x", (4,), (3, 4), False),
        ("x (*) -> y (*)", "x", (1,), (5,), False),
        ("a (..., C), b (..., C) -> y (..., C)", "a", (1,), (5,), False),  # C is one size
    ],
)
def test_a_line_says_which_inputs_an_op_can_broadcast(line, name, shape, whole, expected):
    assert ShapeLine(line).broadcasts(name, shape, whole) is expected
