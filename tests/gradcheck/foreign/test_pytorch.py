"""Functions of PyTorch are handed over as they are: tensors, Modules with their parameters, autograd Functions.

pip install ".[test,parity]" && pytest -m parity tests/gradcheck/foreign
"""

from __future__ import annotations

import functools
import types
from typing import Any

import numpy as np
import pytest

from nanograd_llm.errors import ConfigError, DtypeError, GraphError, NanogradError, SignatureError
from nanograd_llm.gradcheck import check_gradient, gradcheck

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torch() -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch


@pytest.fixture(scope="module")
def x(torch: Any) -> Any:
    return torch.randn(3, 4)


def scaled_square(torch: Any, factor: float) -> Any:
    """A torch.autograd.Function, x², whose gradient is this many times too large."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return factor * 2 * x * dy

    return Square


def verdicts(report: Any) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in report.findings}


def test_a_wrong_function_that_torch_passes_in_fast_mode_is_caught(torch: Any) -> None:
    class Softmax(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            e = torch.exp(x - x.max() if not x.is_complex() else x)
            y = e / e.sum()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, dy):
            (y,) = ctx.saved_tensors
            return 2 * y * (dy - (dy * y).sum())

    x = torch.randn(1000, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Softmax.apply, (x,), fast_mode=True)
    report = check_gradient(Softmax, x)
    assert verdicts(report) == {"x": "wrong"}
    assert "looks like: off by the factor 2" in str(report)
    (culprit,) = report.culprits
    assert culprit.place == "computed by Softmax.backward" and "test_pytorch.py:" in culprit.rule


@pytest.mark.parametrize("form", ["the class", "its apply", "a function"])
@pytest.mark.parametrize("factor", [1, 1 + 1e-9])
def test_an_autograd_function_is_checked_by_complex_step(torch: Any, x: Any, form: str, factor: float) -> None:
    square = scaled_square(torch, factor)
    f = {"the class": square, "its apply": square.apply, "a function": lambda x: square.apply(x).sum(dim=0)}
    report = check_gradient(f[form], x)
    assert verdicts(report) == {"x": "right" if factor == 1 else "wrong"}
    assert report.findings[0].method == "complex step"
    assert [culprit.place for culprit in report.culprits] == ["computed by Square.backward"] * (factor != 1)


def test_the_parameters_of_a_module_are_checked_and_named(torch: Any, x: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    model[2].bias.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    report = check_gradient(model, x)
    assert report.passed
    assert set(verdicts(report)) == {"0.weight", "0.bias", "2.weight", "input"}
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32 and torch.equal(p, before[name]) and p.grad is None


def test_the_modules_that_a_function_or_method_uses_are_found(torch: Any, x: Any) -> None:
    model = torch.nn.Linear(4, 2)
    assert set(verdicts(check_gradient(lambda x: model(x).sum(), x))) == {"model.weight", "model.bias", "x"}

    class Regression(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(4, 1)

        def loss(self, x, target):
            return ((self.inner(x) - target) ** 2).mean()

    report = check_gradient(Regression().loss, x, torch.zeros(3, 1, dtype=torch.int64))
    assert report.passed and set(verdicts(report)) == {"inner.weight", "inner.bias", "x"}


def test_a_parameter_that_no_gradient_reaches_is_wrong(torch: Any, x: Any) -> None:
    class Cut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)).detach())

    report = check_gradient(Cut(), x)
    wrong = {name for name, verdict in verdicts(report).items() if verdict == "wrong"}
    assert wrong == {"a.weight", "a.bias", "x"}
    assert "no gradient arrives at all" in str(report)
    assert "no gradient goes through .detach(), .data, .item(), float() and torch.no_grad()" in report.notes
    assert "a.bias" not in verdicts(check_gradient(Cut(), x, unused=["a.bias"]))


@pytest.mark.parametrize("function", ["the Function", "part of a function"])
def test_a_backward_that_writes_into_its_cotangent_is_a_problem(torch: Any, x: Any, function: str) -> None:
    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            dy[x < 0] = 0
            return dy

    f = Relu if function == "the Function" else lambda x: Relu.apply(x).sin()
    report = check_gradient(f, x)
    assert set(verdicts(report).values()) == {"right"} and not report.passed
    (problem,) = report.problems
    assert problem.startswith("Relu.backward writes into its cotangent")


@pytest.mark.parametrize("owner", ["the class", "the context"])
def test_a_backward_that_uses_what_a_later_call_overwrites_does_not_pass(torch: Any, x: Any, owner: str) -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            (ctx if owner == "the context" else Square).stored = x
            return x * x

        @staticmethod
        def backward(ctx, dy):
            return 2 * (ctx if owner == "the context" else Square).stored * dy

    for f in (Square, lambda x: Square.apply(x).sin()):
        problems = check_gradient(f, x).problems
        assert bool(problems) == (owner == "the class")
        assert all("called again in between: it uses what calls share" in problem for problem in problems)


def test_a_backward_that_draws_random_numbers_does_not_pass(torch: Any, x: Any) -> None:
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return dy * x.cos() * (1 + 1e-7 * torch.rand(1))

    state = torch.get_rng_state()
    (problem,) = check_gradient(Sine, x).problems
    assert "two backward passes over one tape" in problem and "draws random numbers" in problem
    assert torch.equal(state, torch.get_rng_state())


def test_a_layer_that_is_made_of_nothing_that_takes_complex_numbers_is_checked_by_differences(torch, x):
    report = check_gradient(torch.nn.MaxPool1d(2), x)
    assert report.passed and {finding.method for finding in report.findings} == {"differences"}


@pytest.mark.parametrize(
    "name",
    [
        "softmax(x, -1)",
        "log_softmax(x, -1)",
        "gelu(x)",
        "softplus(x)",
        "relu(x).amax(0)",
        "leaky_relu(x).max(-1, keepdim=True).values + x.min()",
        "hardtanh(x).maximum(0.1 * x).minimum(x**2)",
        "layer_norm(x, (4,))",
        "batch_norm(x, None, None, training=True)",
        "group_norm(x, 2)",
        "huber_loss(x, x.flip(0))",
        "binary_cross_entropy_with_logits(x, x**2)",
        "cross_entropy(x, x[:, 0].long().abs())",
        "scaled_dot_product_attention(x[None], x[None] * 2, x[None], is_causal=True)",
    ],
)
def test_what_pytorch_refuses_on_complex_numbers_is_computed_from_what_it_is_made_of(torch, x, name):
    report = check_gradient(eval(f"lambda x: F.{name}", {"F": torch.nn.functional}), x)
    assert report.passed and {finding.method for finding in report.findings} == {"complex step"}


def attention(torch: Any, softmax: Any) -> Any:
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return softmax(self.q(x) @ self.k(x).mT / 2) @ self.v(x)

    torch.manual_seed(0)
    return Attention().double()


def by_hand(z):
    e = (z - z.max(-1, keepdim=True).values).exp()
    return e / e.sum(-1, keepdim=True)


def test_attention_near_zero_is_right_though_differences_lose_its_gradient_in_rounding(torch):
    x = 1e-3 * torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert check_gradient(attention(torch, by_hand), x).passed


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_attention_whose_softmax_is_wrong_is_wrong_near_zero_too(torch, size):
    class Softmax(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            p = torch.softmax(z, -1)
            ctx.save_for_backward(p)
            return p

        @staticmethod
        def backward(ctx, dp):
            (p,) = ctx.saved_tensors
            return 2 * p * (dp - (dp * p).sum(-1, keepdim=True))

    x = size * torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = verdicts(check_gradient(attention(torch, Softmax.apply), x, explain=False))
    assert found == {"q.weight": "wrong"}


def test_dropout_and_batch_statistics_are_checked_while_training_and_leave_the_module_as_it_was(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5))
    state = torch.get_rng_state()
    assert check_gradient(model, torch.randn(3, 2, generator=torch.Generator().manual_seed(1))).passed
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[1].running_mean, torch.zeros(3)) and model[1].num_batches_tracked == 0


def test_an_embedding_has_only_parameters_to_check(torch: Any) -> None:
    assert verdicts(check_gradient(torch.nn.Embedding(5, 3), torch.tensor([0, 2, 0]))) == {"weight": "right"}


def test_inputs_that_require_a_gradient_are_checked_and_others_are_constants(torch: Any, x: Any) -> None:
    target = torch.zeros(3, 4)
    report = check_gradient(torch.nn.functional.mse_loss, x.clone().requires_grad_(), target)
    assert verdicts(report) == {"input": "right"}
    assert set(verdicts(check_gradient(torch.nn.functional.mse_loss, x, target))) == {"input", "target"}


def test_numpy_arrays_may_be_given_to_a_module(torch: Any) -> None:
    assert check_gradient(torch.nn.Linear(4, 2), np.ones((3, 4))).passed


def test_weights_in_float32_that_a_function_refers_to_are_no_obstacle(torch: Any, x: Any) -> None:
    w = torch.randn(4, 2)
    report = check_gradient(lambda x: torch.tanh(x @ w), x)
    assert report.passed and report.findings[0].method == "complex step"


@pytest.mark.parametrize("form", ["the class", "a function", "a Module"])
@pytest.mark.parametrize("weight", ["float32", "float64"])
@pytest.mark.parametrize(("given", "factor"), [("float32", 1), ("float64", 1), ("float64", 2)])
def test_a_backward_may_refer_to_weights_of_another_dtype(torch, form, weight, given, factor):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 3, dtype=getattr(torch, weight), generator=generator)
    x = torch.randn(2, 3, dtype=getattr(torch, given), generator=generator)

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.sin(x @ w)

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return factor * (dy * torch.cos(x @ w)) @ w.T

    module = type("Module", (torch.nn.Module,), {"forward": lambda self, x: Layer.apply(x).exp()})
    f = {"the class": Layer, "a function": lambda x: (Layer.apply(x) ** 2).sum(), "a Module": module()}[form]
    report = check_gradient(f, x)
    assert verdicts(report) == {"x": "right" if factor == 1 else "wrong"} and report.passed == (factor == 1)
    assert [culprit.place for culprit in report.culprits] == ["computed by Layer.backward"] * (factor != 1)


def test_the_rounding_of_float32_inside_a_function_is_no_mistake_and_hides_no_large_one(torch: Any, x: Any) -> None:
    def narrow(f):
        return lambda x: f(x.float()).double()

    assert "wrong" not in verdicts(check_gradient(narrow(torch.tanh), x[:1], jacobian=0)).values()
    wrong = scaled_square(torch, 1.01).apply
    assert verdicts(check_gradient(narrow(wrong), x[:1], jacobian=0)) == {"x": "wrong"}


HOLDERS: dict[str, tuple[str, Any]] = {
    "a variable": ("net.w", lambda net: lambda x: net(x)),
    "a list in a dict": ("nets['a'][0].w", lambda net: (lambda nets: lambda x: nets["a"][0](x))({"a": [net]})),
    "a default": ("net.w", lambda net: lambda x, net=net: net(x)),
    "a partial": ("net.w", lambda net: functools.partial(lambda net, x: net(x), net)),
    "an object's method": ("its.net.w", lambda net: Holder(its=Holder(net=net)).loss),
    "a callable object": ("net.w", lambda net: Holder(net=net)),
    "another function": ("net.w", lambda net: (lambda helper: lambda x: helper(x).sum())(lambda x: net(x))),
    "a tensor": ("w", lambda net: (lambda w, apply: lambda x: apply(x, w))(net.w, net.function.apply)),
    "a module": ("tensor (4, 2)", lambda net: (lambda module: lambda x: module.net(x))(in_module(net))),
}


class Holder:
    def __init__(self, **held):
        vars(self).update(held, other=held)

    def loss(self, x):
        return (self.its.net(x) ** 2).mean()

    def __call__(self, x):
        return self.net(x)


def in_module(net: Any) -> types.ModuleType:
    module = types.ModuleType("module")
    module.net = net  # type: ignore[attr-defined]
    return module


def linear(torch: Any, factor: float) -> Any:
    """A Module x @ w, the gradient of whose w is this many times too large."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx, dy):
            x, w = ctx.saved_tensors
            return dy @ w.T, factor * x.T @ dy

    class Linear(torch.nn.Module):
        function = Product

        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            return Product.apply(x, self.w)

    return Linear()


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_parameter_that_a_gradient_reaches_is_checked_wherever_it_is_held(torch, x, holder, factor):
    name, make = HOLDERS[holder]
    net = linear(torch, factor)
    before = net.w.detach().clone()
    assert verdicts(check_gradient(make(net), x)) == {name: "right" if factor == 1 else "wrong", "x": "right"}
    assert net.w.dtype == torch.float32 and net.w.requires_grad and net.w.grad is None and torch.equal(net.w, before)
    assert verdicts(check_gradient(make(net), x, unused=[name])) == {"x": "right"}


def test_a_module_among_the_inputs_is_checked_and_as_the_first_is_no_gradient(torch, x):
    net, found = linear(torch, 2), {"net.w": "wrong", "x": "right"}
    assert verdicts(check_gradient(lambda x, net: net(x), x, net)) == found
    assert verdicts(check_gradient(lambda net, x: net(x), net, x)) == found


def test_a_parameter_that_is_itself_the_result_is_checked(torch, x):
    net = linear(torch, 1)
    assert verdicts(check_gradient(lambda x: (net.w, 2 * x), x)) == {"net.w": "right", "x": "right"}


def test_two_tensors_of_one_name_are_told_apart(torch, x):
    one, other = in_module(linear(torch, 1)), in_module(linear(torch, 2))
    found = verdicts(check_gradient(lambda x: one.net(x) + other.net(x), x))
    assert {*found} == {"tensor (4, 2)", "tensor (4, 2) #2", "x"} and sorted(found.values()) == ["right"] * 2 + [
        "wrong"
    ]


def test_a_function_that_differentiates_by_parameters_itself_is_right(torch, x):
    net = torch.nn.Linear(4, 1)

    def after_a_step(x):
        (slope,) = torch.autograd.grad((net(x) ** 2).sum(), net.weight, create_graph=True)
        return x @ (net.weight - 0.1 * slope).T

    assert check_gradient(after_a_step, x).passed
    jacobian = torch.autograd.functional.jacobian
    assert check_gradient(lambda x: jacobian(lambda x: net(x).tanh(), x, create_graph=True), x).passed


def test_a_module_in_float32_whose_activations_are_recomputed_is_right(torch, x):
    class Recomputed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Tanh())
            self.register_buffer("scale", torch.ones(3))

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(lambda x: self.inner(x) * self.scale, x, use_reentrant=False)

    assert check_gradient(Recomputed(), x).passed


def test_only_what_a_function_loads_is_checked_not_what_has_the_name_of_an_attribute(torch, x):
    scope: dict[str, Any] = {"weight": torch.nn.Linear(3, 3), "net": torch.nn.Linear(4, 2), "x": torch.nn.Linear(1, 1)}
    exec("def f(x): return net(x) * net.weight.sum()", scope)
    assert set(verdicts(check_gradient(scope["f"], x))) == {"net.weight", "net.bias", "x"}


def test_tensors_whose_gradient_cannot_be_checked_do_not_pass(torch, x):
    product = torch.randn(4, 2, requires_grad=True) * 2
    for f, name in [
        (lambda x: x @ torch.ones(4, 2, requires_grad=True), "tensor (4, 2)"),
        (lambda x: x @ product, "the result of MulBackward0"),
    ]:
        (problem,) = check_gradient(f, x).problems
        assert f"a gradient of <lambda> reaches {name}" in problem and "not checked" in problem
        assert check_gradient(f, x, unused=[name]).passed


def test_an_unknown_name_is_answered_with_each_known_name_once(torch, x):
    with pytest.raises(ConfigError, match="which Square does not have; it may name 'x'$"):
        check_gradient(scaled_square(torch, 1), x, unused=["ww"])
    with pytest.raises(ConfigError, match="which Linear does not have; it may name 'weight', 'bias', 'input'$"):
        check_gradient(torch.nn.Linear(4, 2), x, unused=["ww"])


def test_a_gradient_by_hand_may_be_given_for_tensors(torch: Any, x: Any) -> None:
    assert check_gradient(torch.sin, torch.cos, x).passed
    assert check_gradient(torch.sin, x, vjp=lambda dy, x: dy * torch.cos(x)).passed
    assert not check_gradient(torch.sin, x, vjp=lambda dy, x: dy * torch.cos(2 * x)).passed


def test_results_of_several_parts_are_checked_and_whole_numbers_among_them_left_out(torch: Any, x: Any) -> None:
    assert check_gradient(lambda x: x.max(dim=1), x).passed
    assert check_gradient(torch.nn.GRU(4, 2), torch.randn(2, 1, 4)).passed


def test_what_cannot_be_checked_is_one_clear_error(torch: Any, x: Any) -> None:
    with pytest.raises(DtypeError, match=r"returned an array of torch.int64 \(\); a function to check returns"):
        check_gradient(lambda x: x.argmax(), x)
    with pytest.raises(DtypeError, match="bfloat16, too coarse to check a gradient; use float64 or float32"):
        check_gradient(lambda x: x.bfloat16(), x)
    with pytest.raises(GraphError, match="sin has no input to check; it got an array of torch.int64"):
        check_gradient(torch.sin, torch.arange(3))
    with pytest.raises(SignatureError, match=r"takes a function or a layer first; got an array of torch.float32"):
        check_gradient(x, torch.sin)
    with pytest.raises(SignatureError, match=r"Linear is a class; give a layer that is made"):
        check_gradient(torch.nn.Linear, x)
    with pytest.raises(SignatureError, match=r"must be Tensor.*; a function of PyTorch takes torch.tensor\(x\)"):
        check_gradient(torch.tanh, np.ones(3))
    for f in (torch.tanh, torch.nn.Linear(4, 2), lambda x: 2 * x):
        with pytest.raises(SignatureError, match=r"is a function of PyTorch: check_gradient takes it"):
            gradcheck(f, x)
    Narrow = type("Narrow", (scaled_square(torch, 1),), {"backward": staticmethod(lambda ctx, dy: dy[:2])})
    with pytest.raises(NanogradError, match=r"the backward of Narrow raised RuntimeError: .*got \[2, 4\] but expected"):
        check_gradient(Narrow, x)
    report = check_gradient(lambda x: x.mul_(2), x)
    assert "writes into x, which belongs to its caller" in report.problems[0]


@pytest.fixture
def own_functions(torch):
    Squared = scaled_square(torch, 1)

    class WrongCube(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])

        @staticmethod
        def backward(ctx, dy):
            return 2 * ctx.saved_tensors[0] ** 2 * dy

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.round(x)

        @staticmethod
        def backward(ctx, dy):
            return dy

    return Squared, WrongCube, Rounded


@pytest.mark.parametrize(("place", "culprits"), [(0, []), (1, ["WrongCube"]), (2, ["Rounded"])])
def test_each_function_on_the_way_is_checked_by_itself(torch, own_functions, place, culprits):
    squared, wrong_cube, rounded = own_functions
    functions = [
        lambda x: squared.apply(x) * x.detach(),
        lambda x: wrong_cube.apply(squared.apply(x)),
        lambda x: rounded.apply(x) * squared.apply(x),
    ]
    forwards = [vars(function)["forward"] for function in own_functions]
    report = check_gradient(functions[place], torch.tensor([0.3, -1.2, 2.1]))
    assert [culprit.op for culprit in report.culprits] == culprits
    assert any(".detach()" in note for note in report.notes) == (not culprits)
    assert any(note.startswith("right by themselves") and note.endswith(": Square") for note in report.notes)
    assert forwards == [vars(function)["forward"] for function in own_functions]


def test_a_straight_through_estimate_is_told_as_that(torch, own_functions):
    (finding,) = check_gradient(own_functions[2], torch.tensor([0.3, -1.2, 2.1])).findings
    assert finding.verdict == "cannot tell" and "moves in steps" in finding.reason


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_norm_far_from_zero_is_right_though_the_mean_of_complex_numbers_is_rounded_otherwise(torch, seed):
    def normalised(x):
        d = x - x.mean(0)
        return d / torch.sqrt((d**2).mean(0) + 1e-5)

    x = torch.tensor(np.random.default_rng(seed).normal(size=(5, 3)) + 1e4)
    assert check_gradient(normalised, x).passed


@pytest.mark.parametrize("offset", [1e3, 1e4, 1e5])
def test_what_pytorch_does_not_compute_on_complex_numbers_is_not_called_wrong_far_from_zero(torch, offset):
    x = torch.tensor(np.random.default_rng(0).normal(size=(2, 2, 6)) + offset)
    assert check_gradient(torch.nn.MaxPool1d(2), x).passed
    (finding,) = check_gradient(lambda x: torch.softmax(x, -1), x[0]).findings
    assert finding.verdict in ("right", "cannot tell")


def test_a_numpy_array_of_floats_is_a_tensor_for_the_function_also_where_it_is_a_constant(torch):
    class Masked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, mask):
            ctx.save_for_backward(mask)
            return x * mask

        @staticmethod
        def backward(ctx, dy):
            return dy * ctx.saved_tensors[0], None

    x, mask = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.0, 1.0])
    assert check_gradient(Masked, x, mask, unused=["mask"]).passed


@pytest.mark.parametrize("seed", [22, 36, 38])
def test_a_softmax_that_saturates_is_right_though_its_rounding_is_the_same_at_all_points_nearby(torch, seed):
    x = 650 * np.random.default_rng(seed).normal(size=(3, 4))
    assert check_gradient(lambda x: torch.softmax(x, -1), torch.tensor(x)).passed


@pytest.mark.parametrize("seed", [20, 30, 32])
def test_attention_that_saturates_is_right_though_its_rounding_is_the_same_at_all_points_nearby(torch, seed):
    x = torch.tensor(1.2 * np.random.default_rng(seed).normal(size=(1, 3, 4)) + 10)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert check_gradient(lambda x: attention(x, 2 * x, 3 * x), x).passed


def test_every_parameter_of_a_float32_module_is_checked_at_an_input_of_float64(torch):
    for module in (torch.nn.LSTM(3, 4), torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))):
        report = check_gradient(module, np.random.default_rng(0).standard_normal((5, 3)))
        assert report.passed
        assert {name for name, _ in module.named_parameters()} < {finding.name for finding in report.findings}


def test_a_parameter_that_was_not_seen_in_use_is_not_taken_for_a_constant(torch, monkeypatch):
    from nanograd_llm.gradcheck.foreign.pytorch import Autograd

    monkeypatch.setattr(Autograd, "_used", lambda self, inputs, library: {})
    report = check_gradient(torch.nn.Linear(3, 2).double(), np.ones((5, 3)))
    assert not report.passed and "a gradient of Linear reaches tensor (2, 3)" in str(report)


def with_derivative(torch: Any, f: Any, derivative: Any) -> Any:
    """A torch.autograd.Function of each entry by itself, with the gradient dy * derivative(x)."""

    class Entrywise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return f(x)

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return dy * derivative(x)

    return Entrywise


@pytest.mark.parametrize("off", [0, 1e-10, 1e-7, 1e-5, 1e-3, 1])
def test_a_wrong_gradient_is_wrong_where_float32_overflows(torch, off):
    draws = np.random.default_rng(5).normal(size=(3, 4))
    for f, derivative, x in (
        (torch.exp, torch.exp, np.array([90.0])),
        (torch.exp, torch.exp, 100 * draws),
        (torch.cosh, torch.sinh, 100 * draws),
        (torch.square, lambda x: 2 * x, 1e20 * draws),
        (lambda x: x**3, lambda x: 3 * x**2, 1e15 * draws),
    ):
        function = with_derivative(torch, f, lambda x, derivative=derivative: (1 + off) * derivative(x))
        (finding,) = check_gradient(function, torch.tensor(x)).findings
        assert finding.verdict == ("wrong" if off else "right")


@pytest.mark.parametrize("size", [1e20, 1e25])
def test_a_gradient_that_overflows_or_vanishes_in_float32_alone_is_right(torch, size):
    x = torch.tensor(size * np.random.default_rng(0).normal(size=(4, 4)))
    for f in (lambda x: x.norm(dim=-1), torch.linalg.inv):
        assert check_gradient(f, x).passed


def test_between_convolutions_a_wrong_function_is_wrong_and_is_the_culprit(torch):
    first, second = torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Conv2d(2, 2, 3)
    x, wrong = torch.randn(2, 1, 5, 5), with_derivative(torch, torch.relu, lambda x: 2.0 * (x > 0))
    assert check_gradient(lambda x: second(torch.relu(first(x))), x).passed
    report = check_gradient(lambda x: second(wrong.apply(first(x))), x)
    assert verdicts(report)["x"] == "wrong"
    assert [culprit.op for culprit in report.culprits] == ["Entrywise"]


@pytest.mark.parametrize("factor", [1, 1 + 1e-10, 1 + 1e-6, 2])
def test_the_gradient_of_a_convolution_is_checked_to_all_digits(torch, factor):
    class Convolution(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return torch.conv2d(x, w, padding=1)

        @staticmethod
        def backward(ctx, dy):
            x, w = ctx.saved_tensors
            dx = torch.nn.grad.conv2d_input(x.shape, w, dy, padding=1)
            return factor * dx, torch.nn.grad.conv2d_weight(x, w.shape, dy, padding=1)

    report = check_gradient(Convolution, torch.randn(2, 2, 4, 4), torch.randn(3, 2, 3, 3))
    assert verdicts(report) == {"x": "right" if factor == 1 else "wrong", "w": "right"}


@pytest.mark.parametrize(
    ("name", "x", "w", "how"),
    [
        ("conv1d", (2, 2, 7), (4, 2, 3), {"padding": "same"}),
        ("conv1d", (2, 7), (4, 2, 3), {"stride": 2}),
        ("conv2d", (1, 4, 6, 6), (4, 2, 2, 2), {"stride": 2, "padding": 1, "groups": 2, "dilation": 2}),
        ("conv3d", (1, 1, 3, 3, 3), (2, 1, 2, 2, 2), {}),
        ("conv_transpose1d", (2, 2, 5), (2, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
        ("conv_transpose2d", (1, 2, 3, 3), (2, 3, 2, 2), {"stride": 2}),
        ("conv_transpose3d", (1, 1, 2, 2, 2), (1, 1, 2, 2, 2), {}),
    ],
)
def test_slopes_of_every_convolution_are_taken_by_complex_step(torch, name, x, w, how):
    convolution, bias = getattr(torch, name), torch.randn(w[1] if "transpose" in name else w[0])
    for size in (1e-3, 1.0, 1e3):
        inputs = size * torch.randn(x), size * torch.randn(w), bias
        report = check_gradient(lambda x, w, b: convolution(x, w, b, **how), *inputs)
        assert report.passed
        assert {finding.method for finding in report.findings} == {"complex step"}
