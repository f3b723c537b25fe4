"""01  The chain rule: how much a result changes when one of the numbers behind it changes.

The one idea: every step of a computation multiplies a small change by a factor. Follow the steps back from the result,
multiply the factors, and you know the derivative with respect to every number.
"""

import math

import numpy as np

import nanograd_llm as ng
from nanograd_llm.gradcheck import attempt

# %% A computation in three steps
# Three numbers go in: a, b and c. One number comes out: y. There are two numbers between: p and s.
#
#     a = 2 ──┐
#             ├─ p = a*b = -6 ──┐
#     b = -3 ─┘                 ├─ s = p + c = 4 ─── y = s² = 16
#     c = 10 ───────────────────┘


def compute(a, b, c):
    p = a * b
    s = p + c
    return s * s


a, b, c = 2.0, -3.0, 10.0
y = compute(a, b, c)
print(f"a = {a}, b = {b}, c = {c} give y = {y}")
assert y == 16

# %% What is a derivative?
# Change a by a small step h and watch y. The derivative ∂y/∂a is the change of y divided by the change of a. We take
# one step up and one step down, and divide by the distance 2h. This is called a central difference.
h = 1e-4
by_difference = {
    "a": (compute(a + h, b, c) - compute(a - h, b, c)) / (2 * h),
    "b": (compute(a, b + h, c) - compute(a, b - h, c)) / (2 * h),
    "c": (compute(a, b, c + h) - compute(a, b, c - h)) / (2 * h),
}
for name, value in by_difference.items():
    print(f"change {name} by h: y changes by {value:8.4f}*h")

# %% Each step alone is easy
# The derivatives of each single step are basic calculus:
#
#     y = s²        ∂y/∂s = 2s
#     s = p + c     ∂s/∂p = 1     ∂s/∂c = 1
#     p = a*b       ∂p/∂a = b     ∂p/∂b = a
#
# The chain rule says: multiply along a path. From a to y the path is a -> p -> s -> y. So
#
#     ∂y/∂a = ∂y/∂s * ∂s/∂p * ∂p/∂a = 2s * 1 * b.
#
# The paths from b and from c share factors with this one. To compute each factor only once, we start at y and walk
# back. For each number we write down the derivative of y with respect to it. This is called the gradient of the number,
# or its adjoint. We write it with a bar: s̄ means ∂y/∂s. In code it is s_bar.
p = a * b
s = p + c

y_bar = 1.0  # ∂y/∂y: y changes exactly as much as y
s_bar = y_bar * 2 * s  # through y = s²
p_bar = s_bar * 1  # through s = p + c
c_bar = s_bar * 1  # through s = p + c
a_bar = p_bar * b  # through p = a*b
b_bar = p_bar * a  # through p = a*b

by_hand = {"s": s_bar, "p": p_bar, "a": a_bar, "b": b_bar, "c": c_bar}
assert by_hand == {"s": 8, "p": 8, "a": -24, "b": 16, "c": 8}
for name, value in by_difference.items():
    assert math.isclose(by_hand[name], value, rel_tol=1e-6)

# %% The same by the engine
# A Tensor is an array that remembers how it was computed. `requires_grad=True` says that we want its gradient. The
# forward pass is the same code as above. Then `backward` walks back from y. It stores each gradient in the `.grad` of
# its Tensor.
ta = ng.Tensor(2.0, requires_grad=True)
tb = ng.Tensor(-3.0, requires_grad=True)
tc = ng.Tensor(10.0, requires_grad=True)
compute(ta, tb, tc).backward()
assert (ta.grad, tb.grad, tc.grad) == (-24, 16, 8)

# `ng.grad` returns gradients instead of storing them. It also gives the gradients of p and s.
tp = ta * tb
ts = tp + tc
by_engine = dict(zip("spabc", ng.grad(ts * ts, [ts, tp, ta, tb, tc])))
print("\n     by hand   by the engine")
for name, value in by_hand.items():
    print(f"{name}  {value:9.1f} {float(by_engine[name]):15.1f}")
assert by_engine == by_hand

# %% What a gradient is good for
# The gradient tells you how to make y smaller: move each number a little against its gradient. Let r be a small
# number, and move a by -r*a_bar. This changes y by about a_bar * (-r*a_bar) = -r*a_bar². The same holds for b and c.
# So y falls by about r * (a_bar² + b_bar² + c_bar²). Every network in this course learns like this.
r = 1e-5
expected = r * (a_bar**2 + b_bar**2 + c_bar**2)
fall = y - compute(a - r * a_bar, b - r * b_bar, c - r * c_bar)
print(f"\na step against the gradient: expected fall {expected:.5f}, observed fall {fall:.5f}")
assert math.isclose(fall, expected, rel_tol=0.02)

# %% Why walk back?
# Central differences need two runs of the function for each number. A small GPT has 100,000 numbers to learn. That
# would be 200,000 runs for one gradient. The walk back finds all derivatives in one pass, because the paths share
# factors. It takes about as long as two or three runs, and this does not depend on how many numbers there are.
runs = 0


def many(x):
    """Σ x³ over n numbers.  x (n) -> y ()"""
    global runs
    runs += 1
    return (x * x * x).sum()


x = np.linspace(-1, 1, 500)  # (n), n = 500
steps = h * np.eye(500)  # (n, n): row i changes number i alone
slow = np.array([(many(x + step) - many(x - step)) / (2 * h) for step in steps])  # (n)
runs_by_difference, runs = runs, 0

leaf = ng.Tensor(x, requires_grad=True)
many(leaf).backward()
print(f"500 derivatives: {runs_by_difference} runs by differences, {runs} run and one walk back by the engine")
assert (runs_by_difference, runs) == (1000, 1)
assert np.allclose(leaf.grad, slow, atol=1e-6)
assert np.allclose(leaf.grad, 3 * x**2)  # and this is what calculus says

# %% Exercise 1: three derivatives by hand
# Here is another function of three numbers, y = a*b*b + sin(c). It is written as an op: a forward function, and a
# backward rule. (Lesson 3 explains the declaration.) The rule receives dy, which is the gradient ȳ of the result. It
# returns ā, b̄ and c̄. Two of the three are wrong. Correct them, and run the file again. `attempt` compares your rule
# with the forward function. Use `ng.ops.cos` for a cosine, and `b**2` for b²: in Python, `^` is no power.


@ng.op("y = a*b*b + sin c", "ā = ?;  b̄ = ?;  c̄ = ?")
def exercise_1(a, b, c):
    """A function of three numbers.  a (*), b (*), c (*) -> y (*)"""
    return a * b * b + np.sin(c)


@exercise_1.backward
def exercise_1_backward(dy, a, b, c):
    a_bar = dy * b * b
    b_bar = dy * a  # not yet right
    c_bar = dy  # not yet right
    return a_bar, b_bar, c_bar


print()
attempt(exercise_1, 1.5, -3.0, 0.5)

# %% Solution 1
# Try the exercise before you read this.
#
#     let q = b*b, u = a*q, v = sin c, y = u + v
#     ū = ȳ      v̄ = ȳ               through y = u + v
#     ā = ū*q = ȳ*b²    q̄ = ū*a      through u = a*q
#     b̄ = q̄*2b = ȳ*2a*b              through q = b²
#     c̄ = v̄*cos c = ȳ*cos c          through v = sin c


@ng.op("y = a*b*b + sin c", "ā = ȳ*b²;  b̄ = ȳ*2a*b;  c̄ = ȳ*cos c")
def solution_1(a, b, c):
    """A function of three numbers.  a (*), b (*), c (*) -> y (*)"""
    return a * b * b + np.sin(c)


@solution_1.backward
def solution_1_backward(dy, a, b, c):
    return dy * b * b, dy * 2 * a * b, dy * ng.ops.cos(c)


assert attempt(solution_1, 2.0, -3.0, 0.5)
