"""21  Instructions: a model that continues text learns to answer a question, and to stop.

The one idea: the model stays the same; only the texts and the tokens that count are different. A row is a prompt, an
answer and an end of text. The loss counts the answer and its end. The model reads the prompt, but does not learn to
write it.
"""

# B batch, T time

import itertools

import numpy as np

import nanograd_llm as ng
from nanograd_llm.inference import Dialogue, Sampling, generate
from nanograd_llm.text import BPETokenizer, ByteTokenizer
from nanograd_llm.text.template import Template
from nanograd_llm.training import TrainConfig, Trainer

# %% Questions whose answers can be checked
# A hundred are held out. No question is in both parts; otherwise this would not be a test.
rng = np.random.default_rng(0)
PLACES = {"1st": 0, "2nd": 1, "3rd": 2}
pairs = [
    (f"{place} of {''.join(letters)}", letters[PLACES[place]])  # such as ("3rd of bda", "a")
    for letters in itertools.product("abcdefgh", repeat=3)
    for place in PLACES
]
pairs = [pairs[i] for i in rng.permutation(len(pairs))]
unseen, learned = pairs[:100], pairs[100:]
print(learned[0], f"and {len(learned) - 1} more; {len(unseen)} are held out")

# %% A row, and what of it counts
# The template is the text around a question. Prompt and answer are tokenized separately. Otherwise a token could be
# half prompt and half answer, and at inference, with the prompt alone, there is no such token.
tokenizer, template = ByteTokenizer(), Template("{instruction}\n")
END = tokenizer.end_of_text
merging = BPETokenizer.train("so it ends. " * 9, vocab_size=264)
together, apart = merging.pieces("so it"), merging.pieces("so i") + merging.pieces("t")
print("together", [piece for _, piece in together], "apart", [piece for _, piece in apart])
assert len(together) < len(apart)


def row(text, answer, learn_the_end=True):
    """tokens and targets of one row: the target of a token is the next one, or -100, which does not count"""
    prompt, answer = tokenizer.encode(template.fill(text)), [*tokenizer.encode(answer), END]
    ids = np.array([*prompt, *answer])
    targets = ids[1:].copy()
    targets[: len(prompt) - 1] = -100
    if not learn_the_end:
        targets[-1] = -100
    return ids[:-1], targets


tokens, targets = row(*learned[0])
for token, target in zip(tokens, targets):
    print(f"{tokenizer.decode([token])!r:>6} -> {'ignored' if target == -100 else tokenizer.decode([target])!r}")
assert (targets != -100).sum() == 2 and targets[-1] == END


def batch(step, **settings):
    """tokens and targets (B, T), filled up behind the shorter rows: no token sees what follows it"""
    chosen = np.random.default_rng(step).integers(len(learned), size=64)
    tokens, targets = np.full((64, 12), END), np.full((64, 12), -100)
    for place, number in enumerate(chosen):
        one, wanted = row(*learned[number], **settings)
        tokens[place, : len(one)], targets[place, : len(one)] = one, wanted
    return tokens, targets


# %% Train, and ask new questions
def trained(steps, **settings):
    model = ng.GPT(ng.GPTConfig(vocab_size=257, context_length=40, n_layer=2, n_head=4, n_embd=32), seed=0)
    *_, last = Trainer(model, TrainConfig(steps=steps, learning_rate=1e-2, workers=1)).run(
        lambda step: batch(step, **settings)
    )
    print(f"loss {last.loss:.3f}")
    return model


def answers(model, template):
    """What it says to the held-out questions, always the likeliest token, and how many of these answers end."""
    prompts = [tokenizer.encode(template.fill(text)) for text, _ in unseen]
    written = generate(model, prompts, max_new_tokens=6, sampling=Sampling(temperature=0), stop=END)
    return [tokenizer.decode(ids) for ids in written], np.mean([len(ids) < 6 for ids in written])


model = trained(450)
found, ended = answers(model, template)
right = np.mean([answer == wanted for answer, (_, wanted) in zip(found, unseen)])
print(f"right {right:.0%}, ended {ended:.0%}")
assert right > 0.9 and ended == 1

# %% An end that is not learned never comes
# A common mistake: the end of text is also the padding, and so it is left out of the loss. Then the model does not
# stop after its answer.
endless = trained(100, learn_the_end=False)
found, ended = answers(endless, template)
print(f"ended {ended:.0%}: {found[0]!r}")
assert ended < 0.1

# %% With another template it does not understand
# The model has seen questions in one template. So the template is saved beside its weights, and used for every
# question.
found, _ = answers(model, Template("Please tell me the {instruction}!\n"))
other = np.mean([answer == wanted for answer, (_, wanted) in zip(found, unseen)])
print(f"right in another template: {other:.0%}")
assert other < right - 0.2

# %% Ask it
# `nanograd-llm train --task instruction --init RUN` does all of this: it shows the roles with `--show-batch`, refuses a
# batch in which no end counts, and saves the template, which `generate` and `chat` use.
talk = Dialogue(model, tokenizer, template, max_new_tokens=6, sampling=Sampling(temperature=0))
text, wanted = unseen[0]
print(f"{text}? {''.join(talk.reply(text))} (right: {wanted})")
