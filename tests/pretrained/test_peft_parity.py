"""Beside PEFT itself: adapters go both ways, with its logits and gradients, for every kind of model.

pip install ".[test,parity]" && pytest -m parity tests/pretrained
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.models import Classifier
from nanograd_llm.models.encoder_decoder import sinusoids
from nanograd_llm.nn import lora

pytestmark = pytest.mark.parity
GPT2: dict[str, Any] = dict(
    vocab_size=23, n_positions=9, n_embd=12, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0
)
BERT: dict[str, Any] = dict(vocab_size=23, max_position_embeddings=9, hidden_size=12, num_hidden_layers=2)
BERT |= dict(num_attention_heads=3, intermediate_size=10, num_labels=4)
MARIAN: dict[str, Any] = dict(vocab_size=23, d_model=12, max_position_embeddings=9, pad_token_id=22, eos_token_id=0)
MARIAN |= dict(decoder_start_token_id=22, forced_eos_token_id=0)
for _side in ("encoder", "decoder"):
    MARIAN |= {f"{_side}_layers": 2, f"{_side}_attention_heads": 3, f"{_side}_ffn_dim": 10}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "BERT": ("BertForMaskedLM", "BertConfig", BERT),
    "classifier": ("BertForSequenceClassification", "BertConfig", BERT),
    "Marian": ("MarianMTModel", "MarianConfig", MARIAN),
}
ADAPTERS: dict[str, list[dict[str, Any]]] = {
    "GPT-2": [dict(target_modules=["c_attn"]), dict(target_modules=["c_proj"], use_rslora=True)],
    "BERT": [dict(target_modules=["query", "value"]), dict(target_modules=["query", "key", "value", "dense"])],
    "classifier": [
        dict(target_modules=["query", "value"], task_type="SEQ_CLS"),
        dict(target_modules=["query"], task_type="SEQ_CLS", modules_to_save=["pooler"]),
    ],
    "Marian": [dict(target_modules=["q_proj", "v_proj", "fc1"], rank_pattern={"fc1": 4}, alpha_pattern={"fc1": 9})],
}
IDS = np.random.default_rng(0).integers(1, 22, (3, 7))
each_adapter = pytest.mark.parametrize(
    ("kind", "number"), [(kind, number) for kind in KINDS for number in range(len(ADAPTERS[kind]))]
)


@pytest.fixture(autouse=True)
def parity() -> None:
    """Skips where the extra is missing; the import takes seconds, so it waits for the first test."""
    for package in ("torch", "transformers", "peft"):
        pytest.importorskip(package)


def saved(kind: str, folder: Path) -> Path:
    """The folder of a model of transformers, all its parameters far from their initial values."""
    import torch
    import transformers

    make, config, sizes = KINDS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, make)(getattr(transformers, config)(**sizes))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder / "base")
    return folder / "base"


def theirs(kind: str, base: Path) -> Any:
    import transformers

    return getattr(transformers, KINDS[kind][0]).from_pretrained(base)


def wide(model: Any) -> Any:
    """A model of PEFT in float64; the sinusoids of a Marian, which transformers rounds to float32, too."""
    for name, table in model.double().named_parameters():
        if name.endswith("embed_positions.weight"):
            table.data[:] = table.new_tensor(sinusoids(np.arange(len(table)), table.shape[1], halves=True))
    return model


def ours(kind: str, base: Path) -> Any:
    model = ng.open_model(base).model(dtype="float64")
    return Classifier.on(model, 4, pooling="pooled").astype(np.float64).eval() if kind == "classifier" else model


def logits(model: Any, kind: str) -> Any:
    """Of either, on IDS."""
    if isinstance(model, ng.nn.Module):
        return model(IDS, IDS).data if kind == "Marian" else model(IDS).data
    import torch

    ids = torch.from_numpy(IDS)
    more = {"decoder_input_ids": ids} if kind == "Marian" else {}
    return model(input_ids=ids, **more).logits


def assert_near(found: Any, expected: Any) -> None:
    found, expected = (x if isinstance(x, np.ndarray) else x.detach().numpy() for x in (found, expected))
    assert found.dtype == expected.dtype == np.float64
    assert np.abs(found - expected).max() < 1e-12 * np.abs(expected).max()


@each_adapter
def test_an_adapter_of_peft_gives_its_logits(kind: str, number: int, tmp_path: Path) -> None:
    from make_peft import with_adapters

    base = saved(kind, tmp_path)
    model = with_adapters(theirs(kind, base), 1, r=3, lora_alpha=5, **ADAPTERS[kind][number])
    model.save_pretrained(tmp_path / "adapter")
    wide(model)
    plain, loaded = ours(kind, base), ours(kind, base)
    ng.load_lora(loaded, tmp_path / "adapter")
    assert_near(logits(loaded, kind), logits(model, kind))
    assert_near(logits(lora.merge(loaded), kind), logits(model.merge_and_unload(), kind))
    assert np.abs(logits(loaded, kind) - logits(plain, kind)).max() > 0.01


@each_adapter
def test_peft_loads_an_adapter_of_ours_with_its_logits(kind: str, number: int, tmp_path: Path) -> None:
    from peft import PeftModel

    base = saved(kind, tmp_path)
    model = lora.add(ours(kind, base), rank=3, alpha=5, targets=[None, ["qkv"]][number])
    if "modules_to_save" in ADAPTERS[kind][number]:
        model.model.pooler.unfreeze()
    rng = np.random.default_rng(0)
    for parameter in model.trainable_parameters():
        parameter.data = rng.standard_normal(parameter.shape).astype(np.float32).astype(np.float64)
    ng.save_lora(model, tmp_path / "adapter", base=str(base))
    loaded = wide(PeftModel.from_pretrained(theirs(kind, base), tmp_path / "adapter")).eval()
    assert_near(logits(model, kind), logits(loaded, kind))


def test_the_gradients_of_the_adapters_are_those_of_peft(tmp_path: Path) -> None:
    import torch
    from make_peft import with_adapters

    base, targets = saved("GPT-2", tmp_path), np.roll(IDS, -1, axis=1)
    model = with_adapters(theirs("GPT-2", base), 1, r=3, lora_alpha=5, target_modules=["c_attn", "c_fc"])
    model.save_pretrained(tmp_path / "adapter")
    wide(model)
    loss = torch.nn.functional.cross_entropy(logits(model, "GPT-2").flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    loaded: Any = ng.load_lora(ours("GPT-2", base), tmp_path / "adapter")
    loaded.loss(IDS, targets).backward()
    for layer in range(2):
        adapter = loaded.blocks[layer].attention.qkv.adapter
        expected = model.base_model.model.transformer.h[layer].attn.c_attn
        assert_near(adapter.A.grad.T, expected.lora_A.default.weight.grad)
        assert_near(adapter.B.grad.T, expected.lora_B.default.weight.grad)
