"""17  Masked words: an encoder fills in a word from the words on both sides.

The one idea: a decoder reads from left to right, so it chooses "a" or "an" before it knows the noun. An encoder sees
the whole sentence. Hide words and let it fill them in: so BERT learns, and it needs no labels.
"""

# B batch, T time

import numpy as np

import nanograd_llm as ng
from nanograd_llm.inference import fill
from nanograd_llm.models import BERT, BERTConfig
from nanograd_llm.text import WordPieceTokenizer
from nanograd_llm.training import TrainConfig, Trainer

# %% A language in which words depend on both sides
# The article depends on the noun behind it, and the verb on the noun before it.
rng = np.random.default_rng(0)
SINGULAR = "cat dog house apple egg orange island owl".split()
PLURAL = [f"{noun}s" for noun in SINGULAR]


def sentence():
    """Such as "an owl sees some dogs"."""
    is_plural = rng.random() < 0.5
    subject, object = rng.choice(PLURAL if is_plural else SINGULAR), rng.choice(SINGULAR + PLURAL)
    verb = rng.choice(["see", "hear"]) + ("" if is_plural else "s")
    return f"{article(subject)} {subject} {verb} {article(object)} {object}"


def article(noun):
    return "some" if noun in PLURAL else "an" if noun[0] in "aeio" else "a"


sentences = [sentence() for _ in range(4000)]
print(sentences[0])

# %% Text becomes pieces
# WordPiece cuts a word into the longest pieces that it knows; ## continues a word. [CLS] is put before a text and
# [SEP] after it. [MASK] is put in place of a hidden word.
tokenizer = WordPieceTokenizer.train("\n".join(sentences), vocab_size=200)
pieces = [tokenizer.vocab[i] for i in tokenizer.encode("An owl, catdog")]
print(pieces)
assert pieces[:4] == ["an", "owl", "[UNK]", "cat"] and all(piece.startswith("##") for piece in pieces[4:])
rows = np.stack([tokenizer.wrap(tokenizer.encode(text)) for text in sentences])  # (N, 7)
T = rows.shape[1]

# %% Hide a word of each sentence
# The targets are the hidden words; elsewhere they are -100, which does not count. Most hidden words become [MASK].
# Some become another word, and some stay, so that the model does not trust every word that it sees.
# Devlin et al. hide 15 % of the words: 80 % of these become [MASK], 10 % become a random word, and 10 % stay.


def hide(step):
    """tokens (B, T), targets (B, T)"""
    rng = np.random.default_rng((1, step))
    tokens = rows[rng.integers(len(rows), size=64)]
    targets = np.full_like(tokens, -100)
    each, place = np.arange(64), rng.integers(1, T - 1, 64)  # never [CLS] or [SEP]
    targets[each, place] = tokens[each, place]
    fate, random = rng.random(64), rng.integers(5, tokenizer.vocab_size, 64)
    tokens[each, place] = np.where(fate < 0.8, tokenizer.mask, np.where(fate < 0.9, random, tokens[each, place]))
    return tokens, targets


tokens, targets = hide(0)
print(tokenizer.decode(tokens[0]), "<-", [tokenizer.vocab[i] for i in targets[0] if i >= 0])
assert ((targets >= 0).sum(axis=1) == 1).all()

# %% Train an encoder and a decoder on the same sentences
# They differ in which tokens a token may look at, and in the targets.
sizes = dict(vocab_size=tokenizer.vocab_size, context_length=T, n_layer=2, n_head=4, n_embd=32)
config = TrainConfig(steps=250, learning_rate=5e-3, workers=1)
encoder, decoder = BERT(BERTConfig(**sizes), seed=0), ng.GPT(ng.GPTConfig(**sizes), seed=0)
*_, last = Trainer(encoder, config).run(hide)
print(f"encoder: loss {last.loss:.2f} at hidden words")


def next_words(step):
    """tokens (B, T - 1), targets (B, T - 1): each target is the next token"""
    tokens = rows[np.random.default_rng((2, step)).integers(len(rows), size=64)]
    return tokens[:, :-1], tokens[:, 1:]


*_, last = Trainer(decoder, config).run(next_words)
print(f"decoder: loss {last.loss:.2f} at next words")

# %% Who knows the article?
# Here are sentences that neither has seen. The encoder gets the sentence with the article hidden; the decoder gets
# the words before the article.
encoder.eval(), decoder.eval()
fresh = np.stack([tokenizer.wrap(tokenizer.encode(sentence())) for _ in range(500)])
place, wanted = 4, fresh[:, 4].copy()  # the second article
shown = fresh.copy()
shown[:, place] = tokenizer.mask
seen_both = (encoder(shown).data[:, place].argmax(axis=-1) == wanted).mean()
seen_left = (decoder(fresh[:, :place]).data[:, -1].argmax(axis=-1) == wanted).mean()
print(f'\nright articles: encoder {seen_both:.0%}, decoder {seen_left:.0%}; "some" alone is right half the time')
assert seen_both > 0.97 and seen_left < 0.6

# The attention maps show where the encoder looked: from the article at the noun after it.
maps = encoder.look(shown[:1]).attention_maps
strongest = max(float(heads[0, :, place, place + 1].max()) for heads in maps)
print(f"of the attention of the hidden article, a head gives {strongest:.0%} to the noun behind it")
assert all(np.triu(heads[0, 0], k=1).any() for heads in maps)  # an encoder's maps are no triangles
assert not any(np.triu(heads[0, 0], k=1).any() for heads in decoder.look(fresh[:1]).attention_maps)

# %% Fill in
# Now from a text; `nanograd-llm fill` does this with any BERT. `nanograd-llm train --task masked-words` trains one in
# a minute, and also handles words of several pieces and rows of different lengths.
for text in ("[MASK] owl sees some dogs", "some cats [MASK] an egg"):
    (guesses,) = fill(encoder, tokenizer, text, top=2)
    print(f"{text:>26}:", ", ".join(f"{guess.word} {guess.probability:.0%}" for guess in guesses))
    assert {guess.word for guess in guesses} & {"an", "see", "hear"}
