"""Settings of pretrained models: each one that changes the result is applied, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from nanograd_llm.errors import BadFileError
from nanograd_llm.models import GPTConfig
from nanograd_llm.pretrained.gpt2.config import from_hugging_face, from_llmc, from_nanogpt, from_openai, to_hugging_face

SIZES = dict(vocab_size=11, context_length=7, n_layer=2, n_head=2, n_embd=4)


def test_missing_settings_have_the_defaults_of_transformers() -> None:
    assert from_hugging_face({}, "config.json") == GPTConfig.preset("gpt2", dropout=0.1)


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        ({"n_layer": 3}, "n_layer", 3),
        ({"n_head": 4}, "n_head", 4),
        ({"n_embd": 36}, "n_embd", 36),
        ({"n_positions": 9}, "context_length", 9),
        ({"vocab_size": 9}, "vocab_size", 9),
        ({"n_inner": 5}, "n_inner", 5),
        ({"layer_norm_epsilon": 0.5}, "layer_norm_epsilon", 0.5),
        ({"activation_function": "gelu"}, "activation", "gelu_exact"),
        ({"activation_function": "gelu_new"}, "activation", "gelu"),
        ({"activation_function": "gelu_pytorch_tanh"}, "activation", "gelu"),
        ({"scale_attn_weights": False}, "scale_attn_weights", False),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx", True),
        ({"tie_word_embeddings": False}, "tie_word_embeddings", False),
        ({"num_hidden_layers": 3}, "n_layer", 3),
        ({"hidden_size": 36, "n_embd": 36}, "n_embd", 36),
        ({"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0}, "dropout", 0),
        ({"n_ctx": 5, "summary_type": "last", "reorder_and_upcast_attn": True, "made_up": 3}, "context_length", 1024),
    ],
    ids=str,
)
def test_a_setting_is_applied(settings: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(from_hugging_face(settings, "config.json"), field) == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"activation_function": "tanh"},
            "activation_function is 'tanh', which is not supported; expected one of gelu_new",
        ),
        ({"activation_function": ["gelu"]}, "activation_function is"),
        ({"model_type": "llama"}, "model_type is 'llama'.*expected 'gpt2'"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"add_cross_attention": 0}, "add_cross_attention is 0"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_attention_heads": 6, "n_head": 12}, "num_attention_heads is 6, but n_head is 12"),
        ({"n_positions": 0}, "n_positions must be an integer of at least 1; got 0"),
        ({"n_head": 7}, "n_embd must be a multiple of n_head"),
        ({"n_layer": 1.0}, "n_layer must be an integer"),
        ({"scale_attn_weights": "yes"}, "scale_attn_weights must be True or False"),
    ],
    ids=str,
)
def test_a_setting_that_is_wrong_or_not_supported_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadFileError, match=f"config.json: .*{message}"):
        from_hugging_face(settings, "config.json")


@pytest.mark.parametrize("activation", ["tanh", "quick_gelu", "gelu_fast"])
def test_no_other_activation_is_suggested_because_it_would_change_the_logits(activation: str) -> None:
    with pytest.raises(BadFileError) as caught:
        from_hugging_face({"activation_function": activation}, "config.json")
    assert "did you mean" not in str(caught.value)


def test_three_dropout_rates_that_differ_give_a_warning_and_no_dropout() -> None:
    with pytest.warns(UserWarning, match="embd_pdrop=0.1, attn_pdrop=0.0, resid_pdrop=0.1 differ"):
        assert from_hugging_face({"attn_pdrop": 0.0}, "config.json").dropout == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_inner": 5, "layer_norm_epsilon": 0.5, "activation": "gelu_exact", "dropout": 0.25},
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
    ],
    ids=str,
)
def test_a_config_written_as_hugging_faces_settings_is_read_back(changes: dict[str, Any]) -> None:
    config = GPTConfig(**SIZES, **changes)
    assert from_hugging_face(to_hugging_face(config), "config.json") == config


def test_openais_settings_are_read() -> None:
    table = {"n_vocab": 11, "n_ctx": 7, "n_embd": 4, "n_head": 2, "n_layer": 2}
    assert from_openai(table, "hparams.json") == GPTConfig(**SIZES)
    with pytest.raises(BadFileError, match="hparams.json: unknown 'n_layers', did you mean 'n_layer'"):
        from_openai({**table, "n_layers": 3}, "hparams.json")
    with pytest.raises(BadFileError, match="hparams.json: has no n_head, no n_layer"):
        from_openai({"n_vocab": 11, "n_ctx": 7, "n_embd": 4}, "hparams.json")
    with pytest.raises(BadFileError, match="hparams.json: n_ctx must be an integer of at least 1; got -7"):
        from_openai({**table, "n_ctx": -7}, "hparams.json")


def test_nanogpts_settings_are_read_and_its_gelu_is_the_exact_one() -> None:
    table = dict(vocab_size=11, block_size=7, n_layer=2, n_head=2, n_embd=4, bias=False, dropout=0.2)
    assert from_nanogpt(table, "model_args") == (GPTConfig(**SIZES, activation="gelu_exact", dropout=0.2), False)
    with pytest.raises(BadFileError, match="model_args: bias is 'no'"):
        from_nanogpt({**table, "bias": "no"}, "model_args")
    with pytest.raises(BadFileError, match="model_args: block_size must be an integer"):
        from_nanogpt({**table, "block_size": 2.0}, "model_args")


def test_llmcs_header_is_read() -> None:
    header = dict(max_seq_len=7, vocab_size=11, num_layers=2, num_heads=2, channels=4, padded_vocab_size=128)
    assert from_llmc(header, "header") == GPTConfig(**SIZES)
