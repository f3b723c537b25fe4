"""14  Any gradient, checked: functions of plain NumPy, a layer with a cache, PyTorch and JAX.

The one idea: a check needs a function and something that claims to be its gradient. Who computes it does not matter, so
the check of this package serves homework, a paper's formula, and code for other libraries.
"""

import importlib.util

import numpy as np

from nanograd_llm.gradcheck import GradientError, assert_gradient, backward_rule, check_gradient

rng = np.random.default_rng(0)
X, W, B = rng.normal(size=(3, 4)), rng.normal(size=(4, 2)), rng.normal(size=2)

# %% A function and its derivative
# `check_gradient(f, gradient, *inputs)`. Here both work on each entry by itself. The report is the one of `gradcheck`.
print(check_gradient(np.tanh, lambda x: 1 - np.tanh(x) ** 2, X))
assert check_gradient(np.tanh, lambda x: 1 - np.tanh(x) ** 2, X).passed


# %% A function of several arrays
# The backward takes the cotangent dy, of the result's shape, and returns one gradient for each input. The check draws
# dy at random. This backward takes a mean where a sum belongs, and the report recognises it.
def affine(x, w, b):
    return x @ w + b


def affine_backward(dy, x, w, b):
    return dy @ w.T, x.T @ dy, dy.mean(axis=0)


report = check_gradient(affine, X, W, B, vjp=affine_backward)
print(report)
assert [finding.name for finding in report.findings if finding.verdict == "wrong"] == ["b"]
assert "the gradient is that of a mean over an axis of size 3, the function takes a sum" in str(report)


# %% A layer that stores what backward needs
# An object with `forward` and `backward` is handed over as it is. W and b are checked too, as backward stores gradients
# of these names, dW and db. Every call is made on a copy, so the layer stays as it was.
class Linear:
    def __init__(self):
        self.W, self.b = W.copy(), B.copy()

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dy):
        self.dW, self.db = self.x.T @ dy, dy.sum(axis=0)
        return dy @ self.W.T


names = [finding.name for finding in check_gradient(Linear(), X).findings]
print(f"checked in one line: {', '.join(names)}")
assert names == ["W", "b", "x"]
assert check_gradient(Linear(), X).passed


# %% A cache that is handed on
# If the forward returns (result, cache) and the backward takes (dy, cache), give the backward as `backward=`. The
# check also finds a buffer that a later call overwrites, although each gradient is right if backward follows its
# forward at once.
buffer = np.empty_like(X)


def square(x):
    buffer[...] = x
    return x**2, buffer


report = check_gradient(square, X, backward=lambda dy, x: 2 * x * dy)
print(report.problems[0])
assert not report.passed


# %% In a test
# `assert_gradient` raises an AssertionError with the report. `@backward_rule` names a function, so that
# `pytest --gradient-mutants` plants mistakes in it and counts how many of them the tests notice: see lesson 13.
@backward_rule
def relu_backward(dy, x):
    return dy * (x > 0.5)


def test_relu():
    assert_gradient(lambda x: np.maximum(x, 0), X, vjp=relu_backward)


try:
    test_relu()
except GradientError as error:
    print(str(error).splitlines()[0])
else:
    raise AssertionError("this gradient is wrong for x between 0 and 0.5")

# %% PyTorch and JAX
# Their functions, Modules and autograd Functions are handed over without a gradient: theirs is checked, as
# `check_gradient(module, x)`. The parameters of a Module are found. A gradient twice too large, which the fast mode of
# torch.autograd.gradcheck does not notice for a softmax of 1,000 numbers, is wrong here.
if importlib.util.find_spec("torch"):
    import torch

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.exp() / x.exp().sum()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, dy):
            (y,) = ctx.saved_tensors
            return 2 * y * (dy - (dy * y).sum())

    x = torch.randn(1000, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Doubled.apply, x, fast_mode=True)
    report = check_gradient(Doubled, x)
    print(str(report).splitlines()[0])
    assert not report.passed
else:
    print("the rest needs PyTorch: pip install torch")
