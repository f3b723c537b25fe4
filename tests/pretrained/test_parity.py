"""Compared with transformers itself: random models are read and written, with equal logits, gradients and text.

pip install ".[test,parity]" && pytest -m parity tests/pretrained
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.inference import Sampling, generate
from nanograd_llm.pretrained.gpt2.names import HUGGING_FACE
from nanograd_llm.pretrained.gpt2.tokenizer import read_tokenizer
from nanograd_llm.text import BPETokenizer

pytestmark = pytest.mark.parity
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
SEEDS = range(8)
each_seed = pytest.mark.parametrize("seed", SEEDS)


@pytest.fixture(autouse=True)
def parity() -> None:
    """Skips if the extra is missing. The import takes seconds, so the first test does it."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


def random_kind(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    n_head = one_of(1, 2, 3, 4)
    return dict(
        vocab_size=one_of(31, 64, 301),
        n_positions=one_of(58, 64),
        n_layer=one_of(1, 2, 4),
        n_head=n_head,
        n_embd=n_head * one_of(4, 8, 16),
        n_inner=one_of(None, 10, 50),
        activation_function=one_of("gelu_new", "gelu", "gelu_pytorch_tanh"),
        layer_norm_epsilon=one_of(1e-5, 1e-3),
        scale_attn_weights=bool(one_of(True, True, False)),
        scale_attn_by_inverse_layer_idx=bool(one_of(False, True)),
        tie_word_embeddings=bool(one_of(True, False)),
        bos_token_id=0,
        eos_token_id=0,
    )


def theirs(seed: int, dtype: str = "float64", **settings: Any) -> Any:
    """A model of transformers whose weights are far from their initial values."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.GPT2Config(**random_kind(seed), **settings, attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def its_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


def some_ids(model: Any) -> np.ndarray:
    return np.random.default_rng(9).integers(0, model.config.vocab_size, (2, 20))


def assert_close(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    assert found.dtype == expected.dtype == dtype
    assert np.abs(found - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max()


@each_seed
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", ["safetensors", "shards", "bin", "bin without prefix"])
def test_a_model_of_transformers_gives_its_logits_here(seed: int, dtype: str, form: str, tmp_path: Path) -> None:
    import torch

    model = theirs(seed, dtype)
    if form.startswith("bin"):
        model.config.save_pretrained(tmp_path)
        part = model if form == "bin" or not model.config.tie_word_embeddings else model.transformer
        torch.save(part.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        model.save_pretrained(tmp_path, max_shard_size="20KB" if form == "shards" else "1GB")
    ids = some_ids(model)
    assert_close(ng.load_gpt2(tmp_path, dtype=dtype)(ids).data, its_logits(model, ids), dtype)


def test_attention_in_another_order_is_the_same_function(tmp_path: Path) -> None:
    """transformers does this only for float32; it rounds at other places."""
    model = theirs(0, "float32", reorder_and_upcast_attn=True)
    model.save_pretrained(tmp_path)
    ids = some_ids(model)
    assert_close(ng.load_gpt2(tmp_path)(ids).data, its_logits(model, ids), "float32")


@each_seed
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly(seed: int, stored: str, tmp_path: Path) -> None:
    import torch

    model = theirs(seed).to(getattr(torch, stored))
    model.save_pretrained(tmp_path)
    ids = some_ids(model)
    assert_close(ng.load_gpt2(tmp_path, dtype="float64")(ids).data, its_logits(model.double(), ids), "float64")


@each_seed
def test_loss_and_every_gradient_are_those_of_transformers(seed: int, tmp_path: Path) -> None:
    import torch

    model = theirs(seed)
    model.save_pretrained(tmp_path)
    ids = some_ids(model)
    rows = torch.from_numpy(ids)
    loss = torch.nn.functional.cross_entropy(model(rows).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    ours = ng.load_gpt2(tmp_path, dtype="float64")
    found = ours.loss(ids[:, :-1], ids[:, 1:])
    found.backward()
    assert found.item() == pytest.approx(loss.item(), rel=1e-12)
    expected = {name.removeprefix("transformer."): p.grad.numpy() for name, p in model.named_parameters()}
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    gradients = {HUGGING_FACE.name(name): p.grad for name, p in ours.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert np.abs(gradient - expected[name]).max() <= 1e-12 * largest, name


@each_seed
def test_fifty_greedy_tokens_are_those_of_transformers(seed: int, tmp_path: Path) -> None:
    import torch

    model = theirs(seed)
    model.save_pretrained(tmp_path)
    prompt = some_ids(model)[0, :4]
    settings = dict(max_new_tokens=50, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = model.generate(torch.from_numpy(prompt[None]), **settings)[0, 4:].tolist()
    greedy = Sampling(temperature=0)
    assert generate(ng.load_gpt2(tmp_path, dtype="float64"), prompt, max_new_tokens=50, sampling=greedy) == [expected]


@each_seed
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_model_from_here_gives_its_logits_in_transformers(seed: int, dtype: str, tmp_path: Path) -> None:
    import torch
    import transformers

    theirs(seed, dtype).save_pretrained(tmp_path / "one")
    model = ng.load_gpt2(tmp_path / "one", dtype=dtype)
    ng.save_gpt2(model, tmp_path / "two")
    again, problems = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "two", dtype=getattr(torch, dtype), output_loading_info=True
    )
    assert not any(problems.values())
    ids = some_ids(again)
    assert_close(model(ids).data, its_logits(again.eval(), ids), dtype)
    for name, array in ng.load_gpt2(tmp_path / "two", dtype=dtype).state_dict().items():
        assert array.tobytes() == model.state_dict()[name].tobytes(), name


def test_a_tokenizer_from_here_gives_its_ids_in_transformers(tmp_path: Path) -> None:
    import transformers

    tokenizer = BPETokenizer.train("the thin theory, then the other " * 5, 270)
    ng.save_gpt2(
        ng.GPT(ng.GPTConfig(vocab_size=270, context_length=8, n_layer=1, n_head=1, n_embd=4)), tmp_path, tokenizer
    )
    text = "the theory\tthen é 漢🙂\n\n  It's the other   "
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert again.decode(tokenizer.encode(text)) == text
    assert again.eos_token_id == tokenizer.end_of_text


def test_a_tokenizer_of_transformers_gives_its_ids_here(tmp_path: Path) -> None:
    """It writes one file, tokenizer.json, in place of the two older ones."""
    import transformers

    model = theirs(0)
    tokenizer = BPETokenizer.train("the thin theory, then the other " * 5, 270)
    model.save_pretrained(tmp_path / "two")
    ng.save_gpt2(
        ng.GPT(ng.GPTConfig(vocab_size=270, context_length=8, n_layer=1, n_head=1, n_embd=4)),
        tmp_path / "one",
        tokenizer,
    )
    transformers.AutoTokenizer.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / "tokenizer.json").exists()
    found = read_tokenizer(tmp_path / "two")
    assert found is not None
    text = "the theory\tthen é 漢🙂\n\n  It's <|endoftext|>the other   "
    assert found.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert found.encode(text, allow_special=True).tolist() == tokenizer.encode(text, allow_special=True).tolist()
