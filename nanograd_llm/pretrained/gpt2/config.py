"""The sizes of a pretrained GPT-2, from the settings of each form of file.

A setting that changes the result, and that this GPT does not support, is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.models.gpt import GPTConfig
from nanograd_llm.pretrained.config_json import ConfigJSON, config_of
from nanograd_llm.settings import check_keys, listed

SIZES = ("vocab_size", "context_length", "n_embd", "n_head", "n_layer")
HUGGING_FACE = ConfigJSON(
    GPTConfig,
    {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
    },
    renamed={"n_positions": "context_length", "activation_function": "activation"},
    activation="activation_function",
    dropouts=("embd_pdrop", "attn_pdrop", "resid_pdrop"),
    only={
        "model_type": ("gpt2", None),
        "add_cross_attention": (False, None),
        "is_encoder_decoder": (False, None),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
    },
    aliases={
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    },
)


def from_hugging_face(table: Mapping[str, Any], where: str) -> GPTConfig:
    """The config of a `config.json`. Raises BadFileError with the key that is wrong or not supported."""
    return HUGGING_FACE.read(table, where)


def to_hugging_face(config: GPTConfig) -> dict[str, Any]:
    """The content of a `config.json` for this config."""
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **HUGGING_FACE.write(config)}


def from_openai(table: Mapping[str, Any], where: str) -> GPTConfig:
    """The config of OpenAI's `hparams.json`. Raises BadFileError with the key that is wrong."""
    return _renamed(table, ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"), where)


def from_nanogpt(table: Mapping[str, Any], where: str) -> tuple[GPTConfig, bool]:
    """The config of nanoGPT's `model_args`, and whether the model has biases. Raises BadFileError with the key.

    nanoGPT's MLP has PyTorch's nn.GELU(), which is the exact form. build-nanogpt's MLP has the tanh form, and biases;
    its `model_args` have no key `bias`.
    """
    nested = [key for key, value in table.items() if not isinstance(value, (bool, int, float, str, type(None)))]
    if nested:  # no error message could show such a value: lists that share lists can be longer than any memory
        raise BadFileError(f"{where}: {listed(nested)} must each be a number, a string or a bool")
    biases = table.get("bias", True)
    if not isinstance(biases, bool):
        raise BadFileError(f"{where}: bias is {biases!r:.50}; expected True or False")
    sizes = {key: value for key, value in table.items() if key not in ("bias", "dropout")}
    changes = {"activation": "gelu_exact" if "bias" in table else "gelu", "dropout": table.get("dropout", 0.0)}
    return _renamed(sizes, ("vocab_size", "block_size", "n_embd", "n_head", "n_layer"), where, **changes), biases


def from_llmc(header: Mapping[str, int], where: str) -> GPTConfig:
    """The config of llm.c's header. Raises BadFileError with the field that is wrong."""
    keys = ("vocab_size", "max_seq_len", "channels", "num_heads", "num_layers")
    return _renamed({key: header[key] for key in keys}, keys, where)


def _renamed(table: Mapping[str, Any], keys: tuple[str, ...], where: str, **changes: Any) -> GPTConfig:
    """A config whose `SIZES` have other names in the table: `keys`, in the same order."""
    try:
        check_keys(table, keys, where)
    except ConfigError as error:
        raise BadFileError(str(error)) from None
    missing = [key for key in keys if key not in table]
    if missing:
        raise BadFileError(f"{where}: has no {', no '.join(missing)}")
    sizes = {ours: table[theirs] for ours, theirs in zip(SIZES, keys)}
    return config_of(GPTConfig, sizes | changes, where, dict(zip(keys, SIZES)))
