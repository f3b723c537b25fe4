"""A BERT of transformers is the same here: logits, loss, every gradient, every layer, in every form of file."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm import ops
from nanograd_llm.cli import main
from nanograd_llm.errors import BadFileError, ConfigError, StorageError
from nanograd_llm.files.npz import write_npz
from nanograd_llm.files.safetensors import read_safetensors, write_safetensors
from nanograd_llm.pretrained.bert.load import OpenedBERT
from nanograd_llm.pretrained.bert.names import LAYOUT
from nanograd_llm.text import WordPieceTokenizer, load_tokenizer
from nanograd_llm.text.wordpiece import SPECIAL

FIXTURES = Path(__file__).parents[1] / "fixtures"
HEAD, POOLER, OLD = (FIXTURES / f"bert_{kind}" for kind in ("head", "pooler", "old"))
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)
each_kind = pytest.mark.parametrize("folder", [HEAD, POOLER], ids=["head", "pooler"])


def load(folder: Path, dtype: str) -> tuple[ng.BERT, dict[str, np.ndarray]]:
    with np.load(folder / "expected.npz") as expected:
        return ng.load_bert(folder, dtype=dtype), dict(expected)


def assert_close(found: np.ndarray, expected: np.ndarray, dtype: str, largest: float | None = None) -> None:
    """Within the dtype's tolerance, as a share of the largest number expected."""
    assert found.shape == expected.shape and found.dtype == dtype
    largest = np.abs(expected).max() if largest is None else largest
    assert np.abs(found - expected).max() <= TOLERANCE[dtype] * largest


def loss_of(model: ng.BERT, e: dict[str, np.ndarray]) -> ng.Tensor:
    if "targets" in e:
        return model.loss(e["ids"], e["targets"], e["lengths"], e["types"])
    pooled = model.pooled(model.hidden(e["ids"], e["types"], lengths=e["lengths"]))
    return ops.mean(pooled * e["weights"].astype(pooled.dtype))


def changed(folder: Path, to: Path, change: Any = None, **settings: Any) -> Path:
    """A copy of a fixture with other settings, and with the arrays that `change` makes of its own."""
    shutil.copytree(folder, to)
    path = to / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **settings}), encoding="utf-8")
    if change is not None:
        write_safetensors(to / "model.safetensors", change(dict(read_safetensors(to / "model.safetensors"))), {})
    return to


@each_dtype
@each_kind
def test_results_and_loss_are_those_of_transformers(folder: Path, dtype: str) -> None:
    model, e = load(folder, dtype)
    if "logits" in e:
        assert_close(model(e["ids"], e["types"], lengths=e["lengths"]).data, e["logits"], dtype)
    else:
        hidden = model.hidden(e["ids"], e["types"], lengths=e["lengths"])
        assert_close(model.pooled(hidden).data, e["pooled"], dtype)
    assert_close(np.asarray(loss_of(model, e).data), e["loss"], dtype, largest=1.0)


@each_dtype
@each_kind
def test_every_gradient_is_that_of_transformers(folder: Path, dtype: str) -> None:
    model, e = load(folder, dtype)
    loss_of(model, e).backward()
    found: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        found |= LAYOUT.stored(name, parameter.grad)
    expected = {name.removeprefix("grad."): x for name, x in e.items() if name.startswith("grad.")}
    assert found.keys() == expected.keys()
    largest = max(np.abs(x).max() for x in expected.values())
    for name, gradient in found.items():
        assert_close(gradient, expected[name], dtype, largest)


@each_dtype
def test_hidden_states_and_attention_maps_are_those_of_transformers_layer_by_layer(dtype: str) -> None:
    model, e = load(HEAD, dtype)
    look = model.look(e["ids"], e["types"], lengths=e["lengths"])
    assert_close(look.logits, e["logits"], dtype)
    for layer, hidden in enumerate(look.hidden_states):
        assert_close(hidden, e[f"hidden.{layer}"], dtype)
    for layer, attention in enumerate(look.attention_maps):
        assert_close(attention, e[f"attention.{layer}"], dtype)
    assert len(look.hidden_states) == 3 and len(look.attention_maps) == 2


def test_the_parts_of_a_model_are_those_of_its_file() -> None:
    head, pooler = ng.load_bert(HEAD), ng.load_bert(POOLER)
    assert head.head is not None and head.pooler is None
    assert pooler.head is None and pooler.pooler is not None
    assert not head.training


def test_the_names_and_the_file_of_2019_give_the_same_model() -> None:
    with pytest.warns(UserWarning, match="left out.*cls.seq_relationship.weight"):
        old = ng.load_bert(OLD)
    for name, array in ng.load_bert(HEAD, dtype="float32").state_dict().items():
        assert old.state_dict()[name].tobytes() == array.tobytes(), name


def without_prefix(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("bert."): x for name, x in arrays.items()}


def wrapped(arrays: dict[str, Any]) -> dict[str, Any]:
    return {f"module._orig_mod.{name}": x for name, x in arrays.items()}


def with_decoder(arrays: dict[str, Any]) -> dict[str, Any]:
    """As PyTorch saves a head: with the tied table and bias under a second name, here as the only one."""
    table, bias = arrays.pop("bert.embeddings.word_embeddings.weight"), arrays.pop("cls.predictions.bias")
    return {**arrays, "cls.predictions.decoder.weight": table, "cls.predictions.decoder.bias": bias}


@pytest.mark.parametrize("change", [without_prefix, wrapped, with_decoder])
def test_other_names_give_the_same_model(change: Any, tmp_path: Path) -> None:
    found = ng.load_bert(changed(HEAD, tmp_path / "model", change), dtype="float64")
    for name, array in ng.load_bert(HEAD, dtype="float64").state_dict().items():
        assert found.state_dict()[name].tobytes() == array.tobytes(), name


def test_a_head_that_is_another_table_than_the_words_is_told(tmp_path: Path) -> None:
    def change(arrays: dict[str, Any]) -> dict[str, Any]:
        return arrays | {"cls.predictions.decoder.weight": arrays["bert.embeddings.word_embeddings.weight"] + 1}

    with pytest.warns(UserWarning, match="decoder.weight differs from embeddings.word_embeddings.weight"):
        ng.load_bert(changed(HEAD, tmp_path / "model", change))


def test_weights_that_are_wanted_as_they_are_stored_are_not_copied() -> None:
    model = ng.load_bert(HEAD, dtype="float64")
    assert not model.wte.data.flags.writeable and not model.blocks[0].mlp.up.weight.data.flags.writeable
    assert model.blocks[0].mlp.up.weight.data.flags.f_contiguous


def test_all_that_does_not_fit_is_listed_by_the_names_of_the_file(tmp_path: Path) -> None:
    def change(arrays: dict[str, Any]) -> dict[str, Any]:
        del arrays["bert.encoder.layer.1.attention.self.key.bias"], arrays["cls.predictions.bias"]
        arrays["bert.encoder.layer.0.attention.self.query.weight"] = np.zeros((6, 5))
        return arrays | {"bert.encoder.layer.2.output.dense.bias": np.zeros(6)}

    with pytest.raises(BadFileError) as caught:
        ng.load_bert(changed(HEAD, tmp_path / "model", change))
    for line in (
        "missing: encoder.layer.1.attention.self.key.bias",
        "missing: cls.predictions.bias",
        "extra: encoder.layer.2.output.dense.bias, (6,) float64",
        "misfit: encoder.layer.0.attention.self.query.weight is (6, 5) float64, expected (6, 6) of floats",
    ):
        assert line in str(caught.value)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    def change(arrays: dict[str, Any]) -> dict[str, Any]:
        return arrays | {"embeddings.LayerNorm.gamma": arrays["bert.embeddings.LayerNorm.weight"]}

    with pytest.raises(BadFileError, match="duplicate weight 'embeddings.LayerNorm.weight'"):
        ng.load_bert(changed(HEAD, tmp_path / "model", change))


def test_weights_that_are_not_finite_are_told_by_name_or_refused(tmp_path: Path) -> None:
    def change(arrays: dict[str, Any]) -> dict[str, Any]:
        arrays["bert.encoder.layer.1.attention.self.key.bias"] = np.full(6, np.nan)
        return arrays

    folder = changed(HEAD, tmp_path / "model", change)
    with pytest.warns(UserWarning, match="NaN or infinity in encoder.layer.1.attention.self.key.bias$"):
        ng.load_bert(folder)
    with pytest.raises(BadFileError, match="NaN or infinity in encoder.layer.1.attention.self.key.bias; download"):
        ng.load_bert(folder, strict=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'.*expected 'bert'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_act": "tanh"}, "hidden_act is 'tanh', which is not supported"),
        ({"hidden_size": 7}, "hidden_size must be a multiple of n_head"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer of at least 1; got 0"),
        ({"type_vocab_size": 0}, "type_vocab_size must be an integer of at least 1; got 0"),
    ],
    ids=str,
)
def test_a_setting_that_is_wrong_or_not_supported_is_refused_by_name(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadFileError, match=f"config.json: .*{message}"):
        ng.load_bert(changed(HEAD, tmp_path / "model", **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"vocab_size": 2**31 - 1},
        {"num_hidden_layers": 10**6},
        {"hidden_size": 2**30, "intermediate_size": 2**30},
        {"max_position_embeddings": 2**31 - 1},
    ],
    ids=str,
)
def test_sizes_that_the_file_cannot_have_take_no_memory(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="its sizes need|misfit: embeddings.position_embeddings.weight"):
        ng.load_bert(changed(HEAD, tmp_path / "model", **settings))


def test_a_gpt2_is_not_a_bert_and_a_bert_is_not_a_gpt2() -> None:
    with pytest.raises(BadFileError, match="model_type is 'gpt2'.*expected 'bert'"):
        ng.load_bert(FIXTURES / "safetensors_float32")
    with pytest.raises(BadFileError, match="model_type is 'bert'.*expected 'gpt2'"):
        ng.load_gpt2(HEAD)
    with pytest.raises(BadFileError, match="has the form nanogpt, in which there is no BERT"):
        ng.load_bert(FIXTURES / "nanogpt")


@pytest.mark.parametrize("source", [HEAD, POOLER / "model.safetensors", OLD], ids=["folder", "file", "2019"])
def test_open_model_opens_a_bert(source: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = ng.open_model(source)
        assert isinstance(opened, OpenedBERT) and opened.step is None
        model = opened.model()
    assert isinstance(model, ng.BERT) and model.config == opened.config and model.config.n_embd == 6
    with pytest.raises(BadFileError, match="has no tokenizer, such as vocab.txt"):
        opened.tokenizer()


@pytest.mark.parametrize("form", ["hf", "numpy"])
@each_kind
def test_what_save_bert_writes_is_read_back_bit_for_bit(folder: Path, form: str, tmp_path: Path) -> None:
    model = ng.load_bert(folder, dtype="float64")
    written = ng.save_bert(model, tmp_path / "model", form=form)
    assert {path.name for path in written} == {"config.json", "model.safetensors" if form == "hf" else "model.npz"}
    again = ng.load_bert(tmp_path / "model", dtype="float64")
    assert again.config == model.config
    for name, array in model.state_dict().items():
        assert again.state_dict()[name].tobytes() == array.tobytes(), name


@each_kind
def test_save_bert_writes_the_names_of_transformers(folder: Path, tmp_path: Path) -> None:
    ng.save_bert(ng.load_bert(folder, dtype="float64"), tmp_path / "model")
    found, expected = (read_safetensors(place / "model.safetensors") for place in (tmp_path / "model", folder))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    settings, theirs = (
        json.loads((place / "config.json").read_text("utf-8")) for place in (tmp_path / "model", folder)
    )
    assert {key: theirs[key] for key in settings} == settings


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    sizes: Any = {"vocab_size": 5, "context_length": 4, "n_layer": 1, "n_head": 1, "n_embd": 2}
    with pytest.raises(ConfigError, match="no BERT with norm_first=True"):
        ng.save_bert(ng.BERT(ng.BERTConfig(**sizes, norm_first=True)), tmp_path / "a")
    ng.save_bert(ng.BERT(ng.BERTConfig(**sizes)), tmp_path / "a")
    with pytest.raises(StorageError, match="already holds model.safetensors"):
        ng.save_bert(ng.BERT(ng.BERTConfig(**sizes)), tmp_path / "a")


def with_classifier(arrays: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    prefixed = {f"bert.{name}": x for name, x in arrays.items()}
    return prefixed | {"classifier.weight": rng.standard_normal((4, 6)), "classifier.bias": rng.standard_normal(4)}


def test_a_table_that_is_padded_opens_with_a_tokenizer_that_is_padded_too(tmp_path: Path) -> None:
    tokenizer = WordPieceTokenizer([*SPECIAL, "the", "cat"])
    sizes: Any = {"vocab_size": 16, "context_length": 8, "n_layer": 1, "n_head": 1, "n_embd": 4}
    ng.save_bert(ng.BERT(ng.BERTConfig(**sizes)), tmp_path / "model", tokenizer)
    opened = ng.open_model(tmp_path / "model")
    found = opened.tokenizer()
    assert (found.vocab_size, found.known, found.decode([5, 15])) == (16, 7, "the")
    found.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab_size == 16
    (guesses,) = ng.inference.fill(opened.model(), found, "the [MASK]", top=99)
    assert len(guesses) == 7


def test_a_classifier_is_the_affine_map_of_the_pooled_vector(tmp_path: Path) -> None:
    opened = OpenedBERT(changed(POOLER, tmp_path / "model", with_classifier))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = opened.classifier(dtype="float64").eval()
    e = load(POOLER, "float64")[1]
    arrays = read_safetensors(tmp_path / "model" / "model.safetensors")
    expected = e["pooled"] @ arrays["classifier.weight"].T + arrays["classifier.bias"]
    assert_close(model(e["ids"], e["lengths"], e["types"]).data, expected, "float64")
    with pytest.warns(UserWarning, match="left out.*'classifier.bias', 'classifier.weight'"):
        opened.model()


def test_a_classifier_that_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="has no classifier.weight"):
        OpenedBERT(POOLER).classifier()

    def change(arrays: dict[str, Any]) -> dict[str, Any]:
        return with_classifier(arrays) | {"classifier.weight": np.zeros((6, 4))}

    with pytest.raises(BadFileError, match=r"misfit: classifier.weight is \(6, 4\)"):
        OpenedBERT(changed(POOLER, tmp_path / "model", change)).classifier()


STEPS = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]


def sentence_folder(
    to: Path, steps: Any = STEPS, pooling: Any = "mean_tokens", longest: Any = 5, **others: Any
) -> Path:
    """A copy of bert_pooler with the files of sentence-transformers."""
    changed(POOLER, to)
    listed = [
        {"idx": i, "type": f"sentence_transformers.models.{kind}", "path": at} for i, (kind, at) in enumerate(steps)
    ]
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 6}
    modes |= {f"pooling_mode_{pooling}": True} if isinstance(pooling, str) else pooling
    (to / "1_Pooling").mkdir()
    for name, content in {
        "modules.json": listed,
        "1_Pooling/config.json": modes,
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
        "config_sentence_transformers.json": {"__version__": {"pytorch": "1.8.1"}},
        **others,
    }.items():
        (to / name).write_text(json.dumps(content), encoding="utf-8")
    return to


@pytest.mark.parametrize(("mode", "pooling"), [("mean_tokens", "mean"), ("cls_token", "first"), ("lasttoken", "last")])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_sentence_encoder_is_what_its_folder_says(mode: str, pooling: str, normalise: bool, tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", STEPS if normalise else STEPS[:2], mode)
    encoder = OpenedBERT(folder).sentence_encoder(dtype="float64")
    assert (encoder.pooling, encoder.normalise, encoder.max_length) == (pooling, normalise, 5)
    assert np.isclose((encoder.embed([[1, 2, 3]]) ** 2).sum(), 1) == normalise


@pytest.mark.parametrize("exists", [True, False])
def test_convert_keeps_the_files_of_sentence_transformers(exists: bool, tmp_path: Path, capsys: Any) -> None:
    source, to = sentence_folder(tmp_path / "source"), tmp_path / "to"
    if exists:
        to.mkdir()
    command = ["convert", str(source), "--to", "hf", "--out", str(to), "--no-with-tokenizer"]
    assert main(command) == 0
    assert "1_Pooling/config.json" in capsys.readouterr().out
    encoders = [OpenedBERT(folder).sentence_encoder() for folder in (source, to)]
    vectors = [encoder.embed([[1, 2, 3]]) for encoder in encoders]
    assert np.array_equal(*vectors) and encoders[0].max_length == encoders[1].max_length == 5
    assert main(command) == 4


def test_without_such_files_vectors_are_normalised_means() -> None:
    encoder = OpenedBERT(POOLER).sentence_encoder()
    assert (encoder.pooling, encoder.normalise, encoder.max_length) == ("mean", True, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": [*STEPS[:2], ("Dense", "2_Dense")]}, "modules.json: the steps are .*'Dense'"),
        ({"steps": [("Transformer", "0_Transformer"), *STEPS[1:]]}, "modules.json: the steps are"),
        ({"steps": [STEPS[0], ("Pooling", "../1_Pooling")]}, "no plain file name|not a plain file name"),
        ({"pooling": "max_tokens"}, r"1_Pooling/config.json: the pooling is \['max_tokens'\]"),
        ({"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}}, "the pooling is"),
        ({"pooling": {}}, r"the pooling is \[\]"),
        ({"longest": 0}, "sentence_bert_config.json: max_seq_length is 0"),
        ({"sentence_bert_config.json": {"do_lower_case": True}}, "do_lower_case is True"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "query"}}, "default_prompt_name is 'query'"),
        ({"modules.json": {"0": "Transformer"}}, "modules.json: expected a list of steps"),
        ({"modules.json": [[]]}, "modules.json: expected a list of steps"),
    ],
    ids=str,
)
def test_a_step_that_is_not_supported_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    opened = OpenedBERT(sentence_folder(tmp_path / "model", **changes))
    opened.model()  # the weights are what they are
    with pytest.raises(BadFileError, match=message):
        opened.sentence_encoder()


def test_a_text_longer_than_the_folder_says_is_refused(tmp_path: Path) -> None:
    encoder = OpenedBERT(sentence_folder(tmp_path / "model")).sentence_encoder()
    with pytest.raises(ng.NanogradError, match="a text may have 5 tokens; got 6"):
        encoder.embed([[1] * 6])


def test_a_file_of_numpy_names_the_same_arrays(tmp_path: Path) -> None:
    changed(HEAD, tmp_path / "model")
    write_npz(tmp_path / "model" / "model.npz", read_safetensors(HEAD / "model.safetensors"))
    (tmp_path / "model" / "model.safetensors").unlink()
    found = ng.load_bert(tmp_path / "model", dtype="float64")
    assert np.array_equal(found.wte.data, ng.load_bert(HEAD, dtype="float64").wte.data)
