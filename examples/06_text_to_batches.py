"""06  Text to batches: how a text becomes the numbers that a language model learns from.

The one idea: a text carries its own answers. Cut it into tokens; the target of every token is the token that follows.
"""

# B batch (windows), T time (context_length), V vocabulary

import math

import numpy as np

from nanograd_llm import text
from nanograd_llm.errors import IndexRangeError

# %% A corpus
# Every CPython carries its reference manual, so there is nothing to download. The last tenth is never trained on: it
# will tell whether a model has learned English or only learned this text by heart.
corpus = text.builtin_corpus()
train_text, held_out_text = text.split_text(corpus, held_out=0.1)
print(f"{len(corpus):,} characters, the last {len(held_out_text):,} held out")
assert train_text + held_out_text == corpus

# %% Three vocabularies
# A tokenizer cuts text into pieces and numbers them. Bytes know every text; characters are easier on the eye, but know
# only what they were trained on; byte pair encoding (BPE) starts from bytes and learns longer pieces from the text.
byte_tokenizer = text.ByteTokenizer()
char_tokenizer = text.CharTokenizer.train(corpus)
bpe_tokenizer = text.BPETokenizer.train(train_text, vocab_size=512)
tokenizers = [byte_tokenizer, char_tokenizer, bpe_tokenizer]

sentence = "The function returns naïve values."
for tokenizer in (byte_tokenizer, bpe_tokenizer):
    pieces = [piece.decode("utf-8", errors="replace") for _, piece in tokenizer.pieces(sentence)]
    print(f"{type(tokenizer).__name__:>13}: {'|'.join(pieces)}")
    assert tokenizer.decode(tokenizer.encode(sentence)) == sentence  # nothing is lost on the way

try:
    char_tokenizer.encode("日本語")
    raise AssertionError("the characters of an English manual cannot spell this")
except IndexRangeError as error:
    print(f"CharTokenizer: {error}")

# %% How byte pair encoding learns
# It finds the pair of neighbouring tokens that occurs most often, makes it one token, and repeats. So the first merges
# show what this text is full of, and before long whole words are one token.
print(bpe_tokenizer.show_merges(5))
learned = [(left + right).decode("utf-8", errors="replace") for left, right in bpe_tokenizer.merges]
words = sorted((piece for piece in learned if piece.startswith(" ") and piece[1:].isalpha()), key=len)
print("the longest words, each with the space before it:", words[-5:])
assert bpe_tokenizer.vocab_size == 256 + len(bpe_tokenizer.merges) + 1  # the bytes, the merges, end-of-text

# %% What a vocabulary costs and gives
# Longer pieces put more text into the same window. But each is one choice among more, so the loss of a token says
# little about a model until it is shared out over the bytes: bits per byte compare across tokenizers.
bits_per_byte = []
for tokenizer in tokenizers:
    ids = tokenizer.encode(held_out_text)
    bytes_per_token = len(held_out_text.encode("utf-8")) / len(ids)
    guessing = math.log2(tokenizer.vocab_size)  # bits a token, to one who thinks all V equally likely
    bits_per_byte.append(guessing / bytes_per_token)
    print(
        f"{type(tokenizer).__name__:>13}: V = {tokenizer.vocab_size:3}, {bytes_per_token:.2f} bytes a token; "
        f"guessing blindly costs {guessing:.1f} bits a token, {bits_per_byte[-1]:.1f} bits a byte"
    )
assert bits_per_byte[0] > bits_per_byte[1] > bits_per_byte[2]  # a good vocabulary is half of a model already

# %% Windows and their targets
# A batch is B random windows of T tokens, and as targets the same windows moved on by one place. Each window is T
# lessons at once: predict the second token from the first, the third from the first two, and so on.
ids = bpe_tokenizer.encode(train_text)
tokens, targets = text.random_windows(ids, context_length=8, batch_size=4, seed=0, step=0)  # 2 × (B, T)
assert tokens.shape == targets.shape == (4, 8)
assert np.array_equal(targets[:, :-1], tokens[:, 1:])

# A batch is a pure function of (seed, step): a run that stops and resumes sees what it would have seen.
again, _ = text.random_windows(ids, context_length=8, batch_size=4, seed=0, step=0)
other, _ = text.random_windows(ids, context_length=8, batch_size=4, seed=0, step=1)
assert np.array_equal(tokens, again) and not np.array_equal(tokens, other)

# Training takes windows at random; evaluation slides over the text, so that every token but the first counts once.
_, counted = text.sliding_windows(ids, context_length=8, stride=8, count_once=True)
assert np.count_nonzero(counted != text.IGNORE_INDEX) == len(ids) - 1

# %% Look at a batch before you train on it
# Reading a batch as input -> target takes a minute and finds the mistakes that no error message will.
print(text.show_batch(tokens[:1], targets[:1], bpe_tokenizer))

# %% A planted mistake: labels shifted wrongly
# Forget the shift, and the model is asked to repeat its input. The loss falls to zero within minutes, everything looks
# splendid, and the model can write nothing. `show_batch` marks each target that is not the next input (the last target
# of a row has no next input to be compared with).
forgotten = text.show_batch(tokens[:1], tokens[:1], bpe_tokenizer)
print(forgotten)
assert "but the next input is" in forgotten
assert "but the next input is" not in text.show_batch(tokens, targets, bpe_tokenizer)
