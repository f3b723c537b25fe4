"""The sizes of a pretrained BERT in its config.json, with the defaults of transformers' BertConfig."""

from __future__ import annotations

from typing import Any

from nanograd_llm.errors import ConfigError
from nanograd_llm.models.bert import BERTConfig
from nanograd_llm.pretrained.config_json import ConfigJSON

HUGGING_FACE = ConfigJSON(
    BERTConfig,
    {
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    },
    renamed={
        "max_position_embeddings": "context_length",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "layer_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation",
    },
    activation="hidden_act",
    dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    only={
        "model_type": ("bert", None),
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False, None),
        "add_cross_attention": (False, None),
        "is_encoder_decoder": (False, None),
        "tie_word_embeddings": (True, None),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
    },
)


def to_hugging_face(config: BERTConfig) -> dict[str, Any]:
    """The content of a `config.json`. Raises ConfigError for a config that BERT does not have."""
    if config.norm_first:
        raise ConfigError("transformers has no BERT with norm_first=True; only a model without it can be written")
    architecture = "BertForMaskedLM" if config.masked_word_head else "BertModel"
    fields = HUGGING_FACE.write(config) | {"intermediate_size": config.n_inner or 4 * config.n_embd}
    return {"model_type": "bert", "architectures": [architecture], **fields}
