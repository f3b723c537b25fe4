"""07  Four stages of attention: how the tokens of a sentence learn from each other.

The one idea: every token becomes a weighted mean of tokens, and attention is the art of choosing the weights. Each
stage changes one thing about the weights, and given the same parameters computes the same numbers as the stage before.
"""

# B batch, T time, C channels, H heads, D = C/H

import numpy as np

import nanograd_llm as ng
from nanograd_llm import nn

# %% A sentence as vectors
# A word is a vector of C random channels; the same word is the same vector, wherever it stands.
words = "the cat saw the dog and the cat ran".split()
T, C = len(words), 16
rng = np.random.default_rng(0)
vectors = {word: rng.standard_normal(C, dtype=np.float32) for word in words}
x = ng.Tensor(np.stack([vectors[word] for word in words])[None])  # T × (C) -> (B, T, C), B = 1


def draw(weights):
    """Print attention weights (T, T): who looks (a row) at whom (a column); the darkest is where a row looks most."""
    shades = " ░▒▓█"
    print(" " * 5 + " ".join(f"{word:4}" for word in words))
    for word, row in zip(words, weights):
        levels = np.ceil(row / row.max() * 4 - 0.05).astype(int)
        print(f"{word:>4} " + " ".join(shades[level] * 4 for level in levels))


def close(a, b):
    """Equal up to the rounding of float32."""
    return np.allclose(a, b, atol=1e-5)


# %% Stage 1: tokens that resemble each other look at each other
# Nothing is learned: a weight is the softmax of a dot product. `weights(x)` shows what a layer would use.
simple = nn.SimplifiedSelfAttention()
weights = simple.weights(x).data[0]  # (B, T, T) -> (T, T)
print("1  simplified: a word finds its own copies")
draw(weights)
assert simple.parameters() == []
assert close(weights.sum(axis=-1), 1)  # every row is a mean's weights
assert words[1] == words[7] and close(weights[1], weights[7])  # the two cats cannot be told apart

# It does not know the order of the words: shuffle them, and the results are only shuffled. A GPT therefore adds to the
# vector of a word one for its position (08_gpt_from_its_parts.py).
order = rng.permutation(T)
assert close(simple(x[:, order]).data, simple(x).data[:, order])

# %% Stage 2: what a token looks for, offers and passes on become three learned views of it
# A cat may look for a verb instead of for cats. Queries ask, keys answer, values are what is passed on; scores are
# divided by √D, so with identities for weights (the query's times √D) this is stage 1 again.
learned = nn.SelfAttention(C, C, rng=rng)
identity = np.eye(C, dtype=np.float32)
learned.load_state_dict({"query.weight": identity * C**0.5, "key.weight": identity, "value.weight": identity})
assert close(learned(x).data, simple(x).data)

# Weights of its own, as they are before training. The gradient says how to change them.
learned = nn.SelfAttention(C, C, rng=rng)
print("2  learned queries and keys: before training, arbitrary preferences")
draw(learned.weights(x).data[0])
learned(x).sum().backward()
assert all(parameter.grad is not None for parameter in learned.parameters())

# %% Stage 3: no token looks into the future
# Scores of later tokens become -inf before the softmax, so that their weights are exactly 0.
causal = nn.CausalAttention(C, C)
causal.load_state_dict(learned.state_dict())
print("3  causal: the same preferences, the future masked")
draw(causal.weights(x).data[0])
assert close(causal(x).data[:, -1], learned(x).data[:, -1])  # the last word sees all words in either stage
assert close(causal(x).data[:, 0], causal.value(x).data[:, 0])  # the first one sees only itself

# Change the future, the words from `now` on, and look at what the past makes of it.
now = 5
changed = x.data.copy()
changed[:, now:] = rng.standard_normal((T - now, C))
assert close(causal(changed).data[:, :now], causal(x).data[:, :now])
assert not close(learned(changed).data[:, :now], learned(x).data[:, :now])

# The gradient says the same without changing anything: nothing that word 2 becomes depends on a later word.
leaf = ng.Tensor(x, requires_grad=True)
influence = np.abs(ng.grad(causal(leaf)[0, 2].sum(), leaf)[0]).sum(axis=-1)  # (T): of each word on word 2
print("influence on word 2:", "  ".join(f"{word} {size:.2f}" for word, size in zip(words, influence)))
assert (influence[:3] > 0).all() and (influence[3:] == 0).all()

# %% Stage 4: several heads look at different things at once
# Each head attends in a small space of its own, D = C/H channels; their results stand side by side and are mixed.
H, D = 2, C // 2
heads = nn.MultiHeadList(C, H, rng=rng)
maps = heads.weights(x).data[0]  # (H, T, T)
print("4  two heads, two opinions: the second one")
draw(maps[1])
assert maps.shape == (H, T, T) and not close(maps[0], maps[1])
assert close(maps[1], heads.heads[1].weights(x).data[0])  # a head by itself is a stage 3

# One product makes the queries, keys and values of all heads, one op attends in all of them: the same numbers, sooner.
# Its weight is (C, 3C): the queries of every head side by side, then the keys, then the values.
batched = nn.MultiHeadAttention(C, H)
views = [getattr(head, view) for view in ("query", "key", "value") for head in heads.heads]  # 3H × Linear(C, D)
batched.load_state_dict(
    {
        "qkv.weight": np.concatenate([view.weight.data for view in views], axis=-1),  # 3H × (C, D) -> (C, 3C)
        "qkv.bias": np.concatenate([view.bias.data for view in views]),
        "out.weight": heads.out.weight.data,
        "out.bias": heads.out.bias.data,
    }
)
assert close(batched(x).data, heads(x).data)
assert batched.parameter_count() == heads.parameter_count() == 4 * C * C + 4 * C
print(f"one head of {C} or {H} of {D}, in a list or at once: {batched.parameter_count():,} parameters")
