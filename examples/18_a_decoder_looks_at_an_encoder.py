"""18  A decoder looks at an encoder: a translation, and a picture of where each of its words came from.

The one idea: an encoder reads the source, where each word sees both sides, and a decoder writes the target from left to
right. Cross-attention connects them: queries from the target, keys and values from the source. This is the transformer
as it was first published (Vaswani et al. 2017).
"""

# B batch, S source time, T target time, H heads

import numpy as np

import nanograd_llm as ng
from nanograd_llm.inference import BeamSearch, show_attention, translate
from nanograd_llm.text import WordTokenizer
from nanograd_llm.training import TrainConfig, Trainer

# %% A language that is English in reverse
# The target has the words in reverse order, in capitals. So the model must learn the order as well as the words.
WORDS = "a red cat sees the old dog near some green trees".split()
tokenizer = WordTokenizer.train(["\n".join([*WORDS, *map(str.upper, WORDS)])])
END = tokenizer.end_of_text  # begins a target, ends it, and fills up a shorter source


def pair(rng):
    words = rng.choice(WORDS, size=rng.integers(3, 8))
    return " ".join(words), " ".join(words[::-1]).upper()


# %% What a batch is: teacher forcing
# At each place the decoder gets the right target up to there (`target_in`, which begins with a start token) and
# predicts the next token (`target`, which ends with an end token). At inference it gets its own words instead.
def batch(step):
    """(source, target_in, target), filled up to the longest: (B, S), (B, T), (B, T)"""
    rng = np.random.default_rng(step)
    source, target_in, target = np.full((3, 32, 8), END)
    target[:] = -100
    for row in range(len(source)):
        english, turned = map(tokenizer.encode, pair(rng))
        source[row, : len(english)] = english
        target_in[row, 1 : len(turned) + 1] = target[row, : len(turned)] = turned
        target[row, len(turned)] = END
    return source, target_in, target


source, target_in, target = batch(0)
print("source   ", tokenizer.decode(source[0][source[0] != END]))
print("target   ", tokenizer.decode(target[0][target[0] > END]))
assert target_in[0, 0] == END and np.array_equal(target_in[0, 1:4], target[0, :3])

# %% Train it
config = ng.EncoderDecoderConfig(
    vocab_size=tokenizer.vocab_size, context_length=8, n_layer=1, n_head=4, n_embd=64, pad_id=END
)
model = ng.EncoderDecoder(config)
trainer = Trainer(model, TrainConfig(steps=400, batch_size=32, learning_rate=4e-3, beta2=0.98, workers=1))
for record in trainer.run(batch):
    if record.step % 100 == 0:
        print(f"step {record.step}: loss {record.loss:.3f}")

# %% It translates sentences that it has not seen
# Greedy decoding takes the likeliest word each time. Beam search keeps several translations and takes the best one
# that is finished.
rng = np.random.default_rng(10**6)
unseen = [pair(rng) for _ in range(50)]
rows = [tokenizer.encode(english) for english, _ in unseen]
for search in (BeamSearch(), BeamSearch(beam=4)):
    written = [tokenizer.decode(ids) for ids in translate(model, rows, search=search)]
    exact = np.mean([one == other for one, (_, other) in zip(written, unseen)])
    print(f"beam {search.beam}: exact match {exact:.0%}")
    assert exact > 0.9

# %% Where did each word come from?
# `look` does the computation of the model and shows every attention map. The mean of the cross-attention over the
# heads shows which words of the source each word of the target was made from: here a diagonal, because the order is
# reversed.
words = "the old cat sees some green dog".split()
ids = tokenizer.encode(" ".join(words))
(output,) = translate(model, ids)
look = model.look(ids[None], [[END, *output]])
cross = look.cross_maps[-1][0].mean(axis=0)  # (H, T, S) -> (T, S)
print(show_attention(tokenizer.decode(output).split(), words, cross[:-1]))
assert tokenizer.decode(output) == " ".join(words[::-1]).upper()
assert (cross[:-1].argmax(axis=1) == np.arange(len(words))[::-1]).mean() > 0.7

# There are two more kinds of maps: in the encoder a word sees both sides, in the decoder only the words before it.
assert (look.encoder_maps[0][0, 0] > 0).all()
assert not np.triu(look.decoder_maps[0][0, 0], 1).any()

# %% Padding changes nothing, and the source is read once
# The translation of a row does not depend on the other rows or on the padding. The keys and values of the source are
# computed at the first word and kept, and so are those of the words that are written.
assert translate(model, rows) == [translate(model, row)[0] for row in rows] == translate(model, rows, cache=False)
