"""Declarations of ops, and rules: what is missing or wrong is refused by name."""

from __future__ import annotations

import copy
import pickle
import traceback
from contextlib import nullcontext

import numpy as np
import pytest

from nanograd_llm import Tensor, checked, grad, higher_order, keep, nn, no_grad, op, ops
from nanograd_llm.autograd.op import keys_of
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import DtypeError, GraphError, NanogradError, ShapeError, SignatureError
from nanograd_llm.gradcheck import check_all, check_layer


def leaf(values, dtype=np.float32):
    return Tensor(np.array(values, dtype=dtype), requires_grad=True)


def declare(doc, function=None, formula="y = x*w", adjoint="x̄ = ȳ*w;  w̄ = ȳ*x", **options):
    """An op of this docstring; its function takes x and w if none is given."""

    def made(x, w):
        return x * w

    function = function or made
    function.__doc__ = doc
    return op(formula, adjoint, **options)(function)


def with_rule(rule):
    made = declare("x (*), w (*) -> y (*)")
    made.backward(rule)
    return made


# The declaration


@pytest.mark.parametrize("doc", [None, "", "The product.", "x (*), w (*)", "x, w -> y", "-> y (*)"])
def test_an_op_without_a_shape_line_is_refused(doc):
    with pytest.raises(ShapeError, match="op made needs a shape line in its docstring, such as"):
        declare(doc)


@pytest.mark.parametrize(
    "doc", ["x (*) -> y (*)", "w (*), x (*) -> y (*)", "x (*), v (*) -> y (*)", "x (*), w (*), v (*) -> y (*)"]
)
def test_a_shape_line_that_names_other_inputs_is_refused(doc):
    with pytest.raises(ShapeError, match=r"op made: the shape line names \[.*\], the function \['x', 'w'\]"):
        declare(doc)


def test_a_static_argument_without_a_star_is_refused_with_where_to_write_it():
    with pytest.raises(
        ShapeError, match=r"\['x', 'axis'\]; if axis is a static argument, write def made\(x, \*, axis\)"
    ):

        @op("y = x", "x̄ = ȳ")
        def made(x, axis=0):
            """x (*) -> y (*)"""


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"samples": [1]}, "samples is a function of a draw, such as samples=lambda draw"),
        ({"domain": (0.5, 2.0)}, r"domain has intervals by input \(x\), .*; got \(0.5, 2.0\)"),
        ({"domain": {"z": (0.5, 2.0)}}, r"domain has intervals by input \(x\), .*; got \{'z'"),
    ],
)
def test_cases_in_another_form_are_refused_with_the_form(wrong, words):
    with pytest.raises(SignatureError, match=f"op made: {words}"):

        @op("y = x", "x̄ = ȳ", **wrong)
        def made(x):
            """x (*) -> y (*)"""


@pytest.mark.parametrize("output", ["C", "n, C", "* - axis", "shape", "n?"])
def test_a_shape_line_whose_output_is_undefined_is_refused(output):
    with pytest.raises(ShapeError, match="op made: no input and no static argument defines .* in .*write y"):
        declare(f"x (n), w (n) -> y ({output})")


def test_a_tensor_that_requires_a_gradient_is_no_static_argument():
    with pytest.raises(GraphError, match="clip: low= is a static argument, .*; give its .item()"):
        ops.clip(leaf([1.0, 2.0]), low=leaf(0.5))
    assert ops.clip(leaf([0.0, 0.75]), low=leaf(0.5).item()).tolist() == [0.5, 0.75]

    y = ops.clip(leaf([0.0, 2.0]), low=Tensor(0.5), high=3)  # a number, which does not widen float32
    assert y.dtype == np.float32 and y.tolist() == [0.5, 2.0]


def test_a_static_argument_may_determine_the_result():
    def repeated(x, *, times, shape=()):
        return np.broadcast_to(x, (times, *np.shape(x)))

    made = declare("x (n) -> y (times, n)", repeated, adjoint="x̄ = Σ ȳ")
    with checked():
        assert made(Tensor([1.0, 2.0]), times=3).shape == (3, 2)


@pytest.mark.parametrize("formula", ["", "  "])
def test_an_op_without_a_formula_is_refused(formula):
    with pytest.raises(NanogradError, match="op made needs a formula"):
        declare("x (*), w (*) -> y (*)", formula=formula)


@pytest.mark.parametrize("adjoint", ["", "x̄ = ȳ*w", "w̄ = ȳ*x", "x = w"])
def test_an_op_without_an_adjoint_for_every_input_is_refused(adjoint):
    with pytest.raises(NanogradError, match=r"op made: its adjoints .* have no .. for input '[xw]'"):
        declare("x (*), w (*) -> y (*)", adjoint=adjoint)


def test_inputs_with_the_same_first_letter_need_one_adjoint_each():
    def made(a1, a2):
        return a1 * a2

    doc = "a1 (*), a2 (*) -> y (*)"
    with pytest.raises(NanogradError, match=r"have 1 .. for input 'a1', 'a2'; write one for each"):
        declare(doc, made, adjoint="ā1 = ȳ*a2")
    declare(doc, made, adjoint="ā1 = ȳ*a2;  ā2 = ȳ*a1")


def test_an_adjoint_may_be_written_with_one_character_or_two():
    for barred in ("\u0101", "a\u0304"):

        def same(a):
            return a

        made = declare("a (*) -> y (*)", same, formula="y = a", adjoint=f"{barred} = dy")
        assert made.adjoint == f"{barred} = dy"


@pytest.mark.parametrize(
    ("name", "adjoint"),
    [
        *(("beta", form) for form in ("b̄", "b̄eta", "betā", "β̄", "β̅", "beta_bar", "betabar", "dbeta", "d_beta", "dβ")),
        *(("β", form) for form in ("β̄", "beta_bar", "dbeta", "dβ")),
        *(("lambda_", form) for form in ("λ̄", "lambda_bar", "dλ", "l̄")),
        *(("gamma2", form) for form in ("γ̄2", "γ̄₂", "gamma2_bar", "γ2̄", "ḡ")),
        ("x_1", "x̄1"),
        ("x_1", "x̄₁"),
        ("w", "dw"),
        ("W", "dW"),
        ("weight", "∂weight = 0; w̄"),
    ],
)
def test_an_adjoint_may_be_written_in_greek_or_ascii(name, adjoint):
    function = eval(f"lambda {name}: {name}")
    function.__name__ = "made"
    made = declare(f"{name} (*) -> y (*)", function, adjoint=f"{adjoint} = ȳ")
    assert made.differentiable == [name]


@pytest.mark.parametrize(
    ("names", "adjoint", "missing"),
    [
        ("b, beta", "b̄ = ȳ;  beta_bar = ȳ", ""),
        ("b, beta", "b̄eta = ȳ;  b̄ = ȳ", ""),
        ("b, beta", "b̄ = ȳ;  b̄ = ȳ", ""),
        ("b, beta", "β̄ = ȳ", "b"),
        ("b, beta", "beta_bar = ȳ", "b"),
        ("b, beta", "b̄ = ȳ", "b"),
        ("beta, gamma", "β̄ = ȳ", "gamma"),
        ("x", "dxy = ȳ;  xbars = 1", "x"),
        ("x1, x2", "dx1 = ȳ", "x2"),
    ],
)
def test_one_adjoint_is_not_enough_for_two_inputs(names, adjoint, missing):
    function = eval(f"lambda {names}: {names.split(', ')[0]}")
    function.__name__ = "made"
    doc = ", ".join(f"{name} (*)" for name in names.split(", ")) + " -> y (*)"
    if not missing:
        declare(doc, function, adjoint=adjoint)
        return
    with pytest.raises(NanogradError, match=f"for input .*'{missing}'.*; write one for each, as .*{missing}_bar"):
        declare(doc, function, adjoint=adjoint)


def test_a_constant_input_needs_no_adjoint():
    made = declare("x (*), w (*) -> y (*)", adjoint="x̄ = ȳ*w", constants=("w",))
    assert made.differentiable == ["x"]


@pytest.mark.parametrize("constants", ["w", ("v",), ["x", "v"], None, 1])
def test_constants_that_are_no_tuple_of_inputs_are_refused(constants):
    with pytest.raises(
        SignatureError, match=r"constants is a tuple of inputs \(x, w\), such as constants=\('w',\); got"
    ):
        declare("x (*), w (*) -> y (*)", adjoint="x̄ = ȳ*w", constants=constants)


def test_a_rule_that_returns_a_tensor_is_named_and_told_to_return_an_array():
    made = with_rule(lambda dy, x, w: (dy * w, Tensor(dy * x)))
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    with pytest.raises(GraphError, match="the rule of made returned a Tensor for w; return an array"):
        grad(made(x, w).sum(), [x, w])
    with higher_order():
        assert isinstance(grad(made(x, w).sum(), w), Tensor)


def test_an_argument_called_y_is_refused():
    def masked(x, y):
        return x

    with pytest.raises(NanogradError, match="'y' is a reserved parameter of rules; rename"):
        declare("x (*), y (*) -> z (*)", masked, adjoint="x̄ = ȳ;  ȳ = 0")


def multiply_of(module):
    def multiply(x, w):
        return 2 * x * w

    multiply.__module__ = module
    made = declare("x (*), w (*) -> y (*)", multiply)
    made.backward(lambda dy, x, w: (2 * dy * w, 2 * dy * x))
    return made


def test_two_modules_of_the_package_cannot_have_ops_of_one_name():
    with pytest.raises(NanogradError, match="op multiply of nanograd_llm.more exists already in nanograd_llm.ops"):
        multiply_of("nanograd_llm.more")
    assert registry["multiply"] is ops.multiply


def test_ops_outside_the_package_are_known_by_module_and_name():
    mine, yours = multiply_of("homework"), multiply_of("tests.other")
    assert registry["homework.multiply"] is mine and registry["tests.other.multiply"] is yours
    assert registry["multiply"] is ops.multiply and (Tensor([3.0]) * 2).tolist() == [6]
    assert keys_of("multiply", registry) == ["multiply", "homework.multiply", "tests.other.multiply"]
    assert keys_of("homework.multiply", registry) == ["homework.multiply"] and keys_of("homework", registry) == []
    assert len(check_all(["multiply"], order=1, cases=2).ops) == 3
    model = nn.Sequential(lambda x: mine(yours(x, x), x * x))
    model_class = type("Products", (nn.Module,), {"forward": lambda self, x: model(x)})
    model_class.specimens = lambda draw: [(model_class(), (draw(3),))]
    assert check_layer(model_class, cases=10).mutants == 3


def test_the_latest_definition_of_an_op_is_the_one_that_is_known():
    first, second = declare("x (*), w (*) -> y (*)"), declare("x (*), w (*) -> y (*)")
    assert registry[f"{__name__}.made"] is second is not first
    assert pickle.loads(pickle.dumps(second)) is second


@op("y = 2x", "x̄ = 2ȳ")
def doubled(x):
    """x (*) -> y (*)"""
    return 2 * x


del registry[f"{__name__}.doubled"]  # else other tests would check it too


@pytest.mark.parametrize("one", [ops.softmax, ops.sum, doubled], ids=lambda one: one.name)
def test_an_op_is_copied_and_pickled_like_a_function(one):
    assert copy.copy(one) is copy.deepcopy(one) is one
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(one, protocol)) is one


def test_a_module_that_holds_ops_is_copied_and_pickled():
    model = nn.Sequential(nn.Linear(2, 3), ops.tanh, doubled, nn.MLP(3), nn.Dropout(0.5)).eval()
    model[0].freeze()
    x = np.ones((1, 2), np.float32)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(copied(x).data, model(x).data)
        assert [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in model.parameters()]
        copied[3].up.weight.data[...] = 0
        assert model[3].up.weight.data.any()


def test_a_pickled_op_without_a_definition_is_refused():
    gone = declare("x (*), w (*) -> y (*)")
    data = pickle.dumps(gone)
    del registry[f"{__name__}.made"]
    with pytest.raises(NanogradError, match=r"the pickled op .*made is not in .*; define it at the top level"):
        pickle.loads(data)


@pytest.mark.parametrize("arguments", [(lambda x: x,), ("y = a*b", "ā = ȳ*b", "b̄ = ȳ*a")])
def test_op_without_a_formula_or_with_more_than_two_strings_is_refused_with_an_example(arguments):
    with pytest.raises(SignatureError, match="@op takes a formula, and the adjoints in one string, such as @op"):
        op(*arguments)


def test_a_rule_without_a_cotangent_is_refused():
    with pytest.raises(SignatureError, match=r"the rule of made takes no argument; .* made_backward\(dy, x, w\)"):
        with_rule(lambda: None)


def test_a_refused_op_is_not_registered():
    with pytest.raises(NanogradError):
        declare("x (*), w (*) -> y (*)", formula="")
    assert "made" not in registry


def test_an_op_shows_its_formula_and_keeps_its_name_and_docstring():
    made = declare("The product.  x (*), w (*) -> y (*)")
    assert repr(made) == "<op made: y = x*w   x̄ = ȳ*w;  w̄ = ȳ*x>"
    assert (made.__name__, made.__doc__) == ("made", "The product.  x (*), w (*) -> y (*)")


# The rule


def test_an_op_without_a_rule_is_refused_only_if_a_gradient_is_needed():
    made = declare("x (*), w (*) -> y (*)")
    assert made(Tensor([2.0]), 3).item() == 6
    assert made(np.array([2.0]), 3)[0] == 6
    with no_grad():
        made(leaf([2.0]), 3)
    with pytest.raises(GraphError, match="op made has no rule; write one under @made.backward"):
        made(leaf([2.0]), 3)


def test_a_rule_may_return_a_list():
    made, x, w = with_rule(lambda dy: [2 * dy, 3 * dy]), leaf(1.0), leaf(2.0)
    assert grad(made(x, w), [x, w]) == [2, 3]


@pytest.mark.parametrize(
    ("rule", "mode", "error", "words"),
    [
        (lambda dy, x, w: (dy * (x.data > 0), dy), nullcontext, TypeError, "memoryview"),
        (lambda dy, x, w: (dy * x.requires_grad, dy), nullcontext, DtypeError, "requires_grad"),
        (lambda dy, x, w: (dy.reshape(7), dy), nullcontext, ValueError, "reshape"),
        (lambda dy, x, w: (dy * np.power(w, 2), dy), higher_order, DtypeError, r"use ops.power\(...\)"),
        (lambda dy, x, w: (np.sum(np.asarray(w)) * dy, dy), higher_order, GraphError, "lose this Tensor's tape"),
    ],
)
def test_an_error_in_a_rule_is_raised_with_the_op_its_line_and_what_it_received(rule, mode, error, words):
    made = with_rule(rule)
    advice = "a rule receives arrays, or Tensors" if mode is higher_order else r"\(dy is \(2,\), x is \(2,\), w is"
    words = f"in the rule of made: .*{words}.*{advice}.*, at .*test_op_declaration.py:{rule.__code__.co_firstlineno}$"
    with mode(), pytest.raises(error, match=words) as caught:
        x = leaf([1.0, 2.0])
        grad(made(x, leaf([3.0, 4.0])), x, np.ones(2, np.float32))
    assert isinstance(caught.value, NanogradError)


def test_an_error_of_another_class_in_a_rule_is_not_changed():
    def rule(dy, x, w):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="^mine$"):
        with_rule(rule)(leaf(1.0), leaf(2.0)).backward()


@pytest.mark.parametrize(
    ("rule", "came"),
    [
        (lambda dy: dy, "1 gradient"),
        (lambda dy: (dy,) * 3, "3 gradients"),
        (lambda dy: None, "nothing"),
        (lambda dy: (), "0 gradients"),
    ],
)
@pytest.mark.parametrize("x", [1.0, [1.0, 2.0]], ids=["a number", "an array"])
def test_a_rule_that_returns_another_number_of_gradients_is_refused(rule, came, x):
    with pytest.raises(GraphError, match=rf"returned {came} for 2 inputs \(x, w\); return one gradient for each"):
        with_rule(rule)(leaf(x), leaf(2.0)).sum().backward()


def test_data_of_an_array_in_a_rule_is_explained():
    with pytest.raises(DtypeError, match="x is .*; a rule receives arrays, .* not .data or NumPy's functions"):
        with_rule(lambda dy, x: (dy * x.data**2, dy))(leaf(1.0), leaf(2.0)).backward()


@pytest.mark.parametrize("axis", [0, -2])
def test_a_rule_must_sum_over_the_copies_that_its_op_makes(axis):
    def forward(x):
        return np.stack([x, 2 * x], axis)

    forward.__doc__ = "Two rows.  x (C) -> y (2, C)" if axis == 0 else "Two rows.  x (..., C) -> y (..., 2, C)"
    rows = op("y = (x, 2x)", "x̄ = ȳ₀ + 2ȳ₁")(forward)
    rows.backward(lambda dy: dy * np.array([[1.0], [2.0]]))
    with pytest.raises(ShapeError, match=r"gradient of shape \(2, 4\) for its input x of shape \(4,\).*sum it over"):
        rows(leaf(np.ones(4))).sum().backward()


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1), (4, 2, 3, 4), (), (1, 3)])
def test_a_gradient_that_does_not_sum_to_its_inputs_shape_is_refused(shape):
    made = with_rule(lambda dy: (np.ones(shape, np.float32), dy))
    y = made(leaf(np.ones((2, 3))), leaf(1.0))
    with pytest.raises(
        ShapeError, match=r"the rule of made returned a gradient .* for its input \w+ of shape \(2, 3\)"
    ):
        y.backward(np.ones((2, 3), np.float32))


@pytest.mark.parametrize("shape", [(2, 3), (4, 2, 3), (1, 2, 3), (5, 4, 2, 3)])
def test_a_gradient_that_was_broadcast_is_summed_to_its_inputs_shape(shape, rng):
    gradient = rng.standard_normal(shape).astype(np.float32)
    made = with_rule(lambda dy: (gradient, dy))
    x = leaf(np.ones((2, 3)))
    expected = gradient.sum(axis=tuple(range(len(shape) - 2)))
    np.testing.assert_allclose(grad(made(x, 1.0), x, np.ones((2, 3), np.float32)), expected, rtol=1e-6)


@pytest.mark.parametrize("gradient", [None, "text", [1.0, 2.0]])
def test_a_gradient_that_is_not_an_array_is_refused(gradient):
    made = with_rule(lambda dy: (gradient, dy))
    with pytest.raises(GraphError, match="the rule of made returned .* for x, which needs a gradient"):
        made(leaf([1.0, 2.0]), leaf([1.0, 2.0])).sum().backward()


def test_a_gradient_may_be_none_where_none_is_needed():
    made = with_rule(lambda dy, w: (dy * w, None))
    x = leaf([1.0, 2.0])
    np.testing.assert_array_equal(grad(made(x, [3.0, 4.0]).sum(), x), [3, 4])


def test_a_gradient_may_be_a_python_number_for_a_scalar():
    made = with_rule(lambda dy: (3.0, 4.0))
    x, w = leaf(1.0), leaf(1.0)
    assert [float(g) for g in grad(made(x, w), [x, w])] == [3, 4]


def test_a_gradient_in_another_dtype_becomes_its_inputs():
    made = with_rule(lambda dy: (dy.astype(np.float64), dy.astype(np.float16)))
    x, w = leaf([1.0, 2.0]), leaf([1.0, 2.0])
    assert [g.dtype for g in grad(made(x, w).sum(), [x, w])] == [np.float32, np.float32]


def test_a_rule_gets_exactly_what_its_parameters_name():
    got = {}

    def made(x, w, *, scale=2.0, offset):
        return keep(x * w * scale + offset, product=x * w)

    made = declare("x (*), w (*) -> y (*)", made)

    @made.backward
    def rule(dy, y, product, x, w_shape, x_dtype, scale, offset, needs, w):
        got.update(
            y=y, product=product, x=x, w_shape=w_shape, x_dtype=x_dtype, scale=scale, offset=offset, needs=needs, w=w
        )
        return dy * w * scale, None

    x = leaf([1.0, 2.0])
    y = made(x, 3.0, offset=1.0)
    np.testing.assert_array_equal(grad(y.sum(), x), [6, 6])
    np.testing.assert_array_equal(got["product"], [3, 6])
    assert got["y"] is y.data and got["x"] is x.data
    assert (got["w_shape"], got["x_dtype"], got["scale"], got["offset"]) == ((), np.float32, 2.0, 1.0)
    assert (got["needs"], got["w"]) == ((True, False), 3)


def test_a_rule_over_any_number_of_inputs_gets_lists():
    def total(*xs, weight=1.0):
        return weight * np.add.reduce(xs)

    made = declare("xs (*) -> y (*)", total, formula="y = Σ x", adjoint="x̄ = ȳ")

    @made.backward
    def rule(dy, xs, xs_shape, needs, weight):
        assert [x.shape for x in xs] == xs_shape and len(needs) == len(xs)
        return tuple(weight * dy for _ in xs)

    xs = [leaf([1.0, 2.0]) for _ in range(3)]
    for call in (made(*xs, weight=5.0), made(xs, weight=5.0), made(tuple(xs), weight=5.0)):
        np.testing.assert_array_equal(grad(call.sum(), xs), np.full((3, 2), 5))


@pytest.mark.parametrize(("kept", "listed"), [({}, "nothing"), ({"other": 1}, "other")])
def test_a_rule_with_an_unknown_parameter_is_refused_by_name(kept, listed):
    def made(x, w):
        return keep(x * w, **kept) if kept else x * w

    made = declare("x (*), w (*) -> y (*)", made)
    made.backward(lambda dy, xhat: (dy, dy))
    assert made(Tensor([1.0]), 2.0).item() == 2
    words = rf"the rule of made has a parameter 'xhat', which is none of these: .*keep\(\) \({listed}\);"
    with pytest.raises(GraphError, match=words):
        made(leaf([1.0]), 2.0)


# The forward


@pytest.mark.parametrize("result", [None, [1.0], "text"])
def test_a_forward_that_returns_no_array_is_refused(result):
    def made(x, w):
        return result

    with pytest.raises(GraphError, match="the forward of made returned .*; it must return an array"):
        declare("x (*), w (*) -> y (*)", made)(leaf([1.0]), 1.0)


def test_what_goes_wrong_inside_a_forward_points_there():
    def made(x, w):
        return x.reshape(7)

    with pytest.raises(ShapeError, match=r"made got \(2,\) float32, \(\) float32; it takes x \(\*\), w") as caught:
        declare("x (*), w (*) -> y (*)", made)(leaf([1.0, 2.0]), 1.0)
    assert isinstance(caught.value.__cause__, ValueError)
    assert any("reshape(7)" in line for line in traceback.format_exception(caught.value.__cause__))


def test_integers_that_do_not_fit_are_reported_as_they_came():
    weight = leaf(np.ones((3, 5), np.float32))
    with pytest.raises(ShapeError, match=r"linear got \(5,\) int64, \(3, 5\) float32"):
        ops.linear(np.zeros(5, np.int64), weight)


def test_an_input_with_a_default_may_be_left_out():
    def made(x, w=None):
        return x if w is None else x * w

    made = declare("x (*), w (*) -> y (*)", made)
    made.backward(lambda dy, w, needs: (dy if w is None else dy * w, None))
    x = leaf([2.0])
    with checked():
        np.testing.assert_array_equal(grad(made(x).sum(), x), [1])
        np.testing.assert_array_equal(grad(made(x, 3.0).sum(), x), [3])


def test_a_forward_is_told_which_inputs_want_a_gradient():
    told = []

    def made(x, w, *, needs):
        told.append(needs)
        return x * w

    made = declare("x (*), w (*) -> y (*)", made)
    made.backward(lambda dy, x, w: (dy * w, dy * x))
    made(leaf([1.0]), Tensor([1.0]))
    made(np.ones(1), np.ones(1))
    with no_grad():
        made(leaf([1.0]), leaf([1.0]))
    assert told == [(True, False), (False, False), (False, False)]


def test_an_op_takes_bare_arrays_and_gives_bare_arrays():
    made = declare("x (*), w (*) -> y (*)")
    assert type(made(np.ones(2), np.ones(2))) is np.ndarray


def test_an_unknown_or_missing_argument_is_refused_with_the_call():
    made = declare("x (*), w (*) -> y (*)")
    with pytest.raises(TypeError, match="made takes .* unexpected keyword argument 'scale'"):
        made(leaf([1.0]), 1.0, scale=2)
    with pytest.raises(TypeError, match=r"made takes .*; missing a required argument: .w."):
        made(leaf([1.0]))


def test_a_shape_line_with_a_slip_is_quoted_in_the_error():
    with pytest.raises(ShapeError, match=r"'x \(\*\), w \(\*\) -> y \(\*' is none: each name is followed by its sizes"):
        declare("The product.\n\n    x (*), w (*) -> y (*\n")


def test_a_rule_whose_cotangent_does_not_come_first_is_told_that_the_first_is_the_cotangent():
    with pytest.raises(SignatureError, match=r"the first parameter of a rule is the cotangent, and 'x' is an input of"):
        with_rule(lambda x, dy: (dy, dy))


@pytest.mark.parametrize(
    ("equals", "words"),
    [
        (lambda x, *, eps=1e-5: x, r"takes \(x, \*, eps=0.1\), and the composition in equals= \(x, \*, eps=1e-05\)"),
        (lambda x, *, epsilon=0.1: x, r"equals= \(x, \*, epsilon=0.1\); give both the same arguments and defaults"),
        ("composed", "equals is a function of ops; got 'composed'"),
    ],
    ids=["another default", "another name", "no function"],
)
def test_a_composition_with_other_arguments_is_refused(equals, words):
    def made(x, *, eps=0.1, needs):
        """x (*) -> y (*)"""
        return x

    with pytest.raises(SignatureError, match=f"op made.*{words}"):
        op("y = x", "x̄ = ȳ", equals=equals)(made)
