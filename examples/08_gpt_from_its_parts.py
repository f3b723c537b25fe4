"""08  A GPT from its parts: what is needed besides attention to make a language model.

The one idea: a GPT is a stack of blocks that add to one residual stream. The stream starts as the vector of a token
plus the vector of its position. At the end it is compared with every token's vector, to score the next token.
"""

# B batch, T time, C channels (n_embd), H heads, V vocabulary

import math

import numpy as np

import nanograd_llm as ng
from nanograd_llm import nn, ops, text

# %% The whole model
# A Module is a tree of attributes: a Parameter or Module that is assigned to it belongs to it. `forward` contains all
# of the mathematics; the engine finds the gradient by itself.


class HandmadeGPT(nn.Module):
    def __init__(self, vocab_size, context_length, n_layer, n_head, n_embd, rng):
        self.wte = ng.Parameter(0.02 * rng.standard_normal((vocab_size, n_embd), dtype=np.float32))
        self.wpe = ng.Parameter(0.02 * rng.standard_normal((context_length, n_embd), dtype=np.float32))
        residual_std = 0.02 / math.sqrt(2 * n_layer)  # 2 n_layer results add up in the stream
        self.blocks = [nn.Block(n_embd, n_head, residual_std=residual_std, rng=rng) for _ in range(n_layer)]
        self.ln_f = nn.LayerNorm(n_embd)

    def forward(self, tokens):
        T = tokens.shape[-1]
        x = ops.embedding(self.wte, tokens) + self.wpe[:T]  # (B, T) -> (B, T, C), the same positions in every row
        for block in self.blocks:
            x = block(x)  # (B, T, C), x + attention(norm(x)), then x + mlp(norm(x))
        return self.ln_f(x) @ self.wte.T  # (B, T, C)·(C, V) -> (B, T, V): the head is the token table

    def loss(self, tokens, targets):
        return ops.cross_entropy(self(tokens), targets)  # (B, T, V), (B, T) -> ()


# %% A batch to try it on
corpus = text.builtin_corpus()
tokenizer = text.BPETokenizer.train(corpus[:100_000], vocab_size=512)
ids = tokenizer.encode(corpus[:100_000])
tokens, targets = text.random_windows(ids, context_length=32, batch_size=4, seed=0, step=0)  # 2 × (B, T)

sizes = dict(vocab_size=tokenizer.vocab_size, context_length=32, n_layer=3, n_head=4, n_embd=64)
V, C, n_layer = sizes["vocab_size"], sizes["n_embd"], sizes["n_layer"]
model = HandmadeGPT(**sizes, rng=np.random.default_rng(0))

# %% It is the package's GPT
# The parameters have the same names, so the package's GPT can load them. Then both compute the same logits. Loading is
# strict: if a name is missing or extra, or a shape differs, an error lists all of them.
packaged = ng.GPT(ng.GPTConfig(**sizes), seed=1)
packaged.load_state_dict(model.state_dict())
assert np.allclose(packaged(tokens).data, model(tokens).data, atol=1e-5)
assert np.isclose(packaged.loss(tokens, targets).item(), model.loss(tokens, targets).item(), atol=1e-5)

# %% Where the parameters are
# A block has 12 C² weights: 4 C² in attention (queries, keys, values, mixing), 8 C² in the MLP (C -> 4C -> C). The
# token table is used at both ends and counts once.
total = model.parameter_count()
in_blocks = sum(block.parameter_count() for block in model.blocks)
print(f"{total:,} parameters: {V * C:,} in the token table, {in_blocks:,} in {n_layer} blocks")
assert in_blocks == n_layer * (12 * C * C + 13 * C)  # 13 C biases and norms

# %% The loss before training
# All V tokens are about equally likely, so the loss is ln V. A loss far above this would mean that the model is
# confident without a reason: a mistake in the initial values. A loss below it would mean that the model sees its
# targets: a mistake in the batch or in the mask.
loss = model.loss(tokens, targets)
print(f"loss at the start {loss.item():.3f}, ln V = {math.log(V):.3f}")
assert abs(loss.item() - math.log(V)) < 0.1

# %% Every parameter gets a gradient
# After one backward pass, each parameter has a gradient of its own shape, which says how to change it.
loss.backward()
assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.any() for p in model.parameters())

# The token table is used twice. As the embedding, only the tokens of the batch get a gradient; as the head, all do.
seen = np.unique(tokens)
lengths = np.linalg.norm(model.wte.grad, axis=-1)  # (V, C) -> (V)
print(f"{len(seen)} of {V} tokens are in the batch; {np.count_nonzero(lengths)} have a gradient")
assert len(seen) < V and (lengths > 0).all()

# %% Look inside
# `look` computes the same logits, and keeps the stream before and after each block, and the attention map of every
# head.
look = packaged.look(tokens)
assert np.allclose(look.logits, model(tokens).data, atol=1e-5)
assert len(look.hidden_states) == n_layer + 1 and look.attention_maps[0].shape == (4, sizes["n_head"], 32, 32)

# Each block adds to the stream. Before training it adds little.
widths = [hidden.std() for hidden in look.hidden_states]
print("spread of the stream, before the blocks and after each:", "  ".join(f"{width:.4f}" for width in widths))
assert widths == sorted(widths) and widths[-1] < 2 * widths[0]

# Before training, every head gives about the same weight to all tokens up to its own: token t sees t + 1 tokens.
even = np.tril(np.ones((32, 32))) / np.arange(1, 33)[:, None]
farthest = max(np.abs(maps - even).max() for maps in look.attention_maps)
print(f"the largest difference of an attention weight from an even weight is {farthest:.3f}")
assert farthest < 0.05
