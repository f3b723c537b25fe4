"""10  Your own op, checked: how to make a function of NumPy differentiable, and test its gradient.

The one idea: an op has a forward function and a backward rule. The rule can be wrong, so compare it with the forward
function. Only a random cotangent makes this a real test.
"""

import numpy as np

import nanograd_llm as ng
from nanograd_llm import nn, ops
from nanograd_llm.gradcheck import GradientError, assert_gradients, check_op, gradcheck

rng = np.random.default_rng(0)

# %% The declaration
# Squared ReLU, y = max(x, 0)², can be used instead of GELU (So et al., "Primer", 2021). An op states its formula, the
# adjoint of each input (x̄ = ∂loss/∂x), and in its docstring the shapes. If one of the three is missing, it is refused.
# The rule gets the cotangent ȳ, called dy. Its other parameters name the arrays of the forward pass that it needs.


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
# The check takes a random cotangent v and a random direction u. The rule gives ⟨x̄, u⟩. The forward function gives ⟨v,
# J u⟩ by a complex step, Im f(x + ihu)/h, which is exact up to the last bits. Both must be equal up to rounding, and
# there is no tolerance to choose. Order 2 also checks the gradient of the gradient.
report = gradcheck(relu_squared, rng.standard_normal((3, 4)), order=2)
print(report)
assert report.passed and report.relative_error() < 1e-14

# In a test this is one line. `check_op` draws the inputs from the shape line, and also tests that float32 stays
# float32.
assert_gradients(relu_squared, rng.standard_normal(5))
assert check_op(relu_squared, cases=50).passed

# %% A planted mistake: the 2 forgotten
# The forward function is right, and a model with this op even learns, only worse. It is easy to overlook this mistake,
# but the check finds it.


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
# Each row of a softmax sums to one for every x. So the gradient of that sum is zero, and any multiple of the right rule
# gives zero, too. The rule below is three times too large, and a cotangent of ones does not show it.


@ng.op("y = exp x / Σ exp x", "x̄ = 3y*(ȳ - Σ ȳ*y)")
def softmax_times_three(x):
    """Softmax with a wrong rule.  x (..., C) -> y (..., C)"""
    return ops.softmax(x)


@softmax_times_three.backward
def softmax_times_three_backward(dy, y):
    return 3 * y * (dy - ops.sum(dy * y, axis=-1, keepdims=True))


logits = ng.Tensor(rng.standard_normal((2, 5)), requires_grad=True)
right = ng.grad(ops.softmax(logits).sum(), logits)
wrong = ng.grad(softmax_times_three(logits).sum(), logits)
print(f"sum of a softmax, largest gradient: {np.abs(right).max():.0e}, with the wrong rule {np.abs(wrong).max():.0e}")
assert np.allclose(right, 0) and np.allclose(wrong, 0)

try:
    assert_gradients(softmax_times_three, logits.data)
    raise AssertionError("a rule three times too large has passed")
except GradientError as error:
    print(f"a random cotangent: {error.report.findings[0].verdict}, {error.report.findings[0].worst}")

# %% Used in a model
# The check takes any function of Tensors, such as the loss of a model, and finds the parameters by itself.


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
# Under `higher_order()` the computation of a gradient is recorded as well. Here is the gradient of the squared length
# of a gradient; this is useful to keep a model from reacting too strongly to its input. For y = Σ max(x, 0)² the first
# derivative is 2 max(x, 0), its squared length is 4 Σ max(x, 0)², and the gradient of that is 8 max(x, 0).
x = ng.Tensor(np.array([-2.0, -1.0, 0.5, 1.0, 3.0]), requires_grad=True)
with ng.higher_order():
    gradient = ng.grad(relu_squared(x).sum(), x)
    penalty = ng.grad((gradient * gradient).sum(), x)
assert np.allclose(penalty.data, 8 * np.maximum(x.data, 0))

# `hvp` multiplies the Hessian by a vector without building it (Pearlmutter 1994). Here it is diagonal: 2 where x > 0.
v = rng.standard_normal(5)
(product,) = ng.hvp(lambda x: relu_squared(x).sum(), [x], [v])
print("x is", x.data, "and the diagonal of the Hessian is", product / v)
assert np.allclose(product, 2 * (x.data > 0) * v)
