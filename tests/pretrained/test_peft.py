"""Adapters in PEFT's form: those that PEFT wrote give its logits, ours come back, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.errors import BadFileError, ConfigError, StorageError
from nanograd_llm.files.safetensors import read_safetensors, write_safetensors
from nanograd_llm.models import BERT, BERTConfig, Classifier, EncoderDecoder, EncoderDecoderConfig
from nanograd_llm.nn import lora

FIXTURES = Path(__file__).parents[1] / "fixtures"
BASES = {"gpt2": "safetensors_float32", "bert": "bert_head"}
SIZES: Any = {"vocab_size": 11, "context_length": 6, "n_layer": 2, "n_head": 2, "n_embd": 8}
IDS = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
BERTS = BERTConfig(**SIZES, pooler=True, masked_word_head=False)
MARIAN: Any = {"norm_first": False, "positions": "sinusoidal_halves"}
MODELS = {
    "GPT": lambda: (ng.GPT(ng.GPTConfig(**SIZES)), (IDS,)),
    "BERT": lambda: (BERT(BERTConfig(**SIZES)), (IDS,)),
    "EncoderDecoder": lambda: (EncoderDecoder(EncoderDecoderConfig(**SIZES, **MARIAN)), (IDS, IDS)),
    "Classifier": lambda: (Classifier.on(BERT(BERTS), 3, pooling="pooled"), (IDS,)),
}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def base(kind: str) -> Any:
    return ng.open_model(FIXTURES / BASES[kind]).model()


def trained(model: Any, rng: np.random.Generator, **settings: Any) -> Any:
    """The model with adapters, and what else is trained, as if they had learned something."""
    for parameter in lora.add(model, **settings).trainable_parameters():
        parameter.data = rng.standard_normal(parameter.shape).astype(parameter.dtype)
    return model


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A copy of the adapter that PEFT wrote for the GPT-2."""
    return shutil.copytree(FIXTURES / "peft_gpt2", tmp_path / "adapter")


def change(folder: Path, arrays: Any = None, **settings: Any) -> None:
    """Change settings of an adapter; arrays: a function of them that returns others."""
    table = json.loads((folder / CONFIG).read_text("utf-8"))
    (folder / CONFIG).write_text(json.dumps(table | settings), "utf-8")
    if arrays is not None:
        kept = {name: x.copy() for name, x in read_safetensors(folder / WEIGHTS).items()}
        write_safetensors(folder / WEIGHTS, arrays(kept), {"format": "pt"})


@pytest.mark.parametrize("kind", BASES)
def test_an_adapter_that_peft_wrote_gives_the_logits_of_peft(kind: str) -> None:
    model, expected = base(kind), np.load(FIXTURES / f"peft_{kind}" / "expected.npz")
    before = model(expected["ids"]).data
    loaded = ng.load_lora(model, FIXTURES / f"peft_{kind}")(expected["ids"]).data[..., :16]
    assert np.abs(loaded - expected["logits"]).max() < 3e-6 * np.abs(expected["logits"]).max()
    assert np.abs(loaded - before[..., :16]).max() > 0.1
    with lora.off(model):
        assert np.array_equal(model(expected["ids"]).data, before)
    assert all(parameter.requires_grad == (".adapter." in name) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("make", MODELS.values(), ids=[*MODELS])
@pytest.mark.parametrize("targets", [None, ["mlp"]])
def test_an_adapter_that_is_saved_and_loaded_is_the_same_bit_for_bit(
    make: Any, targets: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    model, inputs = make()
    trained(model, rng, rank=3, alpha=5, targets=targets)
    ng.save_lora(model, tmp_path / "adapter")
    other, _ = make()
    assert np.array_equal(ng.load_lora(other, tmp_path / "adapter")(*inputs).data, model(*inputs).data)
    assert [*lora.adapted(other)] == [*lora.adapted(model)]
    assert {linear.adapter.A.shape[1] for linear in lora.adapted(other).values()} == {3}


@pytest.mark.parametrize("kind", BASES)
def test_an_adapter_of_peft_is_written_again_with_the_same_result(kind: str, tmp_path: Path) -> None:
    model, ids = ng.load_lora(base(kind), FIXTURES / f"peft_{kind}"), IDS
    ng.save_lora(model, tmp_path / "again", base="somewhere/base")
    assert np.allclose(ng.load_lora(base(kind), tmp_path / "again")(ids).data, model(ids).data, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "again" / CONFIG).read_text("utf-8"))["base_model_name_or_path"] == "somewhere/base"


def test_targets_are_ends_of_names_where_these_name_nothing_else(rng: np.random.Generator, tmp_path: Path) -> None:
    for number, (targets, expected) in enumerate(
        [(None, ["c_attn", "c_fc", "c_proj"]), ("qkv", ["c_attn"]), ("blocks.1.mlp.up", ["transformer.h.1.mlp.c_fc"])]
    ):
        ng.save_lora(trained(MODELS["GPT"]()[0], rng, targets=targets), tmp_path / str(number))
        assert json.loads((tmp_path / str(number) / CONFIG).read_text("utf-8"))["target_modules"] == expected


def test_an_adapter_for_another_model_is_refused_with_the_names_and_shapes(adapter: Path) -> None:
    with pytest.raises(
        BadFileError, match=r"does not fit this GPT: 'h.0.attn.c_attn.lora_A.weight is \(2, 6\), expected"
    ) as found:
        ng.load_lora(MODELS["GPT"]()[0], adapter)
    assert "expected (2, 8)" in str(found.value) and "\n" not in str(found.value)
    with pytest.raises(
        BadFileError, match=r"does not fit this BERT: '.*h.0.attn.c_attn.lora_A.weight \(2, 6\) is extra"
    ):
        ng.load_lora(MODELS["BERT"]()[0], adapter)
    assert str(found.value).endswith("; give it to the model that it was trained on")
    with pytest.raises(BadFileError, match="holds an adapter of PEFT, which is no model; give it to its model with"):
        ng.open_model(adapter)


def without(end: str) -> Any:
    return lambda arrays: {name: x for name, x in arrays.items() if not name.endswith(end)}


def with_extra(name: str) -> Any:
    return lambda arrays: arrays | {f"base_model.model.{name}": np.ones(18, np.float32)}


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        (without("h.0.mlp.c_proj.lora_B.weight"), {}, r"h.0.mlp.c_proj.lora_B.weight is missing"),
        (with_extra("transformer.h.0.attn.c_attn.bias"), {}, r"h.0.attn.c_attn.bias \(18,\) is extra"),
        (with_extra("transformer.wte.lora_embedding_A"), {}, "wte.lora_embedding_A .* is extra"),
        (lambda arrays: {}, {}, "it has no adapters"),
        (lambda arrays: {name: x * np.nan for name, x in arrays.items()}, {}, "NaN or infinity in h.0"),
        (None, {"bias": "all"}, "bias is 'all', which is not supported"),
        (None, {"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]: layers that were trained whole"),
        (None, {"use_dora": True}, "use_dora is True, which is not supported"),
        (None, {"invented": 3}, "invented is 3, which is not supported"),
        (None, {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which is not supported"),
        (None, {"peft_type": "IA3"}, "peft_type is 'IA3', which is not supported"),
        (None, {"alpha_pattern": {".*c_attn": 3}}, "alpha_pattern is .* only names and their ends"),
        (None, {"rank_pattern": [3]}, "rank_pattern is .* only names and their ends"),
        (None, {"peft_type": None}, "peft_type is None, which is not supported; expected 'LORA'"),
        (None, {"r": 2**30}, r"is \(2, 6\), expected \(1073741824, 6\)"),
        (None, {"r": 4}, r"is \(2, 6\), expected \(4, 6\)"),
        (None, {"r": "2"}, "rank must be an integer"),
        (None, {"lora_alpha": None}, "alpha must be a finite number"),
        (None, {"lora_dropout": 2}, "dropout must be a finite number"),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(
    adapter: Path, arrays: Any, settings: Any, message: str
) -> None:
    change(adapter, arrays, **settings)
    model = base("gpt2")
    with pytest.raises(BadFileError, match=message):
        ng.load_lora(model, adapter)
    assert not lora.adapted(model) and all(parameter.requires_grad for parameter in model.parameters())


def test_a_folder_without_an_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    (adapter / CONFIG).write_text("{}", "utf-8")
    with pytest.raises(BadFileError, match="peft_type is None"):
        ng.load_lora(base("gpt2"), adapter)
    with pytest.raises(StorageError, match="adapter_config.json: no such file"):
        ng.load_lora(base("gpt2"), tmp_path)


def test_an_adapter_of_the_model_without_its_head_is_loaded_as_well(adapter: Path) -> None:
    change(adapter, lambda arrays: {name.replace("transformer.", ""): x for name, x in arrays.items()})
    expected = np.load(FIXTURES / "peft_gpt2" / "expected.npz")
    loaded = ng.load_lora(base("gpt2"), adapter)(expected["ids"]).data[..., :16]
    assert np.allclose(loaded, expected["logits"], rtol=0, atol=1e-5)


def test_an_adapter_that_is_loaded_into_a_model_in_evaluation_mode_drops_nothing(adapter: Path) -> None:
    change(adapter, lora_dropout=0.5)
    expected = np.load(FIXTURES / "peft_gpt2" / "expected.npz")
    model = ng.load_lora(base("gpt2"), adapter)
    assert np.allclose(model(expected["ids"]).data[..., :16], expected["logits"], rtol=0, atol=1e-5)
    assert not np.allclose(model.train()(expected["ids"]).data[..., :16], expected["logits"], rtol=0, atol=1e-5)


def test_a_model_with_adapters_takes_no_others(adapter: Path) -> None:
    with pytest.raises(ConfigError, match="has adapters already"):
        ng.load_lora(ng.load_lora(base("gpt2"), adapter), adapter)


def test_what_cannot_be_written_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this GPT has no adapters; nn.lora.add"):
        ng.save_lora(MODELS["GPT"]()[0], tmp_path)
    with pytest.raises(ConfigError, match="got a Classifier on a GPT"):
        ng.save_lora(lora.add(Classifier.on(MODELS["GPT"]()[0], 2)), tmp_path)
    with pytest.raises(ConfigError, match="got a Linear"):
        ng.save_lora(lora.add(ng.nn.Linear(2, 2)), tmp_path)
    with pytest.raises(ConfigError, match="got a Classifier on a BERT with the pooling mean"):
        ng.save_lora(lora.add(Classifier.on(MODELS["BERT"]()[0], 2)), tmp_path)
    with pytest.raises(ConfigError, match="no BERT with norm_first=True"):
        ng.save_lora(lora.add(BERT(BERTConfig(**SIZES, norm_first=True))), tmp_path)
    with pytest.raises(ConfigError, match="MarianMTModel has no such model: norm_first is True"):
        ng.save_lora(lora.add(EncoderDecoder(EncoderDecoderConfig(**SIZES))), tmp_path)
    beside = lora.add(MODELS["BERT"]()[0])
    beside.head.unfreeze()
    with pytest.raises(ConfigError, match="here also 'head', 'head.transform', 'head.norm'"):
        ng.save_lora(beside, tmp_path)
    assert not any(tmp_path.iterdir())
    model = trained(MODELS["GPT"]()[0], rng)
    ng.save_lora(model, tmp_path)
    with pytest.raises(StorageError, match="already holds adapter_config.json"):
        ng.save_lora(model, tmp_path)
    assert ng.save_lora(model, tmp_path, replace=True) == [tmp_path / CONFIG, tmp_path / WEIGHTS]
