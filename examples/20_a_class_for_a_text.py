"""20  A class for a text: a head on a model, compared with counting words.

The one idea: a model turns a text into a vector, and one matrix turns the vector into a number for each class. To see
whether the model is needed, compare it with a simpler method: counting words. If the class depends on the words alone,
counting is as good. If it depends on their order, it is not.
"""

# B batch, T time, K classes

import numpy as np

from nanograd_llm.gradcheck import assert_split_invariant
from nanograd_llm.inference import classify
from nanograd_llm.models import GPT, Classifier, GPTConfig
from nanograd_llm.models.inputs import padded
from nanograd_llm.tasks.bag_of_words import NaiveBayes
from nanograd_llm.tasks.confusion import class_table, confusion_matrix
from nanograd_llm.text import WordTokenizer
from nanograd_llm.training import TrainConfig, Trainer

# %% Two questions about the same sentences
# Where is it? One word says that. Who does it? "The cat sees the dog" and "the dog sees the cat" have the same words,
# and in "the dog is seen by the cat" the one who does it comes last.
WHO, WHERE = ["cat", "dog", "bird"], ["garden", "kitchen", "street"]
VERBS = [("sees", "seen"), ("hears", "heard"), ("likes", "liked")]
rng = np.random.default_rng(0)


def sentence():
    """A text, who does it, and where."""
    (doer, other), place = rng.choice(3, size=2, replace=False), rng.integers(3)
    (verb, past), old = VERBS[rng.integers(3)], " old" * rng.integers(3)
    if rng.random() < 0.5:
        text = f"the{old} {WHO[doer]} {verb} the {WHO[other]} in the {WHERE[place]}"
    else:
        text = f"the{old} {WHO[other]} is {past} by the {WHO[doer]} in the {WHERE[place]}"
    return text, doer, place


texts, doers, places = (list(part) for part in zip(*(sentence() for _ in range(3000))))
doers, places = np.array(doers), np.array(places)
learned, held_out = slice(0, 2500), slice(2500, 3000)
print(texts[0], "|", WHO[doers[0]], "|", WHERE[places[0]])

# %% Count the words
# Naive Bayes counts how often a word occurs in the texts of each class. It does not see the order of the words.


def by_words(classes):
    bayes = NaiveBayes(texts[learned], classes[learned], 3)
    return (bayes.guess(texts[held_out]) == classes[held_out]).mean()


print(f"words alone: where {by_words(places):.0%}, who {by_words(doers):.0%}")
assert by_words(places) == 1 and by_words(doers) < 0.7

# %% A head on a model
# The texts of a batch have different lengths: the shorter ones are filled up, and the model gets their lengths.
# The vector of a text is the mean of the vectors of its real tokens.
tokenizer = WordTokenizer.train(texts)
rows = [tokenizer.encode(text) for text in texts]
tokens, lengths = padded(rows[:4])  # (B, T), (B,)
print("lengths:", lengths.tolist(), "padded to", tokens.shape)


def new_model(pooling="mean"):
    sizes = dict(vocab_size=tokenizer.vocab_size, context_length=16, n_layer=2, n_head=4, n_embd=32)
    return Classifier.on(GPT(GPTConfig(**sizes), seed=0), 3, pooling=pooling)


def batch(step):
    """tokens (B, T), targets (B,), lengths (B,), B = 32"""
    chosen = np.random.default_rng((1, step)).integers(2500, size=32)
    tokens, lengths = padded([rows[i] for i in chosen])
    return tokens, doers[chosen], lengths


model = new_model()
print("logits:", model(tokens, lengths).shape)
assert model(tokens, lengths).shape == (4, 3)

# %% Train it, and ask who
*_, last = Trainer(model, TrainConfig(steps=250, learning_rate=5e-3, workers=1)).run(batch)
found = classify(model, tokenizer, texts[held_out])  # probabilities (N, K)
right = (found.argmax(axis=1) == doers[held_out]).mean()
print(f"\nwho, by the model: {right:.0%} (loss {last.loss:.3f})")
assert right > 0.98
print(class_table(confusion_matrix(doers[held_out], found.argmax(axis=1), 3), WHO))
for text in ("the dog hears the cat in the street", "the dog is heard by the cat in the street"):
    (p,) = classify(model, tokenizer, [text])
    print(f"{text:>46}:", ", ".join(f"{who} {share:.0%}" for who, share in zip(WHO, p)))

# %% Padding and other texts have no effect
# A text gets the same class alone or among longer texts, and with any padding. The check tries all of this, with the
# gradients.
long = "the old old dog is seen by the bird in the garden"
together, alone = classify(model, tokenizer, [texts[0], long])[0], classify(model, tokenizer, texts[:1])[0]
assert np.allclose(together, alone, atol=1e-5)
targets = doers[:4]
assert_split_invariant(model.loss, (tokens, targets, lengths))

# This is a usual mistake: the mean, or the last token, of the padded row.
careless = model(np.pad(tokens, ((0, 0), (0, 3)))).data  # without lengths
print("\nlogits that change with the padding:", np.abs(careless - model(tokens, lengths).data).max().round(1))
assert np.abs(careless - model(tokens, lengths).data).max() > 0.1

# %% What to train: the head alone, or all of the model?
# A head on an untrained model can do no more than count words. `nanograd-llm train --task classification` has
# --train-layers head, last and all. On a model that was trained on much text, the head alone is often enough.
frozen = new_model()
frozen.model.freeze()
list(Trainer(frozen, TrainConfig(steps=250, learning_rate=5e-3, workers=1)).run(batch))
head_alone = (classify(frozen, tokenizer, texts[held_out]).argmax(axis=1) == doers[held_out]).mean()
print(f"who, by a head on a fresh model: {head_alone:.0%}")
assert head_alone < 0.9 < right
