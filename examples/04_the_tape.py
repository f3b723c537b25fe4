"""04  The tape: how an engine finds a gradient, built in thirty lines of NumPy.

The one idea: while the function runs, write every step on a tape. To find the gradient, read the tape from its end to
its beginning. At each entry, a rule turns the gradient of the result into the gradients of the inputs.
"""

# N rows of a batch, D inputs, H hidden units

import math
import weakref

import numpy as np

import nanograd_llm as ng
from nanograd_llm import ops
from nanograd_llm.gradcheck import attempt, gradcheck

rng = np.random.default_rng(0)

# %% A tape
# A Value holds an array, and later its gradient. The tape is a list. Every operation appends one entry to it: the
# result, the inputs, and a rule. The rule is a function that turns ȳ, called `dy`, into the gradients of the inputs.
tape = []


class Value:
    def __init__(self, data):
        self.data, self.grad = np.asarray(data), None


def record(data, inputs, rule):
    result = Value(data)
    tape.append((result, inputs, rule))
    return result


def add(a, b):
    return record(a.data + b.data, (a, b), lambda dy: (dy, dy))


def multiply(a, b):
    return record(a.data * b.data, (a, b), lambda dy: (dy * b.data, dy * a.data))


def matmul(a, b):  # (N, D) · (D, H) -> (N, H)
    return record(a.data @ b.data, (a, b), lambda dy: (dy @ b.data.T, a.data.T @ dy))


def tanh(x):
    y = np.tanh(x.data)
    return record(y, (x,), lambda dy: (dy * (1 - y * y),))


def total(x):  # any shape -> ()
    return record(x.data.sum(), (x,), lambda dy: (np.full(x.data.shape, dy),))


# %% The walk back
# Start at the result with the gradient 1, and read the tape backwards. When we come to an entry, the gradient of its
# result is complete. Its rule gives the gradients of the inputs. We add them to the gradients that the inputs already
# have, because an input may have other uses (lesson 2).


def walk_back(y, cotangent=1.0):
    y.grad = np.asarray(cotangent)
    for result, inputs, rule in reversed(tape):
        if result.grad is None:  # y does not depend on this result
            continue
        for x, gradient in zip(inputs, rule(result.grad)):
            x.grad = gradient if x.grad is None else x.grad + gradient


# Why not `x.grad += gradient`? It writes into the array. The rule of `add` returns dy twice, so two gradients can be
# one array, and a write into one would change the other. `x.grad + gradient` makes a new array.

# That is the whole engine. Try it on a network of two layers: loss = Σ (tanh(x W) v)².
x, W, v = (rng.standard_normal(shape) for shape in [(5, 3), (3, 4), (4, 1)])  # (N, D), (D, H), (H, 1)
small_x, small_W, small_v = Value(x), Value(W), Value(v)
hidden = tanh(matmul(small_x, small_W))  # (N, D) · (D, H) -> (N, H)
output = matmul(hidden, small_v)  # (N, H) · (H, 1) -> (N, 1)
walk_back(total(multiply(output, output)))

names = {id(small_x): "x", id(small_W): "W", id(small_v): "v"}
print("the tape, first entry first:")
for number, (result, inputs, _) in enumerate(tape):
    names[id(result)] = f"r{number}"
    print(f"    r{number} {str(result.data.shape):7} made from {', '.join(names[id(i)] for i in inputs)}")

# %% The engine does the same
# It has more operations, and each result holds its part of the tape, so there is no global list. The idea is the same.
tx, tW, tv = (ng.Tensor(array, requires_grad=True) for array in (x, W, v))
output = ops.tanh(tx @ tW) @ tv  # (N, D) · (D, H) · (H, 1) -> (N, 1)
(output * output).sum().backward()
for small, tensor in [(small_x, tx), (small_W, tW), (small_v, tv)]:
    assert np.allclose(small.grad, tensor.grad, rtol=1e-12)
print("x̄, W̄ and v̄ are the same numbers by the engine")

# x, W and v were given, not computed. They are called leaves. The engine stores `.grad` for leaves only. The gradient
# of a computed Tensor, such as `output`, is dropped as soon as its rule has used it; reading `output.grad` gives a
# warning that says so.
assert tW.grad is not None

# The tape keeps the arrays themselves, not copies. A write into one between forward and backward, here into x.data,
# gives wrong gradients without a word: 2x = 2 has become 4. So update weights after backward. Inside `ng.checked()`
# such a write raises an error.
leaf = ng.Tensor(np.ones(3), requires_grad=True)
y = leaf * leaf
leaf.data += 1
y.sum().backward()
assert np.array_equal(leaf.grad, [4, 4, 4])

# %% Why the newest entry comes first
# A rule must not run before its ȳ is complete. ȳ is complete when the walk has met every use of y. All uses of y were
# recorded after y itself. So if the walk goes from the newest entry to the oldest, every ȳ is complete in time.
#
# Now do it wrongly. Let a = 2x and y = a + a*a. The walk should meet y, then the square, then a. We swap two entries,
# so that it meets a before the square. The rule of a then runs too early: the walk has met only one use of a.
del tape[:]
x = Value(3.0)
a = multiply(Value(2.0), x)  # entry 0
square = multiply(a, a)  # entry 1
y = add(a, square)  # entry 2; y = 2x + 4x², so x̄ = 2 + 8x = 26
walk_back(y)
right = float(x.grad)

for value in (x, a, square):
    value.grad = None
tape[0], tape[1] = tape[1], tape[0]  # the walk meets y, then a, then the square
walk_back(y)
wrong = float(x.grad)
print(f"\nx̄ in the right order: {right}; in the wrong order: {wrong}")
assert right == 26 and wrong == 2  # the path through the square is lost

# %% Why not simply follow every path?
# One could also follow each path separately, and add the results at the end. This is right, but there can be very many
# paths. Start with x and add the number to itself, twenty times. Each step doubles the number of paths, so in the end
# there are a million. The tape has only twenty entries.
del tape[:]
x = y = Value(1.0)
for _ in range(20):
    y = add(y, y)
walk_back(y)
print(f"20 steps of x + x: {len(tape)} entries on the tape, {int(x.grad):,} paths")
assert len(tape) == 20 and x.grad == 2**20

# The engine walks such a tape in the same way, entry by entry.
x = y = ng.Tensor(1.0, requires_grad=True)
for _ in range(20):
    y = y + y
assert ng.grad(y, x) == 2**20

# %% What the tape keeps
# Rules need numbers of the forward pass, so the tape keeps them. `multiply` needs both inputs. `tanh` needs its result.
# `add` needs nothing. In the engine, the parameter names of a rule say what is kept. Python frees all other arrays.
#
# A weak reference shows this: it tells whether an array still exists, and does not keep it alive.
x = ng.Tensor(rng.standard_normal(1000), requires_grad=True)


def still_there(function):
    """Does the array of the result still exist before the walk back? And after it?"""
    y = function(x)
    array = weakref.ref(y.data)
    loss = (y + 1).sum()
    del y
    before = array() is not None
    loss.backward()
    return before, array() is not None


print("\nis the result kept (before backward, after backward)?")
for name, function in [("tanh(x)", ops.tanh), ("x + 1", lambda x: x + 1)]:
    print(f"    {name:8}", still_there(function))
assert still_there(ops.tanh) == (True, False)  # kept for the rule of tanh, and freed by the walk back
assert still_there(lambda x: x + 1) == (False, False)  # no rule needs it

# %% The tape is used once
# The walk back frees every entry as soon as its rule has run. This saves memory. A second walk is an error. If you need
# two walks, keep the tape by `y.backward(retain_graph=True)`.
y = ops.tanh(x).sum()
y.backward()
try:
    y.backward()
    raise AssertionError("the second walk should have been refused")
except ng.NanogradError as error:
    print(f"\na second walk: {error}")

# %% No tape where no gradient is wanted
# An entry is written only if one of the inputs requires a gradient. Inside `ng.no_grad()` nothing is written at all.
# Use it when you evaluate a model or generate text. It saves memory.
with ng.no_grad():
    y = ops.tanh(x).sum()
print("under no_grad the result requires a gradient:", y.requires_grad)
assert x.requires_grad and not y.requires_grad

# A number of Python has no tape either: not `float(x)`, not `x.item()`, and not what the functions of `math` return. No
# gradient goes through it. So use `ops.exp(a)`, not `math.exp(a)`.
a = ng.Tensor(2.0, requires_grad=True)
assert ng.grad(a * math.exp(a), a) == math.exp(2.0)  # wrong: here the engine takes e² for a constant
assert np.isclose(ng.grad(a * ops.exp(a), a), 3 * math.exp(2))  # (1 + a)*exp a
assert not ops.tanh(ng.Tensor(x.data)).requires_grad  # the input does not require one

# %% Is our small tape right?
# Let the gradient check decide. We write an op of the engine: its forward function is plain NumPy, and its rule runs
# the small tape.


def small_tape_gradients(walk, function, dy, *arrays):
    """The gradients of `function` at these arrays by the small tape, where dy is ȳ."""
    del tape[:]
    values = [Value(array) for array in arrays]
    walk(function(*values), dy)
    return tuple(np.zeros(x.data.shape) if x.grad is None else x.grad for x in values)


def small_network(x, w, v):
    return matmul(tanh(matmul(x, w)), v)


@ng.op("y = tanh(x w) v", "x̄, w̄ and v̄ by the small tape")
def network(x, w, v):
    """A network of two layers.  x (N, D), w (D, H), v (H, K) -> y (N, K)"""
    return np.tanh(x @ w) @ v


@network.backward
def network_backward(dy, x, w, v):
    return small_tape_gradients(walk_back, small_network, dy, x, w, v)


arrays = [rng.standard_normal(shape) for shape in [(5, 3), (3, 4), (4, 2)]]
report = gradcheck(network, *arrays)
print("our small tape:", "right" if report.passed else "not right")
assert report.passed

# %% Exercise 1: one more operation
# The small tape cannot divide yet. Correct the rule of y = a/b.


def exercise_1_divide(a, b):
    y = a.data / b.data

    def rule(dy):
        a_bar = dy / b.data
        b_bar = dy  # not yet right
        return a_bar, b_bar

    return record(y, (a, b), rule)


@ng.op("y = a/b", "ā and b̄ by the small tape")
def exercise_1(a, b):
    """Quotient.  a (*), b (*) -> y (*)"""
    return a / b


@exercise_1.backward
def exercise_1_backward(dy, a, b):
    return small_tape_gradients(walk_back, exercise_1_divide, dy, a, b)


print()
attempt(exercise_1, np.array([1.0, -2.0]), np.array([0.5, 3.0]))

# %% Exercise 2: a walk with two mistakes
# The walk below has two mistakes. Correct them. It is tried on y = Σ (a² + a + tanh x) with a = 2x, which uses x twice
# and a three times.


def exercise_2_walk(y, cotangent):
    y.grad = np.asarray(cotangent)
    for result, inputs, rule in tape:  # not yet right
        if result.grad is None:
            continue
        for x, gradient in zip(inputs, rule(result.grad)):
            x.grad = gradient  # not yet right


def many_uses(x):
    b = tanh(x)
    a = multiply(Value(2.0), x)
    squares = multiply(a, a)
    return total(add(squares, add(a, b)))


@ng.op("y = Σ 4x² + 2x + tanh x", "x̄ by the walk of the exercise")
def exercise_2(x):
    """A function with several paths from x.  x (C) -> y ()"""
    return (4 * x * x + 2 * x + np.tanh(x)).sum()


@exercise_2.backward
def exercise_2_backward(dy, x):
    return small_tape_gradients(exercise_2_walk, many_uses, dy, x)


attempt(exercise_2, np.array([0.5, -1.0, 2.0]))

# %% Solution 1
#     Δy = Δa/b - a*Δb/b²             the quotient rule
#        = Δa/b - (y/b)*Δb            since y = a/b
#     ā  = ȳ/b                        the factor in front of Δa, times ȳ
#     b̄  = -ȳ*y/b                     the factor in front of Δb, times ȳ


def divide(a, b):
    y = a.data / b.data
    return record(y, (a, b), lambda dy: (dy / b.data, -dy * y / b.data))


@ng.op("y = a/b", "ā and b̄ by the small tape")
def solution_1(a, b):
    """Quotient.  a (*), b (*) -> y (*)"""
    return a / b


@solution_1.backward
def solution_1_backward(dy, a, b):
    return small_tape_gradients(walk_back, divide, dy, a, b)


assert attempt(solution_1, np.array([1.0, -2.0]), np.array([0.5, 3.0]))

# %% Solution 2
# The walk must read `reversed(tape)`. Where a gradient is already there, it must add. So the solution is `walk_back`.


@ng.op("y = Σ 4x² + 2x + tanh x", "x̄ by walk_back")
def solution_2(x):
    """A function with several paths from x.  x (C) -> y ()"""
    return (4 * x * x + 2 * x + np.tanh(x)).sum()


@solution_2.backward
def solution_2_backward(dy, x):
    return small_tape_gradients(walk_back, many_uses, dy, x)


assert attempt(solution_2, np.array([0.5, -1.0, 2.0]))
