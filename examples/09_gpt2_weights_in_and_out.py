"""09  GPT-2's weights, in and out: a checkpoint is arrays with names, and a few settings that say what they mean.

The one idea: whatever the form of the file, loading is a table of names. Once every array has found its place, the same
numbers come out; the layout of a matrix is known from the form, since no shape tells a square one from its transpose.
"""

# T time (context_length), V vocabulary

import tempfile
from pathlib import Path

import numpy as np

import nanograd_llm as ng
from nanograd_llm import text
from nanograd_llm.inference import Sampling, evaluate, generate
from nanograd_llm.pretrained import load_gpt2_tokenizer
from nanograd_llm.training import TrainConfig, Trainer

# %% A model to hand on
# As in 04_training_loop_by_hand.py, in a few seconds; a folder that transformers wrote would do as well.
train_text, held_out = text.split_text(text.builtin_corpus())
tokenizer = text.BPETokenizer.train(train_text, vocab_size=512)
ids = tokenizer.encode(train_text)
T = 16
model = ng.GPT(ng.GPTConfig(vocab_size=tokenizer.vocab_size, context_length=T, n_layer=2, n_head=4, n_embd=32), seed=0)


def learn(model: ng.GPT, steps: int, learning_rate: float) -> None:
    trainer = Trainer(model, TrainConfig(learning_rate=learning_rate, steps=steps))
    for _ in trainer.run(lambda step: text.random_windows(ids, context_length=T, batch_size=16, seed=0, step=step)):
        pass


def loss_of(model: ng.GPT) -> float:
    return evaluate(model, tokenizer.encode(held_out)[:2000], tokenizer, context_length=T).loss


learn(model, 200, 1e-2)

# %% Out: the folder that transformers reads
# The names are Hugging Face's, and so are the settings; the tokenizer's files lie beside them.
folder = Path(tempfile.mkdtemp())
ng.save_gpt2(model, folder / "hf", tokenizer)
print(sorted(path.name for path in (folder / "hf").iterdir()))

# %% In again: no copy, and the same bits
# The arrays are the file itself, mapped into memory and read-only, so that even a large model is there at once.
loaded = ng.load_gpt2(folder / "hf")
tokens = ids[None, :T]
assert np.array_equal(loaded(tokens).data, model.eval()(tokens).data)
assert not loaded.wte.data.flags.writeable
print(loaded)

# %% The same through the form that OpenAI published
# A TensorFlow checkpoint has other names (model/h0/attn/c_attn/w) and an axis more; the table knows both.
ng.save_gpt2(loaded, folder / "tf", tokenizer, form="tf")
again = ng.load_gpt2(folder / "tf")
for name, array in model.state_dict().items():
    assert np.array_equal(array, again.state_dict()[name]), name

# %% It writes the same text
prompt = tokenizer.encode("The statement ")
sampling = Sampling(temperature=0.7, top_p=0.9)
texts = [generate(m, prompt, max_new_tokens=30, sampling=sampling, seed=1) for m in (model, loaded, again)]
assert texts[0] == texts[1] == texts[2]
its_tokenizer = load_gpt2_tokenizer(folder / "hf")
print(its_tokenizer.decode(texts[1][0]))

# %% And learns further: fine-tuning
# A trainer copies the weights into an array of its own; the file stays as it is.
before = loss_of(loaded)
learn(loaded, 200, 3e-3)
after = loss_of(loaded)
print(f"held-out loss {before:.3f} before, {after:.3f} after")
assert after < before
assert np.array_equal(ng.load_gpt2(folder / "hf").wte.data, again.wte.data)
