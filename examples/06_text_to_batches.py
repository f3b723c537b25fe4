"""06  Text to batches: how a text becomes the numbers that a language model learns from.

The one idea: a text contains its own answers. Split it into tokens; the target of every token is the next token.
"""

# B batch (windows), T time (context_length), V vocabulary

import math

import numpy as np

from nanograd_llm import text
from nanograd_llm.errors import IndexRangeError

# %% A corpus
# CPython comes with its reference manual, so there is nothing to download. The last tenth is held out: a model never
# trains on it. It shows whether the model has learned English, or has only memorized this text.
corpus = text.builtin_corpus()
train_text, held_out_text = text.split_text(corpus, held_out=0.1)
print(f"{len(corpus):,} characters, the last {len(held_out_text):,} held out")
assert train_text + held_out_text == corpus

# %% Three vocabularies
# A tokenizer splits text into pieces and numbers them. Bytes can encode any text. Characters are easier to read, but
# only those of the training text are known. Byte pair encoding (BPE) starts from bytes and learns longer pieces.
byte_tokenizer = text.ByteTokenizer()
char_tokenizer = text.CharTokenizer.train(corpus)
bpe_tokenizer = text.BPETokenizer.train(train_text, vocab_size=512)
tokenizers = [byte_tokenizer, char_tokenizer, bpe_tokenizer]

sentence = "The function returns naïve values."
for tokenizer in (byte_tokenizer, bpe_tokenizer):
    pieces = [piece.decode("utf-8", errors="replace") for _, piece in tokenizer.pieces(sentence)]
    print(f"{type(tokenizer).__name__:>13}: {'|'.join(pieces)}")
    assert tokenizer.decode(tokenizer.encode(sentence)) == sentence  # nothing is lost

try:
    char_tokenizer.encode("日本語")
    raise AssertionError("an English manual does not have these characters")
except IndexRangeError as error:
    print(f"CharTokenizer: {error}")

# %% How byte pair encoding learns
# It finds the pair of neighbouring tokens that occurs most often, makes it one token, and repeats. So the first merges
# are the most frequent pairs of the text. Later, whole words become one token.
print(bpe_tokenizer.show_merges(5))
learned = [(left + right).decode("utf-8", errors="replace") for left, right in bpe_tokenizer.merges]
words = sorted((piece for piece in learned if piece.startswith(" ") and piece[1:].isalpha()), key=len)
print("the longest words, each with the space before it:", words[-5:])
assert bpe_tokenizer.vocab_size == 256 + len(bpe_tokenizer.merges) + 1  # the bytes, the merges, end-of-text

# %% Small and large vocabularies
# With longer pieces, more text fits into the same window. But then each token is a choice among more tokens, so the
# loss per token is larger. To compare models with different tokenizers, divide the loss by the number of bytes: this
# gives bits per byte.
bits_per_byte = []
for tokenizer in tokenizers:
    ids = tokenizer.encode(held_out_text)
    bytes_per_token = len(held_out_text.encode("utf-8")) / len(ids)
    guessing = math.log2(tokenizer.vocab_size)  # bits per token, if all V tokens are equally likely
    bits_per_byte.append(guessing / bytes_per_token)
    print(
        f"{type(tokenizer).__name__:>13}: V = {tokenizer.vocab_size:3}, {bytes_per_token:.2f} bytes per token; "
        f"random guessing costs {guessing:.1f} bits per token, {bits_per_byte[-1]:.1f} bits per byte"
    )
assert bits_per_byte[0] > bits_per_byte[1] > bits_per_byte[2]  # a better vocabulary helps even without a model

# %% Windows and their targets
# A batch has B random windows of T tokens. The targets are the same windows, shifted by one position. Each window
# contains T tasks: predict the second token from the first, the third from the first two, and so on.
ids = bpe_tokenizer.encode(train_text)
tokens, targets = text.random_windows(ids, context_length=8, batch_size=4, seed=0, step=0)  # 2 × (B, T)
assert tokens.shape == targets.shape == (4, 8)
assert np.array_equal(targets[:, :-1], tokens[:, 1:])

# A batch depends only on (seed, step). So a run that is repeated gets the same batches.
again, _ = text.random_windows(ids, context_length=8, batch_size=4, seed=0, step=0)
other, _ = text.random_windows(ids, context_length=8, batch_size=4, seed=0, step=1)
assert np.array_equal(tokens, again) and not np.array_equal(tokens, other)

# Training uses random windows. Evaluation moves a window along the text, so that every token but the first counts once.
_, counted = text.sliding_windows(ids, context_length=8, stride=8, count_once=True)
assert np.count_nonzero(counted != text.IGNORE_INDEX) == len(ids) - 1

# %% Look at a batch before you train on it
# Reading a batch as input -> target takes a minute, and shows mistakes that give no error message.
print(text.show_batch(tokens[:1], targets[:1], bpe_tokenizer))

# %% A planted mistake: labels shifted wrongly
# Without the shift, the model learns to repeat its input. The loss falls to zero within minutes and looks very good,
# but the model cannot write text. `show_batch` marks each target that is not the next input. (The last target of a row
# has no next input to compare with.)
forgotten = text.show_batch(tokens[:1], tokens[:1], bpe_tokenizer)
print(forgotten)
assert "but the next input is" in forgotten
assert "but the next input is" not in text.show_batch(tokens, targets, bpe_tokenizer)
