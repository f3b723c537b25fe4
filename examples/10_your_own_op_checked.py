"""10  Your own op, checked: how a function that NumPy computes becomes one that can be trained through.

The one idea: an op is a forward and a rule, and a rule is a claim about calculus. Claims are checked against numbers,
with random cotangents, or they are not checked at all.
"""

import numpy as np

import nanograd_llm as ng
from nanograd_llm import nn, ops
from nanograd_llm.gradcheck import GradientError, assert_gradients, check_op, gradcheck

rng = np.random.default_rng(0)

# %% The declaration
# Squared ReLU, y = max(x, 0)², serves in place of GELU (So et al., "Primer", 2021). An op says what it computes, what
# the adjoint of each input is (a bar: x̄ = ∂loss/∂x), and in its docstring which shapes go in and come out; without one
# of the three it is refused. The rule takes the cotangent ȳ, called dy, and by name what it wants to see again.


@ng.op("y = max(x, 0)²", "x̄ = 2ȳ*max(x, 0)")
def relu_squared(x):
    """Squared ReLU, elementwise.  x (*) -> y (*)"""
    return np.maximum(x, 0) ** 2


@relu_squared.backward
def relu_squared_backward(dy, x):
    return 2 * dy * ops.maximum(x, 0)  # ops and operators only, so that the rule can itself be differentiated


x = ng.Tensor([-1.0, 0.5, 3.0], requires_grad=True)
y = relu_squared(x)
y.sum().backward()
print(f"{relu_squared}\n{y}\nx̄ = {x.grad}")
assert x.grad.tolist() == [0, 1, 6]

# %% The check
# For a random cotangent v and a random direction u, the rule gives ⟨x̄, u⟩ and the forward gives ⟨v, J u⟩ by a complex
# step, Im f(x + ihu)/h, exact to the last bits. They must agree to rounding; there is no tolerance to choose. Order 2
# checks the gradient of the gradient as well.
report = gradcheck(relu_squared, rng.standard_normal((3, 4)), order=2)
print(report)
assert report.passed and report.relative_error() < 1e-14

# In a test, one line. `check_op` draws the inputs from the shape line, and also holds float32 to staying float32.
assert_gradients(relu_squared, rng.standard_normal(5))
assert check_op(relu_squared).passed

# %% A planted mistake: the 2 forgotten
# The forward is right and a model with this op even learns, only worse: nobody would notice. The check does.


@ng.op("y = max(x, 0)²", "x̄ = ȳ*max(x, 0)")
def two_forgotten(x):
    """Squared ReLU with a wrong rule.  x (*) -> y (*)"""
    return np.maximum(x, 0) ** 2


@two_forgotten.backward
def two_forgotten_backward(dy, x):
    return dy * ops.maximum(x, 0)


wrong = gradcheck(two_forgotten, rng.standard_normal((3, 4)))
print(wrong)
assert not wrong.passed
entry = wrong.findings[0].worst
assert np.isclose(entry.analytic / entry.numeric, 0.5)  # the ratio says what is missing

# %% Why y.sum().backward() tests nothing
# The rows of a softmax sum to one, whatever x is. So the gradient of that sum is zero, and any multiple of the right
# rule gives zero too. Here the whole rule is three times too large, and with a cotangent of ones it looks perfect.


@ng.op("y = exp x / Σ exp x", "x̄ = 3y*(ȳ - Σ ȳ*y)")
def softmax_times_three(x):
    """Softmax with a wrong rule.  x (..., C) -> y (..., C)"""
    return ops.softmax(x)


@softmax_times_three.backward
def softmax_times_three_backward(dy, y):
    return 3 * y * (dy - ops.sum(dy * y, axis=-1, keepdims=True))


logits = ng.Tensor(rng.standard_normal((2, 5)), requires_grad=True)
right = ng.grad(ops.softmax(logits).sum(), logits)
thrice = ng.grad(softmax_times_three(logits).sum(), logits)
print(f"sum of a softmax, largest gradient: {np.abs(right).max():.0e}, with the wrong rule {np.abs(thrice).max():.0e}")
assert np.allclose(right, 0) and np.allclose(thrice, 0)

try:
    assert_gradients(softmax_times_three, logits.data)
    raise AssertionError("a rule three times too large has passed")
except GradientError as error:
    print(f"a random cotangent: {error.report.findings[0].verdict}, {error.report.findings[0].worst}")

# %% Used in a model
# The check takes any function of Tensors, a model's loss as well, and finds the parameters by itself.


class Perceptron(nn.Module):
    def __init__(self):
        self.up = nn.Linear(4, 16, rng=rng)
        self.down = nn.Linear(16, 3, rng=rng)

    def loss(self, x, targets):
        return ops.cross_entropy(self.down(relu_squared(self.up(x))), targets)  # (B, 4) -> (B, 16) -> (B, 3) -> ()


model = Perceptron()
report = gradcheck(model.loss, rng.standard_normal((6, 4)), rng.integers(0, 3, 6))
print("checked:", ", ".join(finding.name for finding in report.findings))
assert report.passed and len(report.findings) == 1 + 4  # x, and two weights and two biases

# %% Gradients of gradients
# Under `higher_order()` gradients are recorded like everything else. Below is the gradient of a gradient's length, of
# use where a model shall not react too strongly to its input. With y = Σ max(x, 0)² the first derivative is
# 2 max(x, 0), its squared length 4 Σ max(x, 0)², and the gradient of that 8 max(x, 0).
x = ng.Tensor(np.array([-2.0, -1.0, 0.5, 1.0, 3.0]), requires_grad=True)
with ng.higher_order():
    gradient = ng.grad(relu_squared(x).sum(), x)
    penalty = ng.grad((gradient * gradient).sum(), x)
assert np.allclose(penalty.data, 8 * np.maximum(x.data, 0))

# `hvp` multiplies the Hessian by a vector without building it (Pearlmutter 1994): here a diagonal of 2 where x > 0.
v = rng.standard_normal(5)
(product,) = ng.hvp(lambda x: relu_squared(x).sum(), [x], [v])
print("x is", x.data, "and the Hessian times v, over v,", product / v)
assert np.allclose(product, 2 * (x.data > 0) * v)
