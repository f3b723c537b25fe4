"""25  Step through backprop: work out one gradient by hand, and watch the engine do the same.

The one idea: `ng.trace` records a forward and its backward pass. Then you can walk along them, one op call at a time,
and ask of any number where it came from.
"""

import numpy as np

import nanograd_llm as ng
from nanograd_llm import ops

# %% An expression, and its gradient by hand
# Three numbers go in, and one comes out:
#
#     h1 = r*s         h2 = h1 + t         L = tanh h2
#
# Go backward from L. Each line is the rule of one op, applied to the gradient that the line above it gives:
#
#     L̄  = 1                                     the gradient of L with respect to itself
#     h̄2 = L̄*(1 - L²)                            tanh
#     h̄1 = h̄2,  t̄ = h̄2                           the sum passes it on
#     r̄  = h̄1*s,  s̄ = h̄1*r                       the product swaps its inputs


def expression(r, s, t):
    h1 = r * s
    h2 = h1 + t
    return ops.tanh(h2)


r, s, t = 2.0, -0.5, 1.5
L = np.tanh(r * s + t)
h2_bar = 1 - L**2
r_bar, s_bar, t_bar = h2_bar * s, h2_bar * r, h2_bar
print(f"by hand: r̄ = {r_bar:.4f}, s̄ = {s_bar:.4f}, t̄ = {t_bar:.4f}")

# %% The same, recorded
# A trace has a table of the op calls: |y| is the size of what came out, |ȳ| that of the gradient which arrived there.
trace = ng.trace(expression, r, s, t)
print(trace)
assert np.allclose([trace.grads["r"], trace.grads["s"], trace.grads["t"]], [r_bar, s_bar, t_bar])

# %% Step along it
# `trace.step()` is a prompt. `n` takes the next step: three forward, then the same three backward. Here the commands
# are given instead of typed: from call 2 turn to its backward, then two steps on. Each step shows the rule's own lines.
# A rule calls its inputs a, b or x, whatever you call yours: "to r" says which of yours it means.
trace.step(2, commands=["f", "n", "n"])

# %% Ask a number where it came from
# One entry of a gradient is a sum: over all outputs of the op, what arrived there times the slope of the output. The
# slopes come from the forward, not from the rule. So the sum tells whether the rule is right.
x = np.array([0.5, 2.0, -1.0])
trace = ng.trace(lambda x: (ops.softmax(x) * np.array([6.0, 0.0, 1.0])).sum(), x)
terms = trace.terms(0, "x", 1)
print()
print(terms)
assert terms.agrees and len(terms.terms) == 3  # every probability depends on every x

# %% Nudge a number
# The gradient says how fast the result changes with this number. Test it: move one entry up and down, run the recorded
# calls behind it again, and compare. What the tape does not know, such as `float(x)`, stays as it was: only a gradient
# check runs the function itself again.
nudge = trace.nudge("x", 1)
print(nudge)
assert nudge.agrees

# %% What next
# `trace.html("page.html")` writes the same as a page for your browser. `trace.script("backward.py")` writes it as a
# plain NumPy script that gives the same bits. And this steps through a model that you have trained:
#
#     nanograd-llm step runs/nano-1 "the cat sat"
