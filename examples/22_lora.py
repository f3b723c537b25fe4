"""22  LoRA: a model learns with small additions to its weights, which stay the same, bit for bit.

The one idea: fine-tuning can add to a matrix the product of two thin matrices. W stays frozen; only A and B learn:

    y = x W + b + α/r·(x A) B        W (n, m), A (n, r), B (r, m), with r far smaller than n and m
"""

# B batch, T time, r rank; W (n, m) is the weight of a Linear

import tempfile
from pathlib import Path

import numpy as np

import nanograd_llm as ng
from nanograd_llm import nn, text
from nanograd_llm.inference import evaluate
from nanograd_llm.training import TrainConfig, Trainer

# %% A model to adapt
# As in lesson 9, a small GPT learns Python's reference manual for a few seconds. Then it will learn something else:
# the source of this package, which it predicts badly so far.
manual, _ = text.split_text(text.builtin_corpus())
tokenizer = text.BPETokenizer.train(manual, vocab_size=512)
model = ng.GPT(ng.GPTConfig(vocab_size=512, context_length=32, n_layer=2, n_head=4, n_embd=64), seed=0)


def train(model, source, **settings):
    """Train on the ids of a source; returns the trainer."""
    ids, trainer = tokenizer.encode(source), Trainer(model, TrainConfig(batch_size=16, workers=1, **settings))
    for _ in trainer.run(lambda step: text.random_windows(ids, context_length=32, batch_size=16, seed=0, step=step)):
        pass
    model.eval()
    return trainer


def bits(model, source):
    """Bits per byte of a source."""
    return evaluate(model, tokenizer.encode(source), tokenizer, context_length=32).bits_per_byte


train(model, manual, steps=300, learning_rate=8e-3)
folder = Path(nn.__file__).parent
code = "\n".join((folder / name).read_text("utf-8") for name in ("attention.py", "block.py", "layers.py"))
unseen_code, unseen_manual = (folder / "module.py").read_text("utf-8")[:8000], manual[-8000:]
before = bits(model, unseen_code)
print(f"bits per byte: manual {bits(model, unseen_manual):.2f}, code {before:.2f}")

# %% Two thin matrices beside each weight
# A begins as random numbers and B as zeros, so at first A B is zero and the model computes exactly what it did.
ids = tokenizer.encode(unseen_code)[None, :32]  # (1, T)
logits, weights = model(ids).data, {name: x.copy() for name, x in model.state_dict().items()}
nn.lora.add(model, rank=8, alpha=16)
qkv = model.blocks[0].attention.qkv
print(f"W {qkv.weight.shape}, A {qkv.adapter.A.shape}, B {qkv.adapter.B.shape}")
assert np.array_equal(model(ids).data, logits)

# %% Only these are trained
# The trainer keeps a gradient and two moments for the trained parameters only, and backward does not compute the
# gradient of W. So training a large model takes less than half of the memory.
trained, total = sum(p.size for p in model.trainable_parameters()), model.parameter_count()
trainer = train(model, code, steps=250, learning_rate=2e-2)
print(f"trained {trained:,} of {total:,} parameters; moments: {trainer.optimizer.m.size:,} numbers")
assert trainer.optimizer.m.size == trained < total / 6
after = bits(model, unseen_code)
print(f"bits per byte: manual {bits(model, unseen_manual):.2f}, code {after:.2f}")
assert after < before - 0.15

# %% Off: the model of before
# W has not changed. So without its adapters the model is the old one, and what it knew is still there.
with nn.lora.off(model):
    assert all(np.array_equal(x, weights[name]) for name, x in model.state_dict().items())
    assert np.array_equal(model(ids).data, logits)
    print(f"off: {bits(model, unseen_code):.2f} for code, as before, bit for bit")

# %% The rank
# The adapters add to W a matrix of rank r at most, however large W is. Its singular values show this.
values = np.linalg.svd(qkv.adapter.matrix(), compute_uv=False)
print("singular values of α/r·A B:", ", ".join(f"{value:.3f}" for value in values[:10]))
assert values[7] > 100 * values[8]

# %% Saved: a small file, in the form of PEFT
# Programs that use PEFT load this folder onto the same model, and `load_lora` loads theirs.
place = tempfile.TemporaryDirectory()
small, whole = Path(place.name) / "adapter", Path(place.name) / "model"
ng.save_lora(model, small)
for path in sorted(small.iterdir()):
    print(f"{path.stat().st_size:>8,} bytes  {path.name}")
with nn.lora.off(model):
    ng.save_gpt2(model, whole)  # the base
again = ng.load_lora(ng.load_gpt2(whole), small)
assert np.array_equal(again(ids).data, model(ids).data)

# %% Merged: one matrix each, as fast as before
# W + α/r·A B is a matrix like W. The merged model is a plain GPT, with the same logits within rounding.
adapted = model(ids).data
nn.lora.merge(model)
assert [name for name, _ in model.named_parameters()] == [*weights]
difference, effect = np.abs(model(ids).data - adapted).max(), np.abs(adapted - logits).max()
print(f"the adapters change a logit by up to {effect:.1f}; merging by up to {difference:.0e}")
assert difference < 1e-5 * effect
place.cleanup()
# `nanograd-llm train --init RUN --lora-rank 8` does the same for any task, and `info --verify` tests both facts.
