"""16  An encoder sees both sides: what it can know of a word that a decoder cannot.

The one idea: a decoder such as a GPT hides later tokens, because it must predict them. In an encoder every token looks
at the whole text. So an encoder can use what comes later, but it cannot predict what comes next.
"""

# B batch, T time, V vocabulary

import numpy as np

import nanograd_llm as ng
from nanograd_llm.nn import Block, LayerNorm, Linear, Module
from nanograd_llm.training import TrainConfig, Trainer

# %% A question whose answer comes later
# A row holds a mark, then digits. At the mark the target is the last digit of the row; at a digit it is the digit
# before. So the first question is about a later token, the second about an earlier one.
DIGITS, T = 4, 6
MARK = DIGITS  # the id of the mark


def batch(step):
    """(tokens, targets), each (B, T): at the mark the last digit, at each digit but the first the one before it."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(DIGITS, size=(32, T))
    tokens[:, 0] = MARK
    targets = np.full_like(tokens, -100)
    targets[:, 0] = tokens[:, -1]
    targets[:, 2:] = tokens[:, 1:-1]
    return tokens, targets


tokens, targets = batch(0)
print("tokens  ", tokens[0])
print("targets ", targets[0], " (-100 asks nothing)")


# %% One model, twice: with and without a causal mask
# The two differ in one word of their block, `causal`.
class Reader(Module):
    """Token and position vectors, two blocks, and the logits of a digit at each place."""

    def __init__(self, causal):
        rng = np.random.default_rng(0)
        self.tokens = ng.nn.Embedding(DIGITS + 1, 32, std=0.3, rng=rng)
        self.positions = ng.nn.Embedding(T, 32, std=0.3, rng=rng)
        self.blocks = [Block(32, 4, causal=causal, rng=rng) for _ in range(2)]
        self.norm, self.out = LayerNorm(32), Linear(32, DIGITS, rng=rng)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(np.arange(tokens.shape[1]))  # (B, T) -> (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))  # (B, T, C) -> (B, T, V)

    def loss(self, tokens, targets):
        return ng.ops.cross_entropy(self(tokens), targets)


def right(model, tokens, targets):
    """The share of right answers at the mark, and at the digits."""
    model.eval()
    hits = model(tokens).data.argmax(-1) == targets
    return hits[:, 0].mean(), hits[:, 2:].mean()


found = {}
for name, causal in (("decoder", True), ("encoder", False)):
    reader = Reader(causal)
    trainer = Trainer(reader, TrainConfig(steps=300, learning_rate=3e-3, workers=1))
    for _ in trainer.run(batch):
        pass
    found[name] = right(reader, *batch(10**6))
    print(f"{name}: right at the mark {found[name][0]:4.0%}, at the digits {found[name][1]:4.0%}")

# %% Both know earlier tokens, only the encoder knows later ones
# At the mark the decoder has seen only the mark, so it can only guess one of four digits.
assert found["encoder"][0] > 0.95 and found["encoder"][1] > 0.95
assert found["decoder"][1] > 0.95
assert found["decoder"][0] < 0.6

# %% The disadvantage: an encoder has read the answer
# Change the last digit. The answers of the decoder before it stay the same, bit for bit; every answer of the encoder
# may change. So only a decoder can learn to predict the next token: an encoder sees it in its input.
changed = tokens.copy()
changed[:, -1] = (changed[:, -1] + 1) % DIGITS
for causal in (True, False):
    reader = Reader(causal)
    reader.eval()
    is_same = np.array_equal(reader(tokens).data[:, :-1], reader(changed).data[:, :-1])
    print(f"causal={causal}: another last digit {'leaves' if is_same else 'changes'} the answers before it")
    assert is_same == causal
