"""03  A rule on paper: derive the backward rule of softmax line by line, and write it as an op.

The one idea: let every input change by a small amount, follow the change to the result, and collect the terms. The
factor in front of the change of an input is its gradient.
"""

# C classes (the last axis); δ[i, j] is 1 where i = j, else 0

import numpy as np

import nanograd_llm as ng
from nanograd_llm import ops
from nanograd_llm.gradcheck import assert_gradients, attempt, check_op, gradcheck

rng = np.random.default_rng(0)
C = 4

# %% What softmax does
# Softmax turns any C numbers into C probabilities: they are positive, and their sum is 1.
#
#     e[i] = exp x[i]                 x (C) -> e (C)
#     s    = Σ_i e[i]                 e (C) -> s ()
#     y[i] = e[i] / s                 e (C), s () -> y (C)


def softmax_by_hand(x):
    e = np.exp(x)
    return e / e.sum()


x = rng.standard_normal(C)  # (C)
y = softmax_by_hand(x)  # (C)
print("x =", x.round(3), "  y =", y.round(3), f"  sum {y.sum():.3f}")
assert np.isclose(y.sum(), 1) and (y > 0).all()

# %% What is given, and what is wanted
# Later steps turn y into the loss L, a single number. We do not need to know these steps. We are given
#
#     ȳ[i] = ∂L/∂y[i]                 ȳ (C), also called the cotangent of y
#
# and we want
#
#     x̄[j] = ∂L/∂x[j]                 x̄ (C)
#
# If y changes by a small Δy, then L changes by
#
#     ΔL = Σ_i ȳ[i]*Δy[i]                                                      (1)
#
# Our aim is the form ΔL = Σ_j (factor j)*Δx[j]. Then factor j is x̄[j].

# %% Follow a small change
# Let x change by a small Δx, and follow it step by step. We keep terms with one Δ, and drop terms with Δ², which are
# much smaller.
#
#     Δe[i] = e[i]*Δx[i]                                          since exp' = exp
#     Δs    = Σ_j Δe[j] = Σ_j e[j]*Δx[j]                          since s is a sum
#     Δy[i] = Δe[i]/s - e[i]*Δs/s²                                the quotient rule
#           = y[i]*Δx[i] - y[i]*Σ_j y[j]*Δx[j]                    since e/s = y        (2)
#
# Is (2) right? Try it with numbers before you go on. The two sides agree up to the dropped terms.
delta_x = 1e-6 * rng.standard_normal(C)  # (C)
observed = softmax_by_hand(x + delta_x) - y  # (C)
predicted = y * delta_x - y * np.sum(y * delta_x)  # (C) - (C) * ()
print("Δy observed:", observed)
print("Δy by (2)  :", predicted)
assert np.allclose(observed, predicted, rtol=0, atol=1e-11)

# %% Collect the terms
# Put (2) into (1):
#
#     ΔL = Σ_i ȳ[i]*y[i]*Δx[i]  -  Σ_i ȳ[i]*y[i] * Σ_j y[j]*Δx[j]
#
# In the first sum, rename the index i to j. In the second term, let m = Σ_i ȳ[i]*y[i]. This is one number: the mean of
# ȳ, weighted by the probabilities y.
#
#     ΔL = Σ_j ȳ[j]*y[j]*Δx[j]  -  m * Σ_j y[j]*Δx[j]
#        = Σ_j y[j]*(ȳ[j] - m) * Δx[j]
#
# The factor in front of Δx[j] is the gradient:
#
#     x̄[j] = y[j]*(ȳ[j] - m),   m = Σ_i ȳ[i]*y[i]                              (3)
#
# The rule uses y. It does not use x or e. So only y must be kept for the backward pass.


def rule(y_bar, y):
    m = np.sum(y_bar * y)  # (C) -> ()
    return y * (y_bar - m)  # (C)


# %% The same by the Jacobian
# All partial derivatives of y form a matrix, the Jacobian J[i, j] = ∂y[i]/∂x[j]. By (2) it is
#
#     J[i, j] = y[i]*(δ[i, j] - y[j])                             (C, C)
#
# By the chain rule x̄[j] = Σ_i ȳ[i]*J[i, j], that is x̄ = Jᵀ ȳ. Every backward rule computes this product. It is called
# a vector-Jacobian product. But a rule rarely builds J itself. GPT-2 has a vocabulary of 50,257 tokens, so its J would
# have 2.5 billion numbers. Rule (3) needs about 2C multiplications and one sum.
y_bar = rng.standard_normal(C)  # (C)
J = y[:, None] * (np.eye(C) - y)  # (C, 1) * (C, C) -> (C, C)
print("x̄ by the Jacobian:", (J.T @ y_bar).round(6))
print("x̄ by the rule (3):", rule(y_bar, y).round(6))
assert np.allclose(J.T @ y_bar, rule(y_bar, y))

# %% Write it as an op
# An op is declared in four parts.
#   1. The formula, and the adjoint of each input. They are text for the reader.
#   2. The forward function, on plain arrays.
#   3. The shapes, one line in the docstring. `x (..., C) -> y (..., C)` says: the last axis has some size C, other axes
#      may come before it, and the result has the same shape.
#   4. The backward rule. Its first parameter is ȳ, which is called `dy` in code. The names of its other parameters say
#      what the engine must keep for it. Here this is `y`, the result.
#
# Two changes make our softmax ready for use. First, all sums run over the last axis with keepdims=True, so that it
# works for batches. Second, we subtract the largest x, because exp(1000) is too large for a float. This does not change
# y: exp(x - t) = exp(x)/exp(t), and the factor 1/exp(t) cancels in e/s.


@ng.op("y = exp x / Σ exp x", "x̄ = y*(ȳ - Σ ȳ*y)")
def my_softmax(x):
    """Probabilities from any numbers.  x (..., C) -> y (..., C)"""
    largest = x.real.max(axis=-1, keepdims=True)  # (..., C) -> (..., 1); .real is for the check, see below
    e = np.exp(x - largest)
    return e / e.sum(axis=-1, keepdims=True)


@my_softmax.backward
def my_softmax_backward(dy, y):
    m = (dy * y).sum(axis=-1, keepdims=True)  # (..., C) -> (..., 1)
    return y * (dy - m)  # (..., C)


batch = rng.standard_normal((2, 3, C))
assert np.allclose(my_softmax(batch), ops.softmax(batch))  # the package has this op, with the same rule
assert np.isfinite(my_softmax(np.array([1000.0, 999.0]))).all()

# %% Check it
# A derivation can contain a mistake. So compare the rule with the forward function. `gradcheck` takes a random ȳ and a
# random direction u. It computes in two ways how fast L changes when x moves along u.
#
#   - By the rule: Σ x̄*u.
#   - By the forward function f alone: Σ ȳ*Im f(x + ih*u)/h. Here i² = -1, and h is tiny. Im is the imaginary part.
#
# The second way is called the complex step. Let d be the derivative of f along u. Then f(x + ih*u) is f(x) + ih*d, and
# further terms with h², which are too small to count. So Im f(x + ih*u)/h is d. A central difference subtracts two
# numbers that are nearly equal, and loses digits. The complex step does not, so it shows even small mistakes.
#
# The check calls the forward function with complex numbers. That is why the largest real part is taken above. The
# report has one line for each input: is its gradient right, and how large is the difference? (Lesson 12 reads longer
# reports.)
report = gradcheck(my_softmax, batch)
print()
print(report)
assert report.passed

# In your own tests this is one line. `check_op` also draws the inputs, from the shape line: 200 cases, or fewer.
assert_gradients(my_softmax, batch)
assert check_op(my_softmax, cases=50).passed

# %% What the check says about a mistake
# Suppose you forget that s depends on x as well. Then Δs = 0, the second term of (2) is missing, and x̄ = y*ȳ.


@ng.op("y = exp x / Σ exp x", "x̄ = y*ȳ")
def forgetful_softmax(x):
    """Softmax with a wrong rule.  x (..., C) -> y (..., C)"""
    return my_softmax(x)


@forgetful_softmax.backward
def forgetful_softmax_backward(dy, y):
    return y * dy


report = gradcheck(forgetful_softmax, batch)
print("\nwithout Δs:", report.findings[0].verdict, "-", report.findings[0].pattern)
assert not report.passed
assert "multiple of the result" in report.findings[0].pattern  # the missing term is -m*y

# %% Exercise 1: layer normalization
# Layer normalization shifts and scales a row x (C) so that its mean is 0 and its variance is 1:
#
#     c[i] = x[i] - ⟨x⟩               ⟨x⟩ is the mean over the row; c (C)
#     v    = ⟨c²⟩                     the variance; v ()
#     r    = 1/√(v + ε)               ε is a small constant that avoids a division by 0; r ()
#     y[i] = c[i]*r                   y (C)
#
# The rule below treats ⟨x⟩ and r as constants. But they depend on x. Derive the full rule on paper and write it here.
# A rule can ask for the inputs and for y. By `ng.keep` the forward function gives it r as well.


def normalize(x, eps=1e-5):
    c = x - x.mean(axis=-1, keepdims=True)  # (..., C)
    v = (c * c).mean(axis=-1, keepdims=True)  # (..., C) -> (..., 1)
    r = 1 / np.sqrt(v + eps)
    return c * r, r


@ng.op("y = (x - ⟨x⟩)*r,  r = 1/√(⟨(x - ⟨x⟩)²⟩ + ε)", "x̄ = ?")
def exercise_1(x):
    """Layer normalization.  x (..., C) -> y (..., C)"""
    y, r = normalize(x)
    return ng.keep(y, r=r)


@exercise_1.backward
def exercise_1_backward(dy, y, r):
    return dy * r  # not yet right


print()
attempt(exercise_1, batch)

# %% Solution 1
# Follow a small change Δx. All means are over the row.
#
#     Δc[i] = Δx[i] - ⟨Δx⟩                                        since the mean is linear
#     Δv    = 2⟨c*Δc⟩ = 2⟨c*Δx⟩                                   since ⟨c⟩ = 0, so ⟨c*⟨Δx⟩⟩ = 0
#     Δr    = -1/2*(v + ε)^(-3/2)*Δv = -r³*⟨c*Δx⟩                 since r = (v + ε)^(-1/2)
#     Δy[i] = Δc[i]*r + c[i]*Δr                                   the product rule
#           = r*(Δx[i] - ⟨Δx⟩) - r³*c[i]*⟨c*Δx⟩
#           = r*(Δx[i] - ⟨Δx⟩ - y[i]*⟨y*Δx⟩)                      since c*r = y
#
# Put this into ΔL = Σ_i ȳ[i]*Δy[i]. Two sums must change their form, so that Δx[j] stands alone:
#
#     Σ_i ȳ[i]*⟨Δx⟩        = ⟨ȳ⟩*Σ_j Δx[j]                        both are Σȳ * ΣΔx / C
#     Σ_i ȳ[i]*y[i]*⟨y*Δx⟩ = ⟨ȳ*y⟩*Σ_j y[j]*Δx[j]                 both are Σ(ȳ*y) * Σ(y*Δx) / C
#
# So
#
#     ΔL = Σ_j r*(ȳ[j] - ⟨ȳ⟩ - y[j]*⟨ȳ*y⟩) * Δx[j]
#     x̄[j] = r*(ȳ[j] - ⟨ȳ⟩ - y[j]*⟨ȳ*y⟩)


@ng.op("y = (x - ⟨x⟩)*r,  r = 1/√(⟨(x - ⟨x⟩)²⟩ + ε)", "x̄ = r*(ȳ - ⟨ȳ⟩ - y*⟨ȳ*y⟩)")
def solution_1(x):
    """Layer normalization.  x (..., C) -> y (..., C)"""
    y, r = normalize(x)
    return ng.keep(y, r=r)


@solution_1.backward
def solution_1_backward(dy, y, r):
    return r * (dy - dy.mean(axis=-1, keepdims=True) - y * (dy * y).mean(axis=-1, keepdims=True))


assert attempt(solution_1, batch)

# `check_op` also checks the gradient of the gradient, which is order 2. For this the rule is itself differentiated, and
# r cannot be: the engine does not see how it was computed from x. So the check says "right at order 1, unknown at order
# 2". With order=1 it checks the gradient alone.
assert check_op(solution_1, cases=50, order=1).passed

# The package's layernorm also has a learned scale and shift. With scale 1 and shift 0 it is this one.
assert np.allclose(solution_1(batch), ops.layernorm(batch, np.ones(C), np.zeros(C)))
