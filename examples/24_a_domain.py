"""24  A domain: a model trained on one kind of text, compared with a general model.

The one idea: of models of equal size, the one that was trained on a domain is better there than a general one. Tuning
the general model on the domain closes most of the gap, but then it forgets some of what it knew.
"""

# B batch, T time

import dis
import importlib

import numpy as np

import nanograd_llm as ng
from nanograd_llm.text.labelled import builtin_docstrings
from nanograd_llm.training import TrainConfig, Trainer

# %% Three texts
# One is general: sentences from many programs. One domain is narrower: the reference manual of Python. The other
# domain is not English: the bytecode instructions of Python programs.


def instructions(code):
    """The instructions of this code, and of all functions in it: a line for each."""
    for one in dis.get_instructions(code):
        yield f"{one.opname.lower()} {one.argrepr.split(' at 0x')[0]:.40}".strip()
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):
            yield from instructions(constant)


def compiled(name):
    source = importlib.import_module(name).__file__
    with open(source, encoding="utf-8") as file:
        return compile(file.read(), name, "exec", optimize=2)  # without docstrings, which are English


rng = np.random.default_rng(0)
modules = "argparse ast calendar csv difflib fractions heapq inspect json.decoder pprint random shlex string textwrap"
sentences = [text for text, _ in builtin_docstrings()]
texts = {
    "general": "\n".join(sentences[i] for i in rng.permutation(len(sentences))),
    "manual": ng.text.builtin_corpus()[:350_000],
    "instructions": "\n".join(line for name in modules.split() for line in instructions(compiled(name)))[:350_000],
}
parts = {name: ng.text.split_text(text, 0.1) for name, text in texts.items()}
for name, (learned, _) in parts.items():
    print(f"{name:>12}: {len(learned):,} characters, such as {learned[5000:5050]!r}")

# %% Models of one size
# Each text gets a model with the sizes of nano, the same number of steps, and a tokenizer of its own. The score is
# bits per byte of the held-out part, so different tokenizers can be compared.
STEPS = 80


def trained(text, tokenizer, weights=None, learning_rate=4e-3):
    """A model that has read this text, from fresh weights or from these."""
    model = ng.GPT(ng.GPTConfig.preset("nano", vocab_size=tokenizer.vocab_size), seed=0)
    if weights is not None:
        model.load_state_dict(weights)
    ids = tokenizer.encode(parts[text][0])

    def batch(step):
        """tokens, targets (B, T)"""
        return ng.text.random_windows(ids, context_length=64, batch_size=6, seed=0, step=step)

    list(Trainer(model, TrainConfig(steps=STEPS, learning_rate=learning_rate, workers=1)).run(batch))
    return model


def bits_per_byte(model, tokenizer, text):
    ids = tokenizer.encode(parts[text][1][:8_000])
    return ng.inference.evaluate(model, ids, tokenizer, context_length=64).bits_per_byte


tokenizers = {name: ng.text.BPETokenizer.train(learned, vocab_size=512) for name, (learned, _) in parts.items()}
models = {name: (trained(name, tokenizers[name]), tokenizers[name]) for name in parts}

# %% The general model, tuned
# It starts from the weights and the tokenizer of the general model. This tokenizer was not made for the new text.
general, tokenizer = models["general"]
weights = general.state_dict()
for name in ("manual", "instructions"):
    models[f"tuned on {name}"] = trained(name, tokenizer, weights, learning_rate=2e-3), tokenizer

# %% The table
# A row for each model, a column for each text; lower is better.
table = {row: {text: bits_per_byte(*model, text) for text in parts} for row, model in models.items()}
print(f"\n{'bits per byte':>22}" + "".join(f"{text:>14}" for text in parts))
for row, cells in table.items():
    print(f"{row:>22}" + "".join(f"{cells[text]:14.2f}" for text in parts))

for domain in ("manual", "instructions"):
    own, tuned = table[domain], table[f"tuned on {domain}"]
    assert own[domain] < table["general"][domain] - 0.3  # the domain's own model beats the general one
    assert tuned[domain] < table["general"][domain] - 0.3  # and so does the tuned one,
    assert table["general"]["general"] < min(own["general"], tuned["general"])  # which forgets
gaps = {domain: table["general"][domain] - table[domain][domain] for domain in ("manual", "instructions")}
print("\nwhat the domain's own model saves:", {domain: round(gap, 2) for domain, gap in gaps.items()})
assert gaps["instructions"] > gaps["manual"]

# %% What this shows and what it does not show
# This is true for models of one size, and the tuned one has had twice as many steps. It does not show that a small
# model is better than a large one: GPT-2, with 124 million weights, has read so much English that no nano predicts a
# manual as well. And a low score does not show that a model understands its domain.
share = (table["general"]["manual"] - table["tuned on manual"]["manual"]) / gaps["manual"]
print(f"tuning closes {share:.0%} of the gap on the manual")
assert share > 0.5
