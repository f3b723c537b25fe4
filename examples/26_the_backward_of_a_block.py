"""26  The backward of a block: from the logits of a GPT down to its embedding, by hand.

The one idea: a transformer is a chain of a few rules. You write each of them in NumPy, and `trace.check` compares it
with the recorded pass: exact, close, or what the mistake looks like.
"""

# T time, C channels, V vocabulary; one text and one head, so arrays are (T, C) where the model's are (1, T, C)

import numpy as np

import nanograd_llm as ng
from nanograd_llm import ops

# %% A small GPT, and what we want
# One block, in float64. The names `logits` and `hidden` are those of our variables: a trace finds them.
T, C, V = 4, 6, 7
model = ng.GPT(ng.GPTConfig(vocab_size=V, context_length=T, n_layer=1, n_head=1, n_embd=C), seed=0).astype(np.float64)
for parameter in model.parameters():  # larger than at the start of training, so that every part matters
    parameter.data *= 10
tokens, targets = np.array([[3, 0, 5, 3]]), np.array([0, 5, 3, 1])


def loss(tokens, targets):
    hidden = model.hidden(tokens)[0]  # (1, T, C) -> (T, C)
    logits = hidden @ model.wte.T  # (T, C)·(C, V) -> (T, V)
    return ops.cross_entropy(logits, targets)


trace = ng.trace(loss, tokens, targets)
print(trace)


def value(name):
    """What the forward computed, without the axis of the batch."""
    array = trace.value(name).array
    return array[0] if array.ndim == 3 else array


logits, hidden, wte = value("logits"), value("hidden"), value("wte")
assert logits.shape == (T, V) and wte.shape == (V, C)

# %% Exercise 1: the logits
# The loss is the mean over T positions of -log softmax(logits)[target]. Its gradient is short: the probabilities, with
# 1 taken off at the target, divided by T. The function below forgets something.
p = ops.softmax(logits)  # (T, V)


def exercise_1_backward():
    return p / T  # not yet right


trace.check({"logits": exercise_1_backward})

# %% Solution 1
# If a target already has probability 1, the gradient is 0.


def solution_1_backward():
    return (p - np.eye(V)[targets]) / T


assert trace.check({"logits": solution_1_backward})
d_logits = solution_1_backward()

# %% The head
# logits = hidden wteᵀ is a product of matrices. Its rule: multiply what arrives with the other matrix.
d_hidden = d_logits @ wte  # (T, V)·(V, C) -> (T, C)
d_wte_head = d_logits.T @ hidden  # (V, T)·(T, C) -> (V, C)
assert trace.check({"hidden": d_hidden})

# This is not the whole gradient of the table. What does the check say about it?
assert not trace.check({"wte": d_wte_head})

# %% Exercise 2: the last norm
# y = x̂*w + b with x̂ = (x - ⟨x⟩)*r. Lesson 3 derived the rule for w = 1. With a scale, g = ȳ*w takes the place of ȳ:
#
#     x̄ = r*(g - ⟨g⟩ - x̂*⟨g*x̂⟩)
x_out = value("blocks.0")  # what the block gives to the norm: (T, C)


def normalised(x):
    """x̂ and r of each row.  (T, C) -> (T, C), (T, 1)"""
    centred = x - x.mean(axis=-1, keepdims=True)
    r = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return centred * r, r


def exercise_2_backward():
    _, r = normalised(x_out)
    return (r * d_hidden * value("ln_f.weight"))[None]  # not yet right


trace.check({"blocks.0": exercise_2_backward})

# %% Solution 2
# Shifting the whole row, or making it longer, does not change y, because the norm undoes both. The two means take
# these directions out of the gradient.


def norm_backward(d_y, x, w):
    x_hat, r = normalised(x)
    g = d_y * w
    return r * (g - g.mean(-1, keepdims=True) - x_hat * (g * x_hat).mean(-1, keepdims=True))  # (T, C)


def solution_2_backward():
    return norm_backward(d_hidden, x_out, value("ln_f.weight"))[None]


assert trace.check({"blocks.0": solution_2_backward})
d_x = solution_2_backward()[0]

# %% The MLP and its way around
# The block ends with x + mlp(ln_2(x)). A sum passes its gradient to both sides. So the stream gets d_x directly, and a
# second part that has gone through the MLP and its norm.
u = value("blocks.0.mlp.up")  # (T, 4C)
inner = np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)
slope = 0.5 * (1 + np.tanh(inner)) + 0.5 * u / np.cosh(inner) ** 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * u**2)
d_a = d_x @ value("blocks.0.mlp.down.weight").T  # (T, C)·(C, 4C) -> (T, 4C)
d_u = d_a * slope  # gelu is elementwise
d_normed = d_u @ value("blocks.0.mlp.up.weight").T  # (T, 4C)·(4C, C) -> (T, C)
stream = trace[7]  # in the table: the first add of blocks.0, after attention
x_mid = stream.output.array[0]  # (T, C)
d_mid = d_x + norm_backward(d_normed, x_mid, value("blocks.0.ln_2.weight"))
assert trace.check({"blocks.0.mlp.up": d_u[None], "blocks.0.ln_2": d_normed[None]})
assert np.allclose(d_mid, stream.cotangent[0])

# %% Attention
# y = P v with P = softmax(q kᵀ/√C), later keys hidden. The rule of a product gives P̄ and v̄, that of softmax (lesson 3)
# gives the gradient of the scores, and once more the rule of a product gives q̄ and k̄.
q, k, v = np.split(value("blocks.0.attention.qkv"), 3, axis=-1)  # 3 × (T, C)
scores = np.where(np.tri(T, dtype=bool), q @ k.T / np.sqrt(C), -np.inf)
P = ops.softmax(scores)  # (T, T)
d_y = d_mid @ value("blocks.0.attention.out.weight").T  # (T, C)
d_P, d_v = d_y @ v.T, P.T @ d_y
d_scores = P * (d_P - (d_P * P).sum(-1, keepdims=True)) / np.sqrt(C)
d_qkv = np.concatenate([d_scores @ k, d_scores.T @ q, d_v], axis=-1)  # (T, 3C)
assert trace.check({"blocks.0.attention.qkv": d_qkv[None]})

# %% Exercise 3: the table
# The stream begins with wte[tokens] + wpe. So the gradient at the bottom goes to the rows of the tokens, beside what
# the head gave to all rows. Token 3 stands in the text twice. What does this line do to it?
x_in = trace[2].output.array[0]  # in the table: the add before the block
d_bottom = d_mid + norm_backward(d_qkv @ value("blocks.0.attention.qkv.weight").T, x_in, value("blocks.0.ln_1.weight"))


def exercise_3_backward():
    d_wte = d_wte_head.copy()
    d_wte[tokens[0]] += d_bottom  # not yet right
    return d_wte


trace.check({"wte": exercise_3_backward})

# %% Solution 3
# With an index that repeats, NumPy's += adds only the last of the rows. `np.add.at` adds them all.


def solution_3_backward():
    d_wte = d_wte_head.copy()
    np.add.at(d_wte, tokens[0], d_bottom)
    return d_wte


assert trace.check({"wte": solution_3_backward, "wpe": d_bottom})
