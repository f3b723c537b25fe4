"""27  Where a tied gradient comes from: the token table is used twice, so its gradient is the sum of two.

The one idea: a gradient is a sum over uses, and `trace.uses` keeps its parts. So you can see what each use contributes.
"""

# V vocabulary, C channels

import numpy as np

import nanograd_llm as ng
from nanograd_llm import text
from nanograd_llm.training import TrainConfig, Trainer

# %% A model that writes
# As in lesson 9: a small GPT learns Python's reference manual for a few seconds. Its table is the embedding of what
# comes in, and also the head that says what comes next.
manual, _ = text.split_text(text.builtin_corpus())
tokenizer = text.BPETokenizer.train(manual[:200_000], vocab_size=400)
ids = tokenizer.encode(manual[:200_000])
model = ng.GPT(ng.GPTConfig(vocab_size=400, context_length=32, n_layer=1, n_head=4, n_embd=48), seed=0)
sentence = tokenizer.encode("The statement is used to define a new class.")
tokens, targets = sentence[None, :-1], sentence[None, 1:]  # (1, T), (1, T)
assert tokens.shape[1] <= 32


def show(title):
    """The table's gradient, use by use; returns the trace."""
    trace = ng.trace(model.loss, tokens, targets)
    whole = trace.grads["wte"]  # (V, C)
    print(title)
    for use in trace.uses("wte"):
        rows = np.count_nonzero(np.any(use.gradient != 0, axis=1))
        share = np.vdot(use.gradient, whole) / np.vdot(whole, whole)
        print(f"  {str(use):34} norm {np.linalg.norm(use.gradient):.3f}, {share:5.1%} of the whole, in {rows} rows")
    return trace


trace = show("before training:")

# %% Two uses, one sum
# The head comes first, since backward begins at the loss. It changes every row: a token that was not the right one
# should have been less likely. The lookup changes only the rows of the tokens that were read.
head, lookup = trace.uses("wte")
assert np.array_equal(head.gradient + lookup.gradient, trace.grads["wte"])  # bit for bit
read = np.unique(tokens)
assert np.array_equal(np.flatnonzero(np.any(lookup.gradient != 0, axis=1)), read)
assert np.all(np.any(head.gradient != 0, axis=1))

# %% The same with two tables
# Untie them: a second table, with the same numbers, is the head. Now each table has its own gradient. The two
# gradients are the two parts from above, to the last bit. So tying only adds them.
untied = ng.GPT(ng.GPTConfig(**{**vars(model.config), "tie_word_embeddings": False}), seed=0)
untied.load_state_dict({**model.state_dict(), "head": model.wte.data})
apart = ng.trace(untied.loss, tokens, targets)
assert np.array_equal(apart.grads["head"], head.gradient)
assert np.array_equal(apart.grads["wte"], lookup.gradient)

# %% What the head says about one token
# Row i of the head's part is the mean over positions of (p - 1 at the target)*hidden. For a token that is never a
# target it is the mean of p*hidden. A step against it moves the row away from the hidden states, and further if
# the model thought this token probable.
hidden = trace.value("ln_f").array[0]  # (T, C)
p = ng.ops.softmax(hidden @ model.wte.data.T)  # (T, V)
one = int(np.setdiff1d(np.arange(400), [*read, *targets[0]])[0])
by_hand = p[:, one] @ hidden / len(hidden)  # (T)·(T, C) -> (C)
assert np.allclose(by_hand, trace.grads["wte"][one], atol=1e-7)
print(f"row {one} is neither an input nor a target; its gradient by hand is right")

# %% After training
# The same sentence again. Both uses still change the same rows, but the ratio of their sizes is different: after
# training, more of the gradient comes from the head.
trainer = Trainer(model, TrainConfig(steps=150, batch_size=12, learning_rate=8e-3, workers=1))
for step in range(150):
    trainer.step(*text.random_windows(ids, context_length=32, batch_size=12, seed=0, step=step))
trace = show("after 150 steps:")
head, lookup = trace.uses("wte")
assert np.array_equal(head.gradient + lookup.gradient, trace.grads["wte"])
assert np.array_equal(np.flatnonzero(np.any(lookup.gradient != 0, axis=1)), read)

# %% One number, explained completely
# Take the largest entry of the lookup's part. It has a term for each position where the token occurs: the gradient that
# arrived there. `nudge` moves the entry of the table itself, and so both uses together.
row, column = np.unravel_index(np.argmax(np.abs(lookup.gradient)), model.wte.shape)
terms, nudge = trace.terms(0, "w", (row, column)), trace.nudge("wte", (row, column))
print(terms)
print(nudge)
assert terms.agrees and nudge.agrees
