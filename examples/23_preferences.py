"""23  Preferences: of two right answers, a model learns to give the one that people want.

The one idea: people do not say what the best answer is, only which of two is better. The reward of an answer is how
much its log-probability has increased since the start. The loss makes the reward of the chosen answer larger than that
of the rejected one (DPO, Rafailov et al. 2023). No reward model is needed.
"""

# B pairs, T time

import itertools

import numpy as np

import nanograd_llm as ng
from nanograd_llm.inference import Sampling, generate
from nanograd_llm.models import PreferenceGPT
from nanograd_llm.text import ByteTokenizer
from nanograd_llm.training import TrainConfig, Trainer

# %% A model with two forms of answers
# It answers in words or with a single letter: half of the answers that it has learned from have each form.
rng = np.random.default_rng(0)
tokenizer = ByteTokenizer()
END = tokenizer.end_of_text
PLACES = {"1st": 0, "2nd": 1, "3rd": 2}
pairs = [
    (f"{place} of {''.join(letters)}\n", letters[PLACES[place]])  # such as ("3rd of bda\n", "a")
    for letters in itertools.product("abcdefgh", repeat=3)
    for place in PLACES
]
pairs = [pairs[i] for i in rng.permutation(len(pairs))]
unseen, learned = pairs[:100], pairs[100:]


def row(text, answer):
    """tokens and targets (T): the prompt does not count"""
    prompt = tokenizer.encode(text)
    ids = np.array([*prompt, *tokenizer.encode(answer), END])
    tokens, targets = np.full(18, END), np.full(18, -100)
    tokens[: len(ids) - 1], targets[len(prompt) - 1 : len(ids) - 1] = ids[:-1], ids[len(prompt) :]
    return tokens, targets


def mixed(step):
    """tokens, targets (B, T)"""
    rng = np.random.default_rng(step)
    chosen = [learned[i] for i in rng.integers(len(learned), size=64)]
    rows = [row(text, f"it is {answer}" if rng.random() < 0.5 else answer) for text, answer in chosen]
    return tuple(map(np.stack, zip(*rows)))


config = ng.GPTConfig(vocab_size=257, context_length=24, n_layer=2, n_head=4, n_embd=32)
model = PreferenceGPT(config, seed=0, beta=0.1, supervised=1.0)
gpt = ng.GPT(config, seed=0)
*_, last = Trainer(gpt, TrainConfig(steps=700, learning_rate=1e-2, workers=1)).run(mixed)
model.load_state_dict(gpt.state_dict())


def report(model):
    """The shares of the answers that are in words, and that are right in either form."""
    prompts = [tokenizer.encode(text) for text, _ in unseen]
    sampling = Sampling(temperature=1.0)
    written = [
        tokenizer.decode(ids) for ids in generate(model, prompts, max_new_tokens=12, sampling=sampling, stop=END)
    ]
    in_words = np.mean([answer.startswith("it is ") for answer in written])
    right = np.mean([answer.removeprefix("it is ") == wanted for answer, (_, wanted) in zip(written, unseen)])
    print(f"in words {in_words:.0%}, right {right:.0%}")
    return in_words, right


before = report(model)
assert 0.2 < before[0] < 0.8 and before[1] > 0.85

# %% Pairs, and the reference
# A pair is a question with its chosen answer and its rejected one, (2, T). The log-probability of an answer is a sum
# over its tokens, the end of text among them, not a mean. The reference is what the model gives before training,
# without dropout; it is computed once.
rows = [[row(text, f"it is {answer}"), row(text, answer)] for text, answer in learned[:200]]
tokens, targets = (np.array([[one[part] for one in pair] for pair in rows]) for part in (0, 1))  # (200, 2, T)
model.eval()
with ng.no_grad():
    reference = model.log_probabilities(tokens, targets).data  # (200, 2)
print("log-probabilities of the first pair:", reference[0].round(2))
by_hand = 0.0
logp = ng.ops.log_softmax(model(tokens[0])).data  # (2, T, V)
for place, target in enumerate(targets[0, 0]):
    by_hand += logp[0, place, target] if target != -100 else 0
assert abs(by_hand - reference[0, 0]) < 1e-4

# %% The loss begins at log 2
# At the start all rewards are 0, so the loss is -log sigmoid(0) = log 2. If it is not, the reference is wrong, or
# dropout is on.
plain = PreferenceGPT(config, seed=0, beta=0.1)
plain.load_state_dict(model.state_dict())
first = plain.loss(tokens[:32], targets[:32], reference[:32]).item()
print(f"first loss {first:.6f}, log 2 is {np.log(2):.6f}")
assert abs(first - np.log(2)) < 1e-5


# %% Learn which form is preferred
# The loss of the pairs sees only the difference, so it also falls when both answers become unlikely. `supervised`
# adds the loss of the chosen answer, so that its probability does not fall.
def batch(step):
    """tokens, targets (B, 2, T), reference (B, 2)"""
    chosen = np.random.default_rng(step).integers(len(tokens), size=32)
    return tokens[chosen], targets[chosen], reference[chosen]


settings = TrainConfig(steps=40, learning_rate=3e-4, workers=1)
for name, trained in (("pairs alone", plain), ("and supervised", model)):
    *_, last = Trainer(trained, settings).run(batch)
    trained.eval()
    gained = trained.log_probabilities(tokens, targets).data - reference
    rewards = 0.1 * gained
    won = (rewards[:, 0] > rewards[:, 1]).mean()
    print(f"{name}: chosen {gained[:, 0].mean():+.2f}, rejected {gained[:, 1].mean():+.2f}; preferred {won:.0%}")
    after = report(trained)
    assert won > 0.95 and after[0] > 0.9

# %% What it cost
# The model has learned the form from pairs. Test with new questions whether its answers are still right.
# `nanograd-llm train --task preference --init RUN` reports both numbers before and after training.
print(f"right answers: {before[1]:.0%} before, {after[1]:.0%} after")
assert after[1] > before[1] - 0.1
