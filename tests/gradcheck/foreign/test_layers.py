"""A layer with forward and backward methods is checked in one line, with the parameters that it holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanograd_llm.errors import NanogradError, ShapeError
from nanograd_llm.gradcheck import check_gradient

R = np.random.default_rng(0)
X, W, B = R.normal(size=(3, 4)), R.normal(size=(4, 5)), R.normal(size=5)


class Linear:
    """Stores the gradients as attributes."""

    def __init__(self):
        self.W, self.b, self.x = W.copy(), B.copy(), None

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dout):
        self.dW = self.x.T @ dout
        self.db = dout.sum(axis=0)
        return dout @ self.W.T


class Accumulating(Linear):
    """Adds to gradients that stand there already."""

    def __init__(self):
        super().__init__()
        self.W_grad, self.b_grad = np.ones_like(W), np.ones_like(B)

    def backward(self, dout):
        self.W_grad += self.x.T @ dout
        self.b_grad += dout.sum(axis=0)
        return dout @ self.W.T


class Lists:
    """Holds parameters and gradients in two lists, and writes the latter in place."""

    def __init__(self):
        self.params, self.grads = [W, B], [np.zeros_like(W), np.zeros_like(B)]

    def forward(self, x):
        self.x = x
        return x @ self.params[0] + self.params[1]

    def backward(self, dout):
        self.grads[0][...] = self.x.T @ dout
        self.grads[1][...] = dout.sum(axis=0)
        return dout @ self.params[0].T


class Dicts:
    """Holds them in dicts; the attribute is the array of the dict."""

    def __init__(self):
        self.W = W.copy()
        self.params, self.grads = {"W": self.W, "b": B}, {}

    def forward(self, x):
        self.x = x
        return x @ self.W + self.params["b"]

    def backward(self, dout):
        self.grads = {"W": self.x.T @ dout, "b": dout.sum(axis=0)}
        return dout @ self.W.T


class Variable:
    def __init__(self, data):
        self.data, self.grad = data, None


class Variables(Linear):
    """Holds objects with data and grad."""

    def __init__(self):
        self.W, self.b = Variable(W), Variable(B)

    def forward(self, x):
        self.x = x
        return x @ self.W.data + self.b.data

    def backward(self, dout):
        self.W.grad, self.b.grad = self.x.T @ dout, dout.sum(axis=0)
        return dout @ self.W.data.T


class Returning(Linear):
    """Returns all gradients."""

    def backward(self, dout):
        return dout @ self.W.T, self.x.T @ dout, dout.sum(axis=0)


class Relu:
    def forward(self, x):
        self.mask = x > 0
        return x * self.mask

    def backward(self, dout):
        return dout * self.mask


class Net:
    def __init__(self, *layers):
        self.layers = list(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dout):
        for layer in reversed(self.layers):
            dout = layer.backward(dout)
        return dout


class Loss:
    def forward(self, x, target):
        self.off = x - target
        return (self.off**2).mean()

    def backward(self):
        return 2 * self.off / self.off.size


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (Linear, ["W", "b", "x"]),
        (Accumulating, ["W", "b", "x"]),
        (Lists, ["params[0]", "params[1]", "x"]),
        (Dicts, ["params['W']", "params['b']", "x"]),
        (Variables, ["W.data", "b.data", "x"]),
        (Returning, ["W", "b", "x"]),
    ],
)
def test_a_layer_and_its_parameters_are_checked_however_it_holds_them(layer: Any, names: list[str]) -> None:
    report = check_gradient(layer(), X)
    assert report.passed, report
    assert sorted(finding.name for finding in report.findings) == sorted(names)
    assert [note.split()[:2] for note in report.notes] == [["checked", "at"]]


def test_a_layer_may_be_handed_over_as_its_two_methods() -> None:
    layer = Linear()
    report = check_gradient(layer.forward, layer.backward, X)
    assert report.passed and len(report.findings) == 3


def test_a_layer_may_return_its_cache_and_take_it_back() -> None:
    class Affine:
        def __init__(self, factor: float) -> None:
            self.W, self.b, self.factor = R.normal(size=(3, 2)), R.normal(size=2), factor

        def forward(self, x):
            return x @ self.W + self.b, x

        def backward(self, dout, cache):
            return dout @ self.W.T, self.factor * cache.T @ dout, dout.sum(axis=0)

    x = R.normal(size=(4, 3))
    right, wrong = Affine(1.0), Affine(1.001)
    for report in (check_gradient(right, x), check_gradient(right.forward, x, backward=right.backward)):
        assert [(f.name, f.verdict) for f in report.findings] == [("W", "right"), ("b", "right"), ("x", "right")]
    assert [f.name for f in check_gradient(wrong, x).findings if f.verdict == "wrong"] == ["W"]


def test_the_layer_stays_as_it_is() -> None:
    layer = Accumulating()
    before = {name: np.copy(value) for name, value in vars(layer).items() if value is not None}
    assert check_gradient(layer, X).passed
    assert layer.x is None
    assert all(np.array_equal(vars(layer)[name], value) for name, value in before.items())


@pytest.mark.parametrize(("mistake", "name"), [("dW", "W"), ("db", "b")], ids=["in the weights", "in the bias"])
def test_a_mistake_in_a_stored_gradient_is_found(mistake: str, name: str) -> None:
    class Wrong(Linear):
        def backward(self, dout):
            dx = super().backward(dout)
            setattr(self, mistake, getattr(self, mistake) * (1 + 1e-8))
            return dx

    report = check_gradient(Wrong(), X)
    assert [finding.name for finding in report.findings if finding.verdict == "wrong"] == [name]


def test_a_whole_network_is_a_layer() -> None:
    class Wrong(Linear):
        def __init__(self):
            self.W, self.b = W.T.copy(), B[:4].copy()

        def backward(self, dout):
            dx = super().backward(dout)
            self.db = dout.mean(axis=0)
            return dx

    report = check_gradient(Net(Linear(), Relu(), Wrong()), X)
    wrong = [finding.name for finding in report.findings if finding.verdict == "wrong"]
    assert wrong == ["layers[2].b"] and len(report.findings) == 5


def test_a_loss_whose_backward_takes_nothing_is_checked() -> None:
    assert check_gradient(Loss(), X, R.integers(0, 2, X.shape)).passed
    Wrong = type("Wrong", (Loss,), {"backward": lambda self: self.off / self.off.size})
    assert "off by the factor 0.5" in str(check_gradient(Wrong(), X, R.integers(0, 2, X.shape)))


def test_a_parameter_without_a_gradient_does_not_pass_unless_it_is_named_unused() -> None:
    class Forgetful(Linear):
        def backward(self, dout):
            self.dW = self.x.T @ dout
            return dout @ self.W.T

    report = check_gradient(Forgetful(), X)
    assert "Forgetful.backward stores no gradient for b: not checked; store it as db" in report.problems[0]
    assert not report.passed and check_gradient(Forgetful(), X, unused=["b"]).passed


def test_gradients_under_unknown_names_do_not_pass() -> None:
    class Odd(Linear):
        def backward(self, dout):
            self.slope_of_W, self.slope_of_b = self.x.T @ dout, dout.sum(axis=0)
            return dout @ self.W.T

    report = check_gradient(Odd(), X)
    assert not report.passed and "stores no gradient for W, b" in report.problems[0]


def test_an_integer_parameter_with_a_gradient_does_not_pass() -> None:
    layer = Linear()
    layer.W = np.ones(layer.W.shape, int)
    report = check_gradient(layer, X)
    assert report.problems == ("W is integer, so its gradient was not checked: give floats",) and not report.passed


def test_an_array_that_does_not_move_the_result_is_no_parameter() -> None:
    class Counting(Linear):
        def __init__(self):
            super().__init__()
            self.running_mean = np.zeros(4)

    assert check_gradient(Counting(), X).passed


def test_an_array_that_forward_stores_is_no_parameter() -> None:
    class Storing(Linear):
        def backward(self, dout):
            self.dx = super().backward(dout)
            return self.dx

    layer = Storing()
    layer.backward(layer.forward(X))
    assert check_gradient(layer, X).passed


def test_a_stored_gradient_of_another_shape_is_one_clear_error() -> None:
    class Wide(Linear):
        def backward(self, dout):
            dx = super().backward(dout)
            self.db = dout.sum(axis=0, keepdims=True)
            return dx

    with pytest.raises(ShapeError, match=r"Wide.backward stored in db an array \(1, 5\) for b \(5,\)"):
        check_gradient(Wide(), X)


def test_a_layer_that_raises_is_one_clear_error() -> None:
    with pytest.raises(NanogradError, match="Linear raised ValueError: matmul"):
        check_gradient(Linear(), X.T)
    Silent = type("Silent", (Linear,), {"backward": lambda self, dout: None})
    with pytest.raises(NanogradError, match="Silent.backward returned None; return the gradient of x"):
        check_gradient(Silent(), X)


def test_dropout_with_a_generator_of_its_own_draws_the_same_mask_in_each_call() -> None:
    class Dropout:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def forward(self, x):
            self.mask = (self.rng.random(x.shape) > 0.5) / 0.5
            return x * self.mask

        def backward(self, dout):
            return dout * self.mask

    assert check_gradient(Dropout(), X).passed


class Doubled:
    """Its result and gradient are stored, or returned, or one of each."""

    def __init__(self, returns: str):
        self.returns, self.b = returns, np.ones((1, 4))

    def forward(self, x):
        self.output = 2 * x + self.b
        return self.output if "forward" in self.returns else None

    def backward(self, dy):
        self.dinputs, self.db = 2 * dy, dy.sum(axis=0)
        return self.dinputs if "backward" in self.returns else None


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        ("", "Doubled.forward returned None; return the output"),
        ("forward", "Doubled.backward returned None; return the gradient of x: return self.dinputs"),
        ("forward, backward", r"Doubled.backward stored in db an array \(4,\) for b \(1, 4\); expected \(1, 4\)"),
    ],
)
def test_a_layer_that_stores_instead_of_returning_is_one_clear_error(returns: str, message: str) -> None:
    with pytest.raises(NanogradError, match=message):
        check_gradient(Doubled(returns), np.ones((3, 4)))


def test_a_class_is_no_layer() -> None:
    with pytest.raises(NanogradError, match=r"Doubled is a class; give a layer that is made: check_gradient\(Doubled"):
        check_gradient(Doubled, np.ones((3, 4)))


class Tanh:
    def __init__(self, factor=1):
        self.factor = factor

    def forward(self, x):
        self.y = np.tanh(x)
        return self.y

    def backward(self, dy):
        return self.factor * dy * (1 - self.y**2)


class Shift:
    def forward(self, x):
        return np.roll(x, 1, axis=-1)

    def backward(self, dy):
        return np.roll(dy, -1, axis=-1)


class Network:
    """Calls its layers one after the other; `order` says in which order backward does."""

    def __init__(self, *layers, order=-1):
        self.layers, self.order = list(layers), order

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy):
        for layer in self.layers[:: self.order]:
            dy = layer.backward(dy)
        return dy


@pytest.mark.parametrize(
    ("layers", "culprit"),
    [
        ([Linear(), Tanh(), Tanh(2)], "layers[2], Tanh"),
        ([Linear(), Network(Tanh(), Tanh(3))], "layers[1], layers[1], Tanh"),
    ],
)
def test_of_a_network_the_layer_that_is_wrong_is_named(layers: list[Any], culprit: str) -> None:
    report = check_gradient(Network(*layers), X)
    assert not report.passed
    assert [(found.op, found.inputs) for found in report.culprits] == [(culprit, ("x",))]
    assert f"the rule of {culprit} is wrong for x\n" in str(report)


def test_of_a_network_whose_layers_are_right_the_network_itself_is_the_culprit() -> None:
    report = check_gradient(Network(Shift(), Network(Tanh()), order=1), X)
    assert [culprit.op for culprit in report.culprits] == ["Network"]
    assert "right by themselves, with the inputs that they get in Network: layers[0], layers[1]" in report.notes


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (1.001, "wrong")])
def test_a_stored_gradient_in_float32_is_compared_as_float32(dtype: type, factor: float, verdict: str) -> None:
    class Narrow(Linear):
        def backward(self, dy):
            dx = super().backward(dy)
            self.dW = (factor * self.dW).astype(np.float32)
            return dx

    layer = Narrow()
    layer.W = layer.W.astype(dtype)
    report = check_gradient(layer, X.astype(dtype))
    assert {finding.name: finding.verdict for finding in report.findings}["W"] == verdict, report
    assert not report.problems
    assert any("gradient of W that Narrow gives is float32" in note for note in report.notes)


def test_a_parameter_in_a_dict_is_to_be_stored_in_grads() -> None:
    class Forgets:
        def __init__(self):
            self.params = {"W": np.ones((4, 2))}

        def forward(self, x):
            return x @ self.params["W"]

        def backward(self, dy):
            return dy @ self.params["W"].T

    (problem,) = check_gradient(Forgets(), np.ones((3, 4))).problems
    assert "store it as grads['W']" in problem
    with pytest.raises(NanogradError, match="unused= names .*parms.*; did you mean .*params"):
        check_gradient(Forgets(), np.ones((3, 4)), unused=["parms['W']"])


def test_where_a_gradient_is_to_be_stored_is_a_place_where_it_is_found():
    class Layer:
        def __init__(self, stores):
            self.weights, self.stores = np.random.default_rng(0).standard_normal((4, 3)), stores

        def forward(self, x):
            self.x = x
            return x @ self.weights

        def backward(self, dy):
            if self.stores:
                self.dweights = self.x.T @ dy
            return dy @ self.weights.T

    x = np.random.default_rng(1).standard_normal((2, 4))
    assert "store it as dweights, or" in check_gradient(Layer(False), x).problems[0]
    assert check_gradient(Layer(True), x).passed


def test_a_float_target_of_a_loss_may_be_named_unused() -> None:
    class Squares:
        def forward(self, y, target):
            self.off = y - target
            return (self.off**2).mean()

        def backward(self, dy=1.0):
            return dy * 2 * self.off / self.off.size

    x = R.normal(size=(3, 4))
    report = check_gradient(Squares(), x, x + 1, unused=["target"])
    assert report.passed and [finding.name for finding in report.findings] == ["y"]
    with pytest.raises(NanogradError, match=r"or name inputs that are constants, as in unused=\['target'\]"):
        check_gradient(Squares(), x, x + 1)


def test_a_layer_whose_backward_has_another_name_is_refused_by_that_name() -> None:
    class Typo:
        def forward(self, x):
            return x

        def backwards(self, dy):
            return dy

    with pytest.raises(NanogradError, match="its backward is missing: is it backwards?"):
        check_gradient(Typo(), np.ones(3))
    with pytest.raises(NanogradError, match="Linear is a layer, which computes its gradient by its own backward"):
        check_gradient(Linear(), np.cos, X)


class Product:
    """x @ W, whose gradient by x is 99 times what comes from upstream."""

    def __init__(self):
        self.W = R.normal(size=(2, 2))

    def forward(self, x):
        self.x = x
        return x @ self.W

    def backward(self, dy):
        self.dW = self.x.T @ dy
        return 99 * dy


def test_a_gradient_that_a_layer_returns_for_an_integer_input_does_not_pass() -> None:
    report = check_gradient(Product(), np.array([[3, 4], [1, 2]]))
    assert report.problems == ("x is integer, so its gradient was not checked: give floats",) and not report.passed


def test_a_gradient_for_an_integer_input_beside_a_float_one_does_not_pass() -> None:
    class Power(Product):
        def forward(self, x, n):
            self.n = n
            return super().forward(x) ** n

        def backward(self, dy):
            y = self.x @ self.W
            dy = self.n * y ** (self.n - 1) * dy
            self.dW = self.x.T @ dy
            return dy @ self.W.T, np.ones_like(y)

    report = check_gradient(Power(), np.array([[3.0, 4.0], [1.0, 2.0]]), 2)
    assert report.problems == ("n is integer, so its gradient was not checked: give floats",)


@pytest.mark.parametrize("returned", [None, (), 0.0])
def test_a_layer_of_integers_alone_may_return_no_gradient_of_them(returned) -> None:
    class Rows(Product):
        def forward(self, ids):
            self.ids = ids
            return self.W[ids]

        def backward(self, dy):
            self.dW = np.zeros_like(self.W)
            np.add.at(self.dW, self.ids, dy)
            return returned

    assert check_gradient(Rows(), np.array([1, 0, 1])).passed


def test_a_layer_that_keeps_what_its_first_call_stored_is_told_so() -> None:
    class Stale(Product):
        def forward(self, x):
            if not hasattr(self, "x"):
                self.x = x
            return x @ self.W

        def backward(self, dy):
            self.dW = self.x.T @ dy
            return dy @ self.W.T

    report = check_gradient(Stale(), R.normal(size=(3, 2)))
    assert not report.passed and "uses what an earlier call stored" in report.problems[0]


@pytest.mark.parametrize("owner", ["the class", "the layer"])
def test_what_forward_stores_belongs_to_the_layer_not_to_its_class(owner: str) -> None:
    class Square:
        stored: dict[Any, Any] = {}

        def forward(self, x):
            if owner == "the layer":
                self.stored = {}
            self.stored["x"] = x
            return x**2

        def backward(self, dy):
            return 2 * self.stored["x"] * dy

    problems = check_gradient(Square(), X).problems
    assert len(problems) == (owner == "the class")
    assert all("it shares what forward stored, as in its class" in problem for problem in problems)
