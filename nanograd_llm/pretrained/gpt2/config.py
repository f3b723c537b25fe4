"""The sizes of a pretrained GPT-2, from the settings of each form of file.

A setting that changes the result, and that this GPT does not support, is refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from nanograd_llm.errors import BadFileError, ConfigError, NanogradError
from nanograd_llm.models.gpt import GPTConfig
from nanograd_llm.settings import check_keys, listed

# Hugging Face's names where they differ from GPTConfig's, and the defaults of transformers' GPT2Config. A setting in
# none of these tables does not change what transformers computes with a GPT-2.
SIZES = ("vocab_size", "context_length", "n_embd", "n_head", "n_layer")
RENAMED = {"n_positions": "context_length", "activation_function": "activation"}
DEFAULTS: dict[str, Any] = {
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
}
ALIASES = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
}
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact"}
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
ONLY: dict[str, tuple[Any, ...]] = {  # settings that change the result, with the values that are supported
    "model_type": ("gpt2", None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}


def from_hugging_face(table: Mapping[str, Any], where: str) -> GPTConfig:
    """The config of a `config.json`. Raises BadFileError with the key that is wrong or not supported."""
    for key, allowed in ONLY.items():
        if not any(type(table.get(key)) is type(value) and table.get(key) == value for value in allowed):
            raise BadFileError(
                f"{where}: {key} is {table[key]!r:.100}, which is not supported; expected {allowed[0]!r}"
            )
    named = dict(table)
    for alias, key in ALIASES.items():
        if alias in named:
            if named.get(key, named[alias]) != named[alias]:
                raise BadFileError(f"{where}: {alias} is {named[alias]!r:.50}, but {key} is {named[key]!r:.50}")
            named[key] = named[alias]
    found = {key: named.get(key, default) for key, default in DEFAULTS.items()}
    activation = found["activation_function"]
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise BadFileError(  # no near match is suggested: with another activation the model would load, and be wrong
            f"{where}: activation_function is {activation!r:.100}, which is not supported; expected one of "
            f"{', '.join(ACTIVATIONS)}, and it must be the one that the weights were trained with"
        )
    found["activation_function"] = ACTIVATIONS[activation]
    return _config(
        {RENAMED.get(key, key): value for key, value in found.items()} | _dropout(table, where), where, RENAMED
    )


def to_hugging_face(config: GPTConfig) -> dict[str, Any]:
    """The content of a `config.json` for this config."""
    fields = {key: getattr(config, RENAMED.get(key, key)) for key in DEFAULTS}
    fields |= dict.fromkeys(DROPOUTS, config.dropout)
    fields["activation_function"] = next(name for name, ours in ACTIVATIONS.items() if ours == config.activation)
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **fields}


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
    return _config(sizes | changes, where, dict(zip(keys, SIZES)))


def _config(fields: Mapping[str, Any], where: str, names: Mapping[str, str]) -> GPTConfig:
    """A config. An error uses the file's name of a field, from `names`: {the file's name: the name here}."""
    try:
        return GPTConfig(**fields)
    except NanogradError as error:
        field, _, fault = str(error).partition(" ")
        theirs = next((theirs for theirs, ours in names.items() if ours == field), field)
        raise BadFileError(f"{where}: {theirs} {fault}") from None


def _dropout(table: Mapping[str, Any], where: str) -> dict[str, float]:
    """The dropout rate, which matters only in training. GPT-2 has three; this GPT has one, so they must be equal."""
    rates = [table.get(key, 0.1) for key in DROPOUTS]
    if all(rate == rates[0] for rate in rates):
        return {"dropout": rates[0]}
    shown = ", ".join(f"{key}={rate!r:.30}" for key, rate in zip(DROPOUTS, rates))
    warnings.warn(
        f"{where}: {shown} differ; this GPT has one dropout rate, which is set to 0: it matters only in training",
        stacklevel=2,
    )
    return {"dropout": 0.0}
