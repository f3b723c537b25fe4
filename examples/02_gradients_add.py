"""02  Gradients add: what happens if one value is used more than once.

The one idea: a value that is used twice reaches the result along two paths. Each path contributes to its gradient, and
the contributions add up. Broadcasting uses a value many times, so it needs a sum as well.
"""

# N rows of a batch, D columns (inputs), K columns (outputs)

import numpy as np

import nanograd_llm as ng
from nanograd_llm.gradcheck import attempt

rng = np.random.default_rng(0)

# %% One value, three uses
# Take y = x*x + 3*x at x = 2. Here x is used three times: twice in the product and once in 3*x. Give each use a name
# of its own, as if there were three numbers that happen to be equal:
#
#     y = u*v + 3*w      with u = x, v = x, w = x
#
#     ū = ∂y/∂u = v = 2
#     v̄ = ∂y/∂v = u = 2
#     w̄ = ∂y/∂w = 3
#
# When x moves by h, then u, v and w all move by h. So y moves by ū*h + v̄*h + w̄*h. Therefore
#
#     x̄ = ū + v̄ + w̄ = 2 + 2 + 3 = 7.
#
# This is the chain rule for several paths: multiply along a path, add over the paths.
x = ng.Tensor(2.0, requires_grad=True)
u, v, w = x * 1, x * 1, x * 1  # three copies of x, so that each has a gradient of its own
u_bar, v_bar, w_bar, x_bar = (float(g) for g in ng.grad(u * v + 3 * w, [u, v, w, x]))
print(f"the uses: {u_bar} + {v_bar} + {w_bar}; x itself: {x_bar}")
assert (u_bar, v_bar, w_bar) == (2, 2, 3)
assert x_bar == u_bar + v_bar + w_bar

# Calculus agrees: the derivative of x² + 3x is 2x + 3. The engine finds it without the copies, too.
assert ng.grad(x * x + 3 * x, x) == 2 * 2 + 3

# %% The usual mistake: = in place of +=
# When people write a backward pass by hand, they often store a gradient with `=`. Then the last path overwrites the
# others.
stored = added = 0.0
for contribution in (u_bar, v_bar, w_bar):
    stored = contribution  # wrong: the contributions before this one are lost
    added += contribution
print(f"with =: {stored}, with +=: {added}")
assert stored == 3 and added == 7

# %% `.grad` adds as well
# A second call of `backward` adds to the `.grad` of the first. This helps when a batch does not fit into memory. Run it
# in parts: the gradients of the parts add up to the gradient of the whole batch.
batch = rng.standard_normal((6, 3))  # (N, D)
weights = ng.Tensor(rng.standard_normal(3), requires_grad=True)  # (D)


def loss(rows):
    """The sum over the rows of (row · weights)².  rows (N, D) -> ()"""
    outputs = ng.Tensor(rows) @ weights  # (N, D) · (D) -> (N)
    return (outputs * outputs).sum()


loss(batch[:3]).backward()
loss(batch[3:]).backward()
in_parts = weights.grad
weights.grad = None  # start again; a Module has zero_grad() for all its parameters
loss(batch).backward()
print("in two parts: ", in_parts.round(4))
print("in one piece: ", weights.grad.round(4))
assert np.allclose(in_parts, weights.grad)

# If you do not want a sum, set `.grad` to None first. A training loop does this before every step (lesson 5).

# %% Broadcasting copies
# NumPy can add arrays of different shapes. It behaves as if the smaller array were copied until the shapes are equal:
#
#     x (N, D) + b (D) -> y (N, D)        y[n, d] = x[n, d] + b[d]
#
# b[d] is used once in every row, N times in all. Each use contributes ȳ[n, d]. We add over the uses:
#
#     b̄[d] = Σ_n ȳ[n, d]                  b̄ = ȳ.sum(axis=0), (N, D) -> (D)
#
# The gradient of b has the shape of b. This is true for every gradient: it holds one derivative for each number.
N, D = 4, 3
x = ng.Tensor(rng.standard_normal((N, D)), requires_grad=True)
b = ng.Tensor(rng.standard_normal(D), requires_grad=True)
y_bar = rng.standard_normal((N, D))  # a random ȳ; in a network it comes from the later layers
x_bar, b_bar = ng.grad(x + b, [x, b], cotangent=y_bar)  # the gradient of a result is also called its cotangent
assert x_bar.shape == (N, D) and np.array_equal(x_bar, y_bar)
assert b_bar.shape == (D,) and np.allclose(b_bar, y_bar.sum(axis=0))

# The same holds for every shape: sum over each axis that was missing, or that had size 1 and was copied.
print(f"\nfor x + b, where x and ȳ have shape {(N, D)}:")
for shape, by_hand in [
    ((D,), y_bar.sum(axis=0)),  # the first axis was missing
    ((N, 1), y_bar.sum(axis=1, keepdims=True)),  # the second axis had size 1
    ((1, D), y_bar.sum(axis=0, keepdims=True)),
    ((1, 1), y_bar.sum(axis=(0, 1), keepdims=True)),
    ((), y_bar.sum()),  # a single number is used N*D times
]:
    b = ng.Tensor(np.ones(shape), requires_grad=True)
    b_bar = ng.grad(x + b, b, cotangent=y_bar)
    print(f"    b {str(shape):7} is used {N * D // b.size:2} times; b̄ has shape {b_bar.shape}")
    assert b_bar.shape == shape and np.allclose(b_bar, by_hand)

# %% A product that broadcasts
# First apply the rule of the product, then sum over the copies.
#
#     y[n, d] = x[n, d] * s[d]
#     each use contributes ȳ[n, d] * x[n, d]
#     s̄[d] = Σ_n ȳ[n, d] * x[n, d]
s = ng.Tensor(rng.standard_normal(D), requires_grad=True)
s_bar = ng.grad(x * s, s, cotangent=y_bar)
assert np.allclose(s_bar, (y_bar * x.data).sum(axis=0))

# In this package the engine sums over the copies of broadcasting, for every op. So the rule of a product does not have
# to. An op that makes copies itself must sum over them in its rule (exercises 1 and 2).

# %% A matrix product uses every weight once per row
# A linear layer computes y = x W, and all rows of the batch use the same W.
#
#     y[n, k] = Σ_d x[n, d] * W[d, k]
#     row n contributes ȳ[n, k] * x[n, d] to W̄[d, k]
#     W̄[d, k] = Σ_n x[n, d] * ȳ[n, k]        W̄ = xᵀ ȳ, (D, N) · (N, K) -> (D, K)
#
# So the well-known formula W̄ = xᵀ ȳ is a sum over uses. The matrix product computes this sum.
K = 2
W = ng.Tensor(rng.standard_normal((D, K)), requires_grad=True)
y_bar = rng.standard_normal((N, K))
W_bar = ng.grad(x @ W, W, cotangent=y_bar)
one_row_at_a_time = sum(np.outer(x.data[n], y_bar[n]) for n in range(N))  # N × (D, K) -> (D, K)
assert np.allclose(W_bar, x.data.T @ y_bar)
assert np.allclose(W_bar, one_row_at_a_time)
print(f"\nW̄ {W_bar.shape} is the sum of {N} outer products, one for each row of the batch")

# %% Sum and copy belong together
# If the forward pass copies, the backward pass sums. The reverse is true too: if the forward pass sums, the backward
# pass copies. In y = x[0] + x[1] + x[2] every x[i] has the factor 1, so each receives ȳ unchanged.
x = ng.Tensor(rng.standard_normal(3), requires_grad=True)
assert ng.grad(x.sum(), x, cotangent=5.0).tolist() == [5, 5, 5]

# %% Exercise 1: a value with three uses
# The op below makes three rows from one vector: x itself, 2x, and x². `dy` has the shape (3, C), and dy[0] is the
# gradient of the first row. The rule forgets the other two rows. Correct it.


@ng.op("y = (x, 2x, x²)", "x̄ = ?")
def exercise_1(x):
    """Three rows from one.  x (C) -> y (3, C)"""
    return np.stack([x, 2 * x, x * x])


@exercise_1.backward
def exercise_1_backward(dy, x):
    return dy[0]  # not yet right


print()
attempt(exercise_1, rng.standard_normal(4))

# %% Exercise 2: undo the copies yourself
# The outer product of a (N) and b (K) has the shape (N, K). Every a[n] is used K times, and every b[k] is used N times.
# The op makes these copies itself, so its rule must sum over them. The rule below counts only one use of each number.
# Correct it. You need .sum(axis=...).


@ng.op("y[n, k] = a[n]*b[k]", "ā = ?;  b̄ = ?")
def exercise_2(a, b):
    """Outer product.  a (N), b (K) -> y (N, K)"""
    return a[:, None] * b


@exercise_2.backward
def exercise_2_backward(dy, a, b):
    a_bar = dy[:, 0] * b[0]  # not yet right
    b_bar = dy[0] * a[0]  # not yet right
    return a_bar, b_bar


attempt(exercise_2, rng.standard_normal(4), rng.standard_normal(3))

# %% Solution 1
# Row 0 has the factor 1, row 1 the factor 2, row 2 the factor 2x. Multiply along each path, and add.


@ng.op("y = (x, 2x, x²)", "x̄ = ȳ₀ + 2ȳ₁ + 2x*ȳ₂")
def solution_1(x):
    """Three rows from one.  x (C) -> y (3, C)"""
    return np.stack([x, 2 * x, x * x])


@solution_1.backward
def solution_1_backward(dy, x):
    return dy[0] + 2 * dy[1] + 2 * x * dy[2]


assert attempt(solution_1, rng.standard_normal(4))

# %% Solution 2
#     ā[n] = Σ_k ȳ[n, k] * b[k]        (N, K) * (K) -> (N, K), then the sum over axis 1 -> (N)
#     b̄[k] = Σ_n ȳ[n, k] * a[n]        (N, K) * (N, 1) -> (N, K), then the sum over axis 0 -> (K)


@ng.op("y[n, k] = a[n]*b[k]", "ā = Σ_k ȳ*b;  b̄ = Σ_n ȳ*a")
def solution_2(a, b):
    """Outer product.  a (N), b (K) -> y (N, K)"""
    return a[:, None] * b


@solution_2.backward
def solution_2_backward(dy, a, b):
    return (dy * b).sum(axis=1), (dy * a[:, None]).sum(axis=0)


assert attempt(solution_2, rng.standard_normal(4), rng.standard_normal(3))
