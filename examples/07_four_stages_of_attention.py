"""07  Four stages of attention: how the tokens of a sentence learn from each other.

The one idea: every token becomes a weighted mean of tokens, and attention computes the weights. Each stage changes one
thing about the weights. With the same parameters it computes the same numbers as the stage before.
"""

# B batch, T time, C channels, H heads, D = C/H

import numpy as np

import nanograd_llm as ng
from nanograd_llm import nn

# %% A sentence as vectors
# A word is a vector of C random channels. The same word has the same vector at every position.
words = "the cat saw the dog and the cat ran".split()
T, C = len(words), 16
rng = np.random.default_rng(0)
vectors = {word: rng.standard_normal(C, dtype=np.float32) for word in words}
x = ng.Tensor(np.stack([vectors[word] for word in words])[None])  # T × (C) -> (B, T, C), B = 1


def draw(weights):
    """Print attention weights (T, T): each row is a word, each column a word it looks at; dark is a large weight."""
    shades = " ░▒▓█"
    print(" " * 5 + " ".join(f"{word:4}" for word in words))
    for word, row in zip(words, weights):
        levels = np.ceil(row / row.max() * 4 - 0.05).astype(int)
        print(f"{word:>4} " + " ".join(shades[level] * 4 for level in levels))


def close(a, b):
    """Equal up to the rounding of float32."""
    return np.allclose(a, b, atol=1e-5)


# %% Stage 1: tokens that resemble each other look at each other
# Nothing is learned here: a weight is the softmax of a dot product. `weights(x)` gives the weights of a layer.
simple = nn.SimplifiedSelfAttention()
weights = simple.weights(x).data[0]  # (B, T, T) -> (T, T)
print("1  simplified: a word finds its own copies")
draw(weights)
assert simple.parameters() == []
assert close(weights.sum(axis=-1), 1)  # every row has the weights of a mean
assert words[1] == words[7] and close(weights[1], weights[7])  # the two cats cannot be told apart

# This layer does not know the order of the words: if they are shuffled, the results are shuffled in the same way.
# Therefore a GPT adds a vector for the position to the vector of a word (lesson 8).
order = rng.permutation(T)
assert close(simple(x[:, order]).data, simple(x).data[:, order])

# %% Stage 2: queries, keys and values are learned
# A cat may need a verb instead of other cats. So three learned matrices turn each token into a query (what it looks
# for), a key (what it is found by) and a value (what it passes on). Scores are divided by √D. So with identity matrices
# as weights (that of the query times √D), this is stage 1 again.
learned = nn.SelfAttention(C, C, rng=rng)
identity = np.eye(C, dtype=np.float32)
learned.load_state_dict({"query.weight": identity * C**0.5, "key.weight": identity, "value.weight": identity})
assert close(learned(x).data, simple(x).data)

# Now with random weights, as before training. The gradient says how to change them.
learned = nn.SelfAttention(C, C, rng=rng)
print("2  learned queries and keys: before training, the weights are random")
draw(learned.weights(x).data[0])
learned(x).sum().backward()
assert all(parameter.grad is not None for parameter in learned.parameters())

# %% Stage 3: no token looks into the future
# Before the softmax, the scores of later tokens are set to -inf, so that their weights are exactly 0.
causal = nn.CausalAttention(C, C)
causal.load_state_dict(learned.state_dict())
print("3  causal: the same, but the future is masked")
draw(causal.weights(x).data[0])
assert close(causal(x).data[:, -1], learned(x).data[:, -1])  # the last word sees all words in both stages
assert close(causal(x).data[:, 0], causal.value(x).data[:, 0])  # the first one sees only itself

# Change the future, that is the words from `now` on. The results for earlier words do not change.
now = 5
changed = x.data.copy()
changed[:, now:] = rng.standard_normal((T - now, C))
assert close(causal(changed).data[:, :now], causal(x).data[:, :now])
assert not close(learned(changed).data[:, :now], learned(x).data[:, :now])

# The gradient shows the same: the result for word 2 does not depend on a later word.
leaf = ng.Tensor(x, requires_grad=True)
influence = np.abs(ng.grad(causal(leaf)[0, 2].sum(), leaf)[0]).sum(axis=-1)  # (T): the influence of each word on word 2
print("influence on word 2:", "  ".join(f"{word} {size:.2f}" for word, size in zip(words, influence)))
assert (influence[:3] > 0).all() and (influence[3:] == 0).all()

# %% Stage 4: several heads look at different things at once
# Each head has its own D = C/H channels. The results of the heads are put side by side, and a linear layer mixes them.
H, D = 2, C // 2
heads = nn.MultiHeadList(C, H, rng=rng)
maps = heads.weights(x).data[0]  # (H, T, T)
print("4  two heads with different weights: the second one")
draw(maps[1])
assert maps.shape == (H, T, T) and not close(maps[0], maps[1])
assert close(maps[1], heads.heads[1].weights(x).data[0])  # a head by itself is a stage 3

# A faster form: one product computes the queries, keys and values of all heads, and one op the attention of all heads.
# The numbers are the same. The weight is (C, 3C): the queries of all heads side by side, then the keys, then the
# values.
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
print(f"one head of {C} channels or {H} of {D}, in a list or together: {batched.parameter_count():,} parameters")
