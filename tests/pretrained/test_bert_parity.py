"""Beside transformers itself: BERTs of random kinds go both ways, with its logits, vectors, classes and gradients.

pip install ".[test,parity]" && pytest -m parity tests/pretrained
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm import ops
from nanograd_llm.pretrained.bert.load import OpenedBERT
from nanograd_llm.pretrained.bert.names import LAYOUT

pytestmark = pytest.mark.parity
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
each_seed = pytest.mark.parametrize("seed", range(6))
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(autouse=True)
def parity() -> None:
    """Skips where the extra is missing; the import takes seconds, so it waits for the first test."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


def theirs(kind: str, seed: int, dtype: str, **changes: Any) -> Any:
    """A model of transformers of random sizes and settings, all its parameters far from their initial values."""
    import torch
    import transformers

    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 5))
    settings = dict(
        vocab_size=int(rng.integers(5, 60)),
        max_position_embeddings=int(rng.integers(8, 20)),
        num_attention_heads=heads,
        hidden_size=heads * int(rng.integers(1, 9)),
        num_hidden_layers=int(rng.integers(1, 4)),
        intermediate_size=int(rng.integers(1, 40)),
        type_vocab_size=int(rng.integers(1, 4)),
        hidden_act=str(rng.choice(["gelu", "gelu_new", "gelu_pytorch_tanh"])),
        layer_norm_eps=float(rng.choice([1e-12, 1e-3])),
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(transformers.BertConfig(**{**settings, **changes}))
    model = model.to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def batch(model: Any, seed: int) -> dict[str, np.ndarray]:
    """Ids, types and lengths of a batch; with seed 0 of texts of one length."""
    rng, c = np.random.default_rng(seed), model.config
    T = int(rng.integers(2, c.max_position_embeddings + 1))
    lengths = rng.integers(1, T + 1, 3) if seed else np.full(3, T)
    lengths[0] = T
    ids = np.where(np.arange(T) < lengths[:, None], rng.integers(1, c.vocab_size, (3, T)), 0)
    return {"ids": ids, "types": rng.integers(0, c.type_vocab_size, (3, T)), "lengths": lengths}


def run(model: Any, b: dict[str, np.ndarray]) -> Any:
    import torch

    mask = np.arange(b["ids"].shape[1]) < b["lengths"][:, None]
    ids, types, mask = (torch.from_numpy(np.asarray(x)) for x in (b["ids"], b["types"], mask.astype(int)))
    found = dict(output_hidden_states=True, output_attentions=True)
    return model(input_ids=ids, token_type_ids=types, attention_mask=mask, **found)


def assert_close(found: np.ndarray, expected: Any, dtype: str, largest: float = 0.0) -> None:
    expected = expected.detach().numpy()
    assert found.shape == expected.shape and found.dtype == dtype
    assert np.abs(found - expected).max() <= TOLERANCE[dtype] * max(largest, np.abs(expected).max())


@each_dtype
@each_seed
def test_logits_layers_and_gradients_are_those_of_transformers(seed: int, dtype: str, tmp_path: Path) -> None:
    import torch
    import torch.nn.functional as F

    model = theirs("BertForMaskedLM", seed, dtype)
    model.save_pretrained(tmp_path)
    ours, b = ng.load_bert(tmp_path, dtype=dtype), batch(model, seed)
    found, look = run(model, b), ours.look(b["ids"], b["types"], lengths=b["lengths"])
    assert_close(look.logits, found.logits, dtype)
    for one, two in zip([*look.hidden_states, *look.attention_maps], [*found.hidden_states, *found.attentions]):
        assert_close(one, two, dtype)
    rng = np.random.default_rng(seed)
    real = np.arange(b["ids"].shape[1]) < b["lengths"][:, None]
    targets = np.where(
        real & (rng.random(real.shape) < 0.5), rng.integers(0, model.config.vocab_size, real.shape), -100
    )
    targets[0, 0] = 1
    F.cross_entropy(found.logits.flatten(0, 1), torch.from_numpy(targets).flatten()).backward()
    ours.loss(b["ids"], targets, b["lengths"], b["types"]).backward()
    expected = {name.removeprefix("bert."): p.grad for name, p in model.named_parameters()}
    gradients: dict[str, np.ndarray] = {}
    for name, parameter in ours.named_parameters():
        gradients |= LAYOUT.stored(name, parameter.grad)
    assert gradients.keys() == expected.keys()
    largest = max(float(x.abs().max()) for x in expected.values())
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], dtype, largest)


@each_dtype
@each_seed
def test_pooled_vectors_and_their_gradients_are_those_of_transformers(seed: int, dtype: str, tmp_path: Path) -> None:
    import torch

    model = theirs("BertModel", seed, dtype)
    model.save_pretrained(tmp_path)
    ours, b = ng.load_bert(tmp_path, dtype=dtype), batch(model, seed)
    found, hidden = run(model, b), ours.hidden(b["ids"], b["types"], lengths=b["lengths"])
    pooled = ours.pooled(hidden)
    assert_close(hidden.data, found.last_hidden_state, dtype)
    assert_close(pooled.data, found.pooler_output, dtype)
    weights = np.random.default_rng(seed).standard_normal(pooled.shape).astype(dtype)
    (found.pooler_output * torch.from_numpy(weights)).sum().backward()
    ops.sum(pooled * weights).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    largest = max(float(x.abs().max()) for x in expected.values())
    for name, parameter in ours.named_parameters():
        for theirs_, gradient in LAYOUT.stored(name, parameter.grad).items():
            assert_close(gradient, expected[theirs_], dtype, largest)


@each_seed
def test_a_classifier_has_the_logits_and_the_loss_of_transformers(seed: int, tmp_path: Path) -> None:
    import torch
    import torch.nn.functional as F

    model = theirs("BertForSequenceClassification", seed, "float64", num_labels=3)
    model.save_pretrained(tmp_path)
    ours, b = OpenedBERT(tmp_path).classifier(dtype="float64").eval(), batch(model, seed)
    found, targets = run(model, b).logits, np.array([2, 0, 1])
    assert_close(ours(b["ids"], b["lengths"], b["types"]).data, found, "float64")
    loss = F.cross_entropy(found, torch.from_numpy(targets))
    assert abs(ours.loss(b["ids"], targets, b["lengths"], b["types"]).item() - loss.item()) < 1e-12


@each_dtype
@each_seed
def test_what_save_bert_writes_is_loaded_by_transformers_with_nothing_missing(
    seed: int, dtype: str, tmp_path: Path
) -> None:
    import torch
    import transformers

    for kind, head in (("BertForMaskedLM", True), ("BertModel", False)):
        theirs(kind, seed, dtype).save_pretrained(tmp_path / kind)
        ours = ng.load_bert(tmp_path / kind, dtype=dtype)
        ng.save_bert(ours, tmp_path / f"{kind} again")
        again, told = getattr(transformers, kind).from_pretrained(
            tmp_path / f"{kind} again",
            dtype=getattr(torch, dtype),
            attn_implementation="eager",
            output_loading_info=True,
        )
        assert not any(told.values()), told
        b = batch(again, seed)
        expected = run(again.eval(), b)
        found = ours.look(b["ids"], b["types"], lengths=b["lengths"]).logits if head else None
        hidden = ours.hidden(b["ids"], b["types"], lengths=b["lengths"])
        if found is not None:
            assert_close(found, expected.logits, dtype)
        assert_close(hidden.data, expected.hidden_states[-1], dtype)


def test_torchs_form_before_1_6_gives_the_same_model(tmp_path: Path) -> None:
    import torch

    model = theirs("BertForMaskedLM", 1, "float32")
    for place, zipped in (("new", True), ("old", False)):
        model.config.save_pretrained(tmp_path / place)
        torch.save(model.state_dict(), tmp_path / place / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new, old = (ng.load_bert(tmp_path / place).state_dict() for place in ("new", "old"))
    assert all(array.tobytes() == old[name].tobytes() for name, array in new.items())
