"""11  Sampling strategies: how the numbers of a model become a text.

The one idea: a model gives a distribution over the next token. To write a text, choose a token from it, again and
again. The strategy decides how much is left to chance; the model does not change.
"""

# B batch (prompts), T time (context_length), V vocabulary

import itertools

import numpy as np

import nanograd_llm as ng
from nanograd_llm import text
from nanograd_llm.inference import Sampling, generate, stream
from nanograd_llm.training import TrainConfig, Trainer

# %% A model that has learned a little
# As in lesson 9, in a few seconds.
train_text, _ = text.split_text(text.builtin_corpus())
tokenizer = text.BPETokenizer.train(train_text, vocab_size=512)
ids = tokenizer.encode(train_text)
T = 16
model = ng.GPT(ng.GPTConfig(vocab_size=tokenizer.vocab_size, context_length=T, n_layer=1, n_head=4, n_embd=64), seed=0)
trainer = Trainer(model, TrainConfig(learning_rate=1e-2, warmup=0.2, final=0.05, max_norm=0.4, steps=300, workers=1))
*_, last = trainer.run(lambda step: text.random_windows(ids, context_length=T, batch_size=32, seed=0, step=step))
print(f"trained for {last.step} steps, loss {last.loss:.2f}")

# %% The logits of the next token
# For a prompt, the model gives a logit for each token of the vocabulary: a score for this token to come next.
prompt = tokenizer.encode("If the class")
logits = model.next_logits(prompt[None])  # (1, T) -> (1, V)

# %% Strategies side by side
# Each strategy turns the same logits into another distribution. Greedy takes the most likely token. The temperature
# divides the logits: below 1 likely tokens become more likely, above 1 they become less likely. top_k keeps the k most
# likely tokens. top_p keeps the most likely tokens that together have probability p: many if the model is unsure, few
# if it is sure.
strategies = {
    "greedy": Sampling(temperature=0),
    "T=0.5": Sampling(temperature=0.5),
    "T=1": Sampling(),
    "T=1.5": Sampling(temperature=1.5),
    "top_k=3": Sampling(top_k=3),
    "top_p=0.5": Sampling(top_p=0.5),
}
p = {name: sampling.probabilities(logits)[0] for name, sampling in strategies.items()}  # name -> (V)
ranked = np.argsort(-logits[0])  # ids, the most likely first

print(f"{'after ' + repr(tokenizer.decode(prompt)):>26}" + "".join(f"{name:>11}" for name in strategies))
for token in ranked[:7]:
    print(f"{tokenizer.decode([token])!r:>26}" + "".join(f"{p[name][token]:11.1%}" for name in strategies))
print(f"{'all the others':>26}" + "".join(f"{p[name][ranked[7:]].sum():11.1%}" for name in strategies))
print(f"{'tokens that can be chosen':>26}" + "".join(f"{np.count_nonzero(p[name]):11}" for name in strategies))

assert all(np.isclose(row.sum(), 1) for row in p.values())
assert p["greedy"][ranked[0]] == 1
assert 1 > p["T=0.5"][ranked[0]] > p["T=1"][ranked[0]] > p["T=1.5"][ranked[0]]
assert set(np.flatnonzero(p["top_k=3"])) == set(ranked[:3])
nucleus = ranked[: np.count_nonzero(p["top_p=0.5"])]  # the smallest set of the most likely tokens that reaches one half
assert p["T=1"][nucleus].sum() >= 0.5 > p["T=1"][nucleus[:-1]].sum()

# %% What they write
# Greedy soon repeats itself. A high temperature gives nonsense. top_k and top_p vary the text without unlikely tokens.
for name, sampling in strategies.items():
    (new,) = generate(model, prompt, max_new_tokens=24, sampling=sampling)
    print(f"{name:>9}: {tokenizer.decode(prompt) + tokenizer.decode(new)!r}")

# %% The seed
# The same seed writes the same text, another seed another text. Greedy uses no random numbers, so its seed has no
# effect.
bold, again, other = (Sampling(temperature=1.5, seed=seed) for seed in (1, 1, 2))
assert generate(model, prompt, sampling=bold) == generate(model, prompt, sampling=again)
assert generate(model, prompt, sampling=bold) != generate(model, prompt, sampling=other)
greedy = Sampling(temperature=0)
assert generate(model, prompt, sampling=greedy) == generate(model, prompt, sampling=Sampling(temperature=0, seed=2))

# %% The cache changes the time, not the text
# The keys and values of earlier tokens do not depend on later ones. So they are stored (KeyValueCache), and each step
# computes only its new token. If the text becomes longer than the context, the model continues from its last half.
cached = generate(model, prompt, max_new_tokens=60, sampling=greedy)
assert cached == generate(model, prompt, max_new_tokens=60, sampling=greedy, cache=False)
assert len(prompt) + len(cached[0]) > model.config.context_length

# %% Several prompts at once
# They may differ in length. They do not affect each other: each is continued as it would be alone.
prompts = [tokenizer.encode(start) for start in ("The", "An exception is raised if the", "Return the value")]
together = generate(model, prompts, max_new_tokens=16, sampling=greedy)
alone = [generate(model, one, max_new_tokens=16, sampling=greedy)[0] for one in prompts]
assert together == alone
for one, new in zip(prompts, together):
    print(repr(tokenizer.decode(one) + tokenizer.decode(new)))

# A stop id ends a text early. Here this is the first full stop; it is not part of the result.
full_stop = tokenizer.encode(".")[0]
(whole,) = generate(model, prompt, sampling=Sampling(top_p=0.5))
(until,) = generate(model, prompt, sampling=Sampling(top_p=0.5), stop=[full_stop])
assert until == list(itertools.takewhile(lambda token: token != full_stop, whole))

# %% Streaming
# `stream` yields each id as soon as it is chosen. A token may be only a part of a character; `decode_stream` waits for
# the rest.
print("streamed: The", end="")
streamed = ""
nucleus_only = Sampling(top_p=0.5, seed=3)
written = stream(model, prompts[0], max_new_tokens=24, sampling=nucleus_only)
for piece in tokenizer.decode_stream(token for (token,) in written):
    print(piece, end="", flush=True)
    streamed += piece
print()
(at_once,) = generate(model, prompts[0], max_new_tokens=24, sampling=nucleus_only)
assert streamed == tokenizer.decode(at_once)
