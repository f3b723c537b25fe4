"""14  GPT-2's weights, in and out: one model under the names and in the layouts of everyone who stores GPT-2.

The one idea: a file of weights is nothing but names, shapes and numbers. Whoever knows the table of a form reads it
exactly; whoever guesses a layout from a shape reads a square matrix turned, and no error says so.
"""

# T time (context_length), C channels (n_embd), V vocabulary

import tempfile
from pathlib import Path

import numpy as np

import nanograd_llm as ng
from nanograd_llm import text
from nanograd_llm.inference import Sampling, evaluate_text, generate
from nanograd_llm.pretrained.gpt2 import names as gpt2_names
from nanograd_llm.training import TrainConfig, Trainer

# %% A model to give away
# As in 09_training_loop_by_hand.py: a small GPT and its tokenizer, trained for a few seconds. With the net at hand,
# `ng.load_gpt2("gpt2")` brings the real one, of the same architecture.
train_text, held_out = text.split_text(text.builtin_corpus())
tokenizer = text.BPETokenizer.train(train_text, vocab_size=512)
ids = tokenizer.encode(train_text)
model = ng.GPT(ng.GPTConfig(vocab_size=512, context_length=32, n_layer=1, n_head=4, n_embd=64), seed=0)
trainer = Trainer(model, TrainConfig(learning_rate=1e-2, warmup=0.2, final=0.05, steps=400))
*_, last = trainer.run(lambda step: text.random_windows(ids, context_length=32, batch_size=16, seed=0, step=step))
model.eval()
print(f"trained for {last.step} steps, loss {last.loss:.2f}")

# %% Out, and in again
# save_gpt2 writes a folder that `transformers` opens with GPT2LMHeadModel.from_pretrained, tokenizer included; the
# other form is NumPy's own. What comes back has the same bits, lies in the file itself (mapped, not copied), and is
# read-only until a trainer copies it.
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
# A Linear here keeps its weight as (in, out), as OpenAI did and Hugging Face still does ("Conv1D"), so those files are
# used as they lie. PyTorch's Linear keeps (out, in), and so do nanoGPT and llm.c: there the matrix is turned.
layouts = (gpt2_names.HUGGING_FACE, gpt2_names.OPENAI, gpt2_names.NANOGPT, gpt2_names.LLMC)
print(f"\n{'here':>32}" + "".join(f"{layout.title:>26}" for layout in layouts))
for name in ("wte", "blocks.0.ln_1.weight", "blocks.0.attention.qkv.weight", "blocks.0.attention.out.weight"):
    shape = model.state_dict()[name].shape
    print(f"{name:>32}" + "".join(f"{layout.name(name):>26}" for layout in layouts))
    print(f"{shape!s:>32}" + "".join(f"{layout.shape(name, shape)!s:>26}" for layout in layouts))
assert gpt2_names.NANOGPT.shape("blocks.0.attention.qkv.weight", (64, 192)) == (192, 64)

# %% What a shape cannot tell
# `qkv` is (C, 3C): turned, it does not fit, and would be refused. `out` is (C, C): turned, it fits, every check of
# shapes passes, and the model is another one. Only the logits show it, so those are what the package's tests compare.
turned = ng.GPT(model.config, seed=None)
turned.load_state_dict(
    {name: x.T if name == "blocks.0.attention.out.weight" else x for name, x in model.state_dict().items()}, assign=True
)
before, after = (evaluate_text(each, held_out[:4000], tokenizer).bits_per_byte for each in (model, turned))
print(f"\nbits per byte on held-out text: {before:.3f}; with one square matrix turned {after:.3f}")
assert after > before

# %% Whatever does not fit is told, all of it at once
arrays = {gpt2_names.HUGGING_FACE.name(name): x for name, x in model.state_dict().items()}
arrays["h.0.attn.c_attn.weight"] = arrays["h.0.attn.c_attn.weight"].T
arrays["score.weight"] = arrays.pop("wpe.weight")
shapes = {name: p.shape for name, p in model.named_parameters()}
try:
    gpt2_names.restore(arrays, shapes, gpt2_names.HUGGING_FACE, "this file")
except ng.NanogradError as error:
    print(f"\n{error}")
    assert all(word in str(error) for word in ("missing: wpe.weight", "extra: score.weight", "misfit: h.0.attn.c_attn"))

# %% On from there
# A loaded model trains like any other; its weights leave the file for the trainer's array, and the file stays as it is.
code = Path(ng.nn.__file__).with_name("attention.py").read_text("utf-8")
loaded, code_ids = ng.load_gpt2(Path(folder.name) / "hf"), tokenizer.encode(code[:-2000])
before = evaluate_text(loaded, code[-2000:], tokenizer).bits_per_byte
tuning = Trainer(loaded, TrainConfig(learning_rate=3e-3, steps=60))
list(tuning.run(lambda step: text.random_windows(code_ids, context_length=32, batch_size=16, seed=1, step=step)))
after = evaluate_text(loaded, code[-2000:], tokenizer).bits_per_byte
print(f"\nbits per byte on code it has not seen: {before:.2f}, after training on other code {after:.2f}")
assert after < before
again = ng.load_gpt2(Path(folder.name) / "hf").state_dict()
assert all(np.array_equal(again[name], array) for name, array in model.state_dict().items())
folder.cleanup()
