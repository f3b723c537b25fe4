"""`save_gpt2`: a model is read back with the same bits, in every form, and nothing is overwritten."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.errors import ConfigError, StorageError
from nanograd_llm.files.npz import read_npz
from nanograd_llm.files.safetensors import read_safetensors, write_safetensors
from nanograd_llm.pretrained import OpenedGPT2
from nanograd_llm.pretrained.gpt2.source import FILES
from nanograd_llm.pretrained.saving import FORMS
from nanograd_llm.text import BPETokenizer, ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
SIZES = dict(vocab_size=272, context_length=16, n_layer=2, n_head=2, n_embd=12)
VARIANT = dict(n_inner=20, layer_norm_epsilon=1e-3, activation="gelu_exact", tie_word_embeddings=False, dropout=0.1)
BPE = BPETokenizer.train("the thin theory, then the other " * 5, 270)
TEXT = "the theory then é 漢\n\n  the"


def random_model(dtype: str = "float32", **changes: Any) -> ng.GPT:
    model, rng = ng.GPT(ng.GPTConfig(**{**SIZES, **changes})).astype(dtype), np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * rng.standard_normal(parameter.shape)
    return model


def assert_same(found: ng.GPT, expected: ng.GPT) -> None:
    assert found.config == expected.config
    own = found.state_dict()
    assert own.keys() == expected.state_dict().keys()
    for name, array in expected.state_dict().items():
        assert own[name].dtype == array.dtype
        assert own[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_a_saved_model_is_read_back_with_the_same_bits(form: str, dtype: str, tmp_path: Path) -> None:
    model = random_model(dtype)
    ng.save_gpt2(model, tmp_path / "a" / "b", form=form)
    assert_same(ng.load_gpt2(tmp_path / "a" / "b", dtype=dtype), model)


@pytest.mark.parametrize("form", ["hf", "numpy"])
def test_a_saved_model_with_other_settings_is_read_back(form: str, tmp_path: Path) -> None:
    model = random_model(**VARIANT)
    ng.save_gpt2(model, tmp_path, form=form)
    assert_same(ng.load_gpt2(tmp_path), model)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "source", ["safetensors_float32", "bin_float32", "bin_sharded", "tensorflow", "nanogpt", "llmc/gpt2_tiny.bin"]
)
def test_a_model_read_from_any_form_is_written_with_the_same_bits(source: str, form: str, tmp_path: Path) -> None:
    model = ng.load_gpt2(FIXTURES / source)
    ng.save_gpt2(model, tmp_path, form=form)
    again = ng.load_gpt2(tmp_path)
    assert all(np.array_equal(again.state_dict()[name], x) for name, x in model.state_dict().items())


def test_replacing_the_file_that_a_model_is_mapped_from_does_not_change_the_model(tmp_path: Path) -> None:
    ng.save_gpt2(random_model(), tmp_path)
    mapped = ng.load_gpt2(tmp_path)
    before = {name: array.copy() for name, array in mapped.state_dict().items()}
    other = {name: array + 1 for name, array in read_safetensors(tmp_path / "model.safetensors").items()}
    write_safetensors(tmp_path / "model.safetensors", other, {"format": "pt"})
    assert all(np.array_equal(mapped.state_dict()[name], array) for name, array in before.items())
    assert np.array_equal(ng.load_gpt2(tmp_path).state_dict()["wte"], before["wte"] + 1)


def test_numpy_reads_the_numpy_form_under_hugging_faces_names(tmp_path: Path) -> None:
    model = random_model()
    ng.save_gpt2(model, tmp_path, form="numpy")
    with np.load(tmp_path / "model.npz") as arrays:
        assert np.array_equal(arrays["h.1.attn.c_attn.weight"], model.blocks[1].attention.qkv.weight.data)
        assert len(arrays.files) == len(model.state_dict())


def test_arrays_in_fortran_order_and_scalars_are_read_back_from_npz(tmp_path: Path) -> None:
    arrays = {"t": np.arange(6.0).reshape(2, 3).T, "s": np.float32(3), "i": np.arange(3)}
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    found = read_npz(tmp_path / "x.npz")
    assert all(np.array_equal(found[name], x) and found[name].shape == np.shape(x) for name, x in arrays.items())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokenizer", [BPE, ByteTokenizer(), GPT2Tokenizer.of(BPE)], ids=lambda t: t.kind)
def test_a_saved_tokenizer_is_read_back_with_the_same_ids(form: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ng.save_gpt2(random_model(), tmp_path, tokenizer, form=form)
    again = OpenedGPT2(tmp_path).tokenizer()
    ids = tokenizer.encode(TEXT)
    assert again.encode(TEXT).tolist() == ids.tolist()
    assert again.decode(ids) == TEXT
    assert again.end_of_text == tokenizer.end_of_text


def test_characters_are_kept_in_a_file_of_our_own(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.train("abc é漢")
    ng.save_gpt2(random_model(vocab_size=tokenizer.vocab_size), tmp_path, tokenizer)
    assert OpenedGPT2(tmp_path).tokenizer().encode("é漢 a").tolist() == tokenizer.encode("é漢 a").tolist()


@pytest.mark.parametrize(
    ("there", "tokenizer"),
    [
        ("nanograd_tokenizer.json", BPE),
        ("vocab.json", CharTokenizer("ab")),
        ("merges.txt", CharTokenizer("ab")),
        ("tokenizer.json", CharTokenizer("ab")),
        ("tokenizer.json", BPE),
        ("encoder.json", BPE),
        ("vocab.bpe", BPE),
        ("added_tokens.json", BPE),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_a_folder_with_a_tokenizer_of_another_form_is_refused_and_not_changed(
    there: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / there).write_text("{}", "utf-8")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StorageError, match=f"already holds {there}; choose another folder, or remove it first"):
        ng.save_gpt2(random_model(), tmp_path, tokenizer)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_config_says_where_a_text_ends(tmp_path: Path) -> None:
    ng.save_gpt2(random_model(), tmp_path, BPE)
    table = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert table["eos_token_id"] == BPE.end_of_text
    assert table["architectures"] == ["GPT2LMHeadModel"]


def test_a_tokenizer_larger_than_the_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the tokenizer has 270 tokens, the model 100"):
        ng.save_gpt2(random_model(vocab_size=100), tmp_path / "out", BPE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "held", [*FILES, "gpt2_124M.bin", "config.json", "hparams.json", "config.toml", "vocab.json", "tokenizer.json"]
)
def test_a_folder_that_holds_a_model_is_refused_and_not_changed(form: str, held: str, tmp_path: Path) -> None:
    (tmp_path / held).write_bytes(b"somebody's")
    with pytest.raises(StorageError, match=rf"already holds {re.escape(held)}; choose another folder"):
        ng.save_gpt2(random_model(), tmp_path, BPE, form=form)
    assert [path.name for path in tmp_path.iterdir()] == [held]
    assert (tmp_path / held).read_bytes() == b"somebody's"


@pytest.mark.parametrize("form", FORMS)
def test_a_model_does_not_overwrite_one_that_was_saved_before(form: str, tmp_path: Path) -> None:
    model = random_model()
    ng.save_gpt2(model, tmp_path, form=form)
    with pytest.raises(StorageError, match="already holds model"):
        ng.save_gpt2(random_model(n_layer=1), tmp_path, form=form)
    assert_same(ng.load_gpt2(tmp_path), model)


def test_a_model_is_saved_beside_other_files_and_beside_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"mine")
    BPE.save(tmp_path / "nanograd_tokenizer.json")
    ng.save_gpt2(random_model(vocab_size=270), tmp_path)
    assert OpenedGPT2(tmp_path).tokenizer().encode(TEXT).tolist() == BPE.encode(TEXT).tolist()
    assert (tmp_path / "README.md").read_bytes() == b"mine"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("written", range(4))
def test_a_disk_that_fills_up_leaves_no_part_of_a_model(
    form: str, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, write = iter(range(written)), os.write

    def full(file: int, data: bytes) -> int:
        if next(count, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"out/[\w.-]+: cannot write: .*nothing there was changed") as caught:
        ng.save_gpt2(random_model(), tmp_path / "out", BPE, form=form)
    assert ".tmp" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="form must be one of hf, numpy; got 'hff'; did you mean 'hf'"):
        ng.save_gpt2(random_model(), tmp_path, form="hff")


def test_a_folder_that_cannot_be_created_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot create the folder"):
        ng.save_gpt2(random_model(), tmp_path / "file" / "model")
