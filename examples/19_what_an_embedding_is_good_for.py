"""19  What an embedding is good for: texts as vectors, near each other where they mean the same.

The one idea: to fill in hidden words, a model must learn which words occur together. Its hidden states then contain
this knowledge. Their mean is one vector for a text. Texts about the same subject have similar vectors, even if they
share no word.
"""

# N texts, T time, C channels

import numpy as np

from nanograd_llm.inference import embed, nearest
from nanograd_llm.models import BERT, BERTConfig, SentenceEncoder
from nanograd_llm.text import WordPieceTokenizer
from nanograd_llm.training import TrainConfig, Trainer

# %% A world with three subjects
# Every sentence is about one of them, and has a subject, a verb and an object.
WORLD = {
    "kitchen": ["cook baker guest", "bakes eats tastes cuts", "bread cake soup apple onion"],
    "sea": ["sailor captain pirate", "steers paints sinks repairs", "boat ship harbour anchor sail"],
    "school": ["teacher pupil student", "reads writes learns forgets", "book letter poem word lesson"],
}
SUBJECTS = [*WORLD]
rng = np.random.default_rng(0)


def sentence(subject):
    return " ".join(f"the {rng.choice(words.split())}" for words in WORLD[subject]).replace(" the ", " ", 1)


labels = rng.integers(3, size=3000)
sentences = [sentence(SUBJECTS[label]) for label in labels]
print(sentences[0], "|", sentences[1])

# %% Learn which words go together, from the sentences alone
# As in 17_masked_words.py, one word of each sentence is hidden. The model does not get the labels above; they are
# only for checking.
tokenizer = WordPieceTokenizer.train("\n".join(sentences), vocab_size=300)
rows = np.stack([tokenizer.wrap(tokenizer.encode(text)) for text in sentences])  # (N, T)
N, T = rows.shape


def hide(step):
    """tokens (B, T), targets (B, T), B = 64"""
    rng = np.random.default_rng((1, step))
    tokens, each, place = rows[rng.integers(N, size=64)], np.arange(64), rng.integers(1, T - 1, 64)
    targets = np.full_like(tokens, -100)
    targets[each, place] = tokens[each, place]
    tokens[each, place] = tokenizer.mask
    return tokens, targets


def new_model():
    sizes = dict(vocab_size=tokenizer.vocab_size, context_length=T + 4, n_layer=1, n_head=4, n_embd=32)
    return BERT(BERTConfig(**sizes), seed=0)


model = new_model()
*_, last = Trainer(model, TrainConfig(steps=400, learning_rate=5e-3, workers=1)).run(hide)
print(f"trained for {last.step} steps, loss {last.loss:.2f}")

# %% A text becomes a vector
# The mean of the last hidden states, divided by its length: a product of two vectors is then their cosine.
encoder = SentenceEncoder(model)
vectors = embed(encoder, tokenizer, sentences[:200])  # (N, C)
print("vectors:", vectors.shape)
assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

texts = ["the cook bakes the bread", "the guest tastes the soup", "the pirate sinks the ship"]
own = embed(encoder, tokenizer, texts)
similar = own @ own.T  # (3, C)·(C, 3) -> (3, 3)
for text, row in zip(texts, similar):
    print(" ".join(f"{cosine:5.2f}" for cosine in row), "", text)
assert similar[0, 1] > similar[0, 2] + 0.2  # no word in common but "the"

# %% Search by meaning
# `nanograd-llm search MODEL "query" --file lines.txt` does this with the lines of a file. Here the query shares no word
# with what it should find.
query = "the baker eats the cake"
library = [text for text in dict.fromkeys(sentences) if not set(text.split()) & set(query.split()) - {"the"}]
found = nearest(embed(encoder, tokenizer, library), embed(encoder, tokenizer, [query])[0], top=3)
print(f'\n"{query}" finds, among {len(library)} sentences without its words')
for place, cosine in found:
    print(f"  {cosine:.2f}  {library[place]}")
    assert library[place].split()[1] in WORLD["kitchen"][0].split()

# %% Learn from few examples
# Three labelled sentences are enough to classify the others: each gets the label of its nearest neighbour. Before
# training, the vectors only show which words two texts share.


def sorted_rightly(encoder):
    """The share of sentences that get their label from the nearest of one labelled sentence for each subject."""
    vectors = embed(encoder, tokenizer, sentences[:600])
    examples = [int(np.argmax(labels == subject)) for subject in range(3)]
    guesses = [nearest(vectors[examples], vector, top=1)[0][0] for vector in vectors]
    return np.mean(labels[:600] == guesses)


trained, fresh = sorted_rightly(encoder), sorted_rightly(SentenceEncoder(new_model()))
print(f"\nsorted rightly with three labels: {trained:.0%}; by a model that was not trained {fresh:.0%}; by chance 33%")
assert trained > 0.95 and fresh < 0.8

# With a model that was trained on a large part of the internet, such as MiniLM, the same three functions search real
# texts: see the guide on pretrained weights.
