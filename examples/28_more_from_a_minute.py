"""28  More from a minute: what rate, optimizer, schedule and first weights give in the same number of steps.

The one idea: the number of steps is small, so each step must reach as far as it can. Each change below is judged by the
bits per byte of held-out text.
"""

# B batch, T time

import numpy as np

import nanograd_llm as ng
from nanograd_llm.training import TrainConfig, Trainer
from nanograd_llm.training.muon import orthogonal

# %% A small run
# A model with 32 channels reads a part of the reference manual for 150 steps. Everything but the settings of the
# training is the same each time: the text, the tokenizer, the first weights and the batches.
learned, held_out = ng.text.split_text(ng.text.builtin_corpus()[:120_000], 0.1)
tokenizer = ng.text.BPETokenizer.train(learned, 400)
ids, others = tokenizer.encode(learned), tokenizer.encode(held_out)
STEPS, T = 150, 32


def bits_per_byte(shrunk=1.0, **settings):
    """What a model reaches on the held-out part with these settings. shrunk: factor of the matrices at the start."""
    config = ng.GPTConfig(vocab_size=tokenizer.vocab_size, context_length=T, n_layer=2, n_head=2, n_embd=32)
    model = ng.GPT(config, seed=0)
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and parameter.ndim == 2:
            parameter.data *= shrunk
    trainer = Trainer(model, TrainConfig(steps=STEPS, workers=1, batch_size=8, **settings))
    for step in range(STEPS):
        trainer.step(*ng.text.random_windows(ids, context_length=T, batch_size=8, seed=0, step=step))
    return ng.inference.evaluate(model, others, tokenizer, context_length=T).bits_per_byte


# %% The learning rate
# With a rate that is too small, the model learns slowly; with one that is too large, the loss jumps up and down. So
# try rates first, each three or ten times the one before. Here the rate stays constant after a warm-up.
rates = {rate: bits_per_byte(learning_rate=rate, schedule="constant") for rate in (3e-4, 3e-3, 3e-2)}
for rate, bits in rates.items():
    print(f"adamw, constant at {rate:<22g} {bits:.3f} bits per byte")
assert rates[3e-3] < min(rates[3e-4], rates[3e-2])

# %% The optimizer
# AdamW moves all numbers of a matrix by about the same amount. But most of a gradient lies along a few directions of
# the matrix, so the other directions hardly move. Muon moves all directions by the same amount: by some products of
# matrices it finds the orthogonal matrix that is nearest to the mean gradient. Here is a matrix whose directions are
# its channels:
print(orthogonal(np.diag([10.0, 1.0, 0.1])).round(2))
assert (abs(np.diag(orthogonal(np.diag([10.0, 1.0, 0.1]))) - 1) < 0.4).all()

muon = bits_per_byte(learning_rate=3e-2, schedule="constant", optimizer="muon")
print(f"muon,  constant at 0.03                   {muon:.3f} bits per byte")
assert muon < min(rates.values()) - 0.1

# %% The schedule
# A large rate makes fast progress, a small one makes the last improvements. A schedule uses one after the other. It
# helps more in longer runs. In this short run it helps little, and with AdamW at its best rate the score is even
# worse.
cosine = bits_per_byte(learning_rate=3e-2, optimizer="muon")
print(f"muon,  half a cosine down from 0.03       {cosine:.3f} bits per byte")
assert cosine < muon + 0.1

# %% The first weights
# GPT-2 begins with small matrices, of standard deviation 0.02, so that every block begins with almost nothing to add.
# A common rule is 1/√n_in, nine times as much here, which keeps the size of the signal. Then training must first undo
# what the blocks add by chance.
large = bits_per_byte(shrunk=32**-0.5 / 0.02, learning_rate=3e-2, optimizer="muon")
print(f"the same, from first weights of 1/√n_in   {large:.3f} bits per byte")
assert large > cosine + 0.1

# %% What Muon costs
# Its products are the same for any batch: for a matrix of n x m numbers, n ≤ m, about 4 n² m + 34 n³ operations.
# Forward and backward take 6 n m for each token. With few tokens in a step
# Muon is expensive, with many it costs almost nothing.
n, m = 128, 512
for tokens in (512, 4096, 32768):
    share = (4 * n * n * m + 34 * n**3) / (6 * n * m * tokens)
    print(f"{tokens:>6} tokens: {share:.1%} of what forward and backward take")
