"""15  GPT-2's weights, in and out: one model with the names and layouts of each form of file.

The one idea: a file of weights holds names, shapes and numbers. A table of the names and layouts is needed to read it.
A layout guessed from shapes may transpose a square matrix, and there is no error message.
"""

# T time (context_length), C channels (n_embd), V vocabulary

import tempfile
from pathlib import Path

import numpy as np

import nanograd_llm as ng
from nanograd_llm import text
from nanograd_llm.inference import Sampling, evaluate_text, generate
from nanograd_llm.pretrained.gpt2 import names as gpt2_names
from nanograd_llm.pretrained.layout import fill
from nanograd_llm.training import TrainConfig, Trainer

# %% A model to give away
# As in lesson 9: a small GPT and its tokenizer, trained for a few seconds. With a network, `ng.load_gpt2("gpt2")` loads
# the real GPT-2, which has the same architecture.
train_text, held_out = text.split_text(text.builtin_corpus())
tokenizer = text.BPETokenizer.train(train_text, vocab_size=512)
ids = tokenizer.encode(train_text)
model = ng.GPT(ng.GPTConfig(vocab_size=tokenizer.vocab_size, context_length=32, n_layer=1, n_head=4, n_embd=64), seed=0)
trainer = Trainer(model, TrainConfig(learning_rate=1e-2, warmup=0.2, final=0.05, steps=250, workers=1))
*_, last = trainer.run(lambda step: text.random_windows(ids, context_length=32, batch_size=16, seed=0, step=step))
model.eval()
print(f"trained for {last.step} steps, loss {last.loss:.2f}")

# %% Save and load
# `save_gpt2` writes a folder that transformers opens with GPT2LMHeadModel.from_pretrained, with the tokenizer. The
# other form is NumPy's own. The loaded weights are exactly the same numbers. They are mapped from the
# file, not copied, and they are read-only until a trainer copies them.
folder = tempfile.TemporaryDirectory()
prompt = tokenizer.encode("If the")
greedy = Sampling(temperature=0)
(written,) = generate(model, prompt, max_new_tokens=12, sampling=greedy)
print("it writes:", repr(tokenizer.decode(prompt) + tokenizer.decode(written)))
for form in ("hf", "numpy"):
    path = Path(folder.name) / form
    ng.save_gpt2(model, path, tokenizer, form=form)
    opened = ng.open_model(path)
    loaded, its_tokenizer = opened.model(), opened.tokenizer()
    for name, array in model.state_dict().items():
        assert np.array_equal(loaded.state_dict()[name], array)
        assert not loaded.state_dict()[name].flags.writeable
    assert its_tokenizer.encode(held_out).tolist() == tokenizer.encode(held_out).tolist()
    assert generate(loaded, prompt, max_new_tokens=12, sampling=greedy) == [written]
    print(f"{form:>6}: the same weights, ids and text from {', '.join(sorted(file.name for file in path.iterdir()))}")

# %% The table
# Here the weight of a Linear is (in, out), as in the files of OpenAI and Hugging Face ("Conv1D"). So those files are
# used without a copy. The weight of PyTorch's Linear is (out, in), also in nanoGPT and llm.c, so it is transposed.
layouts = (gpt2_names.HUGGING_FACE, gpt2_names.OPENAI, gpt2_names.NANOGPT, gpt2_names.LLMC)
print(f"\n{'here':>32}" + "".join(f"{layout.title:>26}" for layout in layouts))
for name in ("wte", "blocks.0.ln_1.weight", "blocks.0.attention.qkv.weight", "blocks.0.attention.out.weight"):
    array = model.state_dict()[name]
    stored = [next(iter(layout.stored(name, array).items())) for layout in layouts]  # the name there, and its array
    print(f"{name:>32}" + "".join(f"{there:>26}" for there, _ in stored))
    print(f"{array.shape!s:>32}" + "".join(f"{other.shape!s:>26}" for _, other in stored))
qkv = "blocks.0.attention.qkv.weight"
assert [a.shape for a in gpt2_names.NANOGPT.stored(qkv, model.state_dict()[qkv]).values()] == [(192, 64)]

# %% What a shape does not show
# `qkv` is (C, 3C): if it is transposed, its shape is wrong and it is refused. `out` is (C, C): if it is transposed, its
# shape is still right, but the model computes something else. Only the logits show this, so the tests compare logits.
transposed = ng.GPT(model.config, seed=None)
transposed.load_state_dict(
    {name: x.T if name == "blocks.0.attention.out.weight" else x for name, x in model.state_dict().items()}, assign=True
)
before, after = (evaluate_text(each, held_out[:4000], tokenizer).bits_per_byte for each in (model, transposed))
print(f"\nbits per byte on held-out text: {before:.3f}; with one square matrix transposed {after:.3f}")
assert after > before

# %% One error lists everything that does not fit
arrays = {gpt2_names.HUGGING_FACE.name(name): x for name, x in model.state_dict().items()}
arrays["h.0.attn.c_attn.weight"] = arrays["h.0.attn.c_attn.weight"].T
arrays["score.weight"] = arrays.pop("wpe.weight")
try:
    fill(model, arrays, gpt2_names.HUGGING_FACE, "this file", dtype=np.dtype(np.float32), strict=True)
except ng.NanogradError as error:
    print(f"\n{error}")
    assert all(word in str(error) for word in ("missing: wpe.weight", "extra: score.weight", "misfit: h.0.attn.c_attn"))

# %% Train it further
# A loaded model trains like any other. The trainer copies its weights, and the file does not change.
code = Path(ng.nn.__file__).with_name("attention.py").read_text("utf-8")
loaded, code_ids = ng.load_gpt2(Path(folder.name) / "hf"), tokenizer.encode(code[:-2000])
before = evaluate_text(loaded, code[-2000:], tokenizer).bits_per_byte
tuning = Trainer(loaded, TrainConfig(learning_rate=3e-3, steps=60, workers=1))
list(tuning.run(lambda step: text.random_windows(code_ids, context_length=32, batch_size=16, seed=1, step=step)))
after = evaluate_text(loaded, code[-2000:], tokenizer).bits_per_byte
print(f"\nbits per byte on held-out code: {before:.2f}, after training on other code {after:.2f}")
assert after < before
again = ng.load_gpt2(Path(folder.name) / "hf").state_dict()
assert all(np.array_equal(again[name], array) for name, array in model.state_dict().items())
folder.cleanup()
