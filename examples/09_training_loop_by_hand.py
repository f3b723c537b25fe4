"""09  A training loop by hand: how a GPT learns to write, step by step.

The one idea: take a batch, compute the loss and its gradient, move every parameter a little against the gradient, and
repeat. Everything else in the loop (warm-up, clipping, decay) is there to make large steps safe.
"""

# B batch, T time (context_length), V vocabulary

import math

import numpy as np

import nanograd_llm as ng
from nanograd_llm import text
from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.inference import Sampling, evaluate, generate
from nanograd_llm.training import AdamW, TrainConfig, Trainer, clip_by_global_norm, scheduled

STEPS, T, B = 400, 16, 32
PEAK, WARMUP, MAX_NORM = 1e-2, 0.2, 0.4  # learning rate; part of the run for warm-up; largest length of a gradient

# %% The text, the model
# One block is enough to learn what English words look like. `nanograd-llm train` trains a larger model.
train_text, held_out_text = text.split_text(text.builtin_corpus())
tokenizer = text.BPETokenizer.train(train_text, vocab_size=512)
ids, held_out = tokenizer.encode(train_text), tokenizer.encode(held_out_text)[-8000:]
config = ng.GPTConfig(vocab_size=tokenizer.vocab_size, context_length=T, n_layer=1, n_head=4, n_embd=64)
model = ng.GPT(config, seed=0)


def batch(step):
    """The batch of a step: 2 × (B, T)."""
    return text.random_windows(ids, context_length=T, batch_size=B, seed=0, step=step)


def sample():
    """The text that the model writes after "The"."""
    new = generate(model, tokenizer.encode("The"), max_new_tokens=40, sampling=Sampling(temperature=0.7, top_p=0.9))[0]
    return repr("The" + tokenizer.decode(new))


# %% Before
before = evaluate(model, held_out, tokenizer, context_length=T)
print(f"untrained: {before.bits_per_byte:.2f} bits per byte;", sample())

# %% The loop
# `value_and_grad` turns the loss into a function that also returns the gradient: a list with an array per parameter.
parameters = model.parameters()
loss_and_gradients = ng.value_and_grad(model.loss, parameters)
optimizer = AdamW(parameters, weight_decay=0.1)
losses = []
with blas_threads(1):  # one thread is faster for such small matrices
    for step in range(STEPS):
        loss, gradients = loss_and_gradients(*batch(step))

        # A gradient that is too long is made shorter, so that one unusual batch cannot move the parameters too far.
        norm = clip_by_global_norm(gradients, MAX_NORM)

        # AdamW's averages are not reliable at first, so the learning rate starts small. Then it falls towards the end.
        learning_rate = scheduled("cosine", (step + 1) / STEPS, peak=PEAK, warmup=WARMUP, final=0.05)
        optimizer.step(gradients, learning_rate)

        losses.append(loss.item())
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step:3}  loss {losses[-1]:.3f}  learning rate {learning_rate:.4f}  gradient norm {norm:.2f}")

# %% After
after = evaluate(model, held_out, tokenizer, context_length=T)
print(f"trained: {after.bits_per_byte:.2f} bits per byte;", sample())
assert after.bits_per_byte < 0.65 * before.bits_per_byte

# %% What has it learned?
# At the start the loss is ln V: the model knows nothing. A model that only knows how often each token occurs has a loss
# equal to the entropy of these frequencies. A model with a smaller loss uses the context.
frequencies = np.bincount(ids, minlength=tokenizer.vocab_size) / len(ids)  # (V)
frequencies = frequencies[frequencies > 0]
entropy = -np.sum(frequencies * np.log(frequencies))
passed = next(step for step in range(STEPS) if np.mean(losses[step : step + 10]) < entropy)
at_end = np.mean(losses[-20:])
nothing = math.log(tokenizer.vocab_size)
print(f"nats per token: {nothing:.2f} if all tokens are equally likely,", end=" ")
print(f"{entropy:.2f} from frequencies alone (reached by step {passed}),", end=" ")
print(f"{at_end:.2f} with the context; {after.loss:.2f} on held-out text")
assert abs(losses[0] - nothing) < 0.1
assert at_end < entropy - 1

# %% The Trainer is this loop
# Trainer does the same steps, and splits each batch over workers. From the same start it computes the same losses, up
# to rounding. `run` yields a record after each step; leave the loop to stop.
model = ng.GPT(config, seed=0)
trainer = Trainer(
    model, TrainConfig(learning_rate=PEAK, warmup=WARMUP, final=0.05, max_norm=MAX_NORM, weight_decay=0.1, steps=STEPS)
)
for record in trainer.run(batch):
    assert abs(record.loss - losses[record.step - 1]) < 1e-2
    if record.step == 20:
        break
print(f"Trainer, step {record.step}: loss {record.loss:.4f}; by hand it was {losses[record.step - 1]:.4f}")
