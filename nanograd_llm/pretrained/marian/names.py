"""The sizes in the config.json of a MarianMTModel of transformers, and the names of its parameters.

Marian's models are post-norm, with one table for source, target and head; the sinusoids, in halves, are not stored.
"""

from __future__ import annotations

from typing import Any

from nanograd_llm.errors import ConfigError
from nanograd_llm.models.encoder_decoder import EncoderDecoderConfig
from nanograd_llm.pretrained.config_json import ConfigJSON
from nanograd_llm.pretrained.layout import Layout

HUGGING_FACE = ConfigJSON(
    EncoderDecoderConfig,
    {
        "vocab_size": 58101,
        "max_position_embeddings": 1024,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "encoder_attention_heads": 16,
        "d_model": 1024,
        "encoder_ffn_dim": 4096,
        "activation_function": "gelu",
        "scale_embedding": False,
        "pad_token_id": 58100,
        "decoder_start_token_id": 58100,
        "eos_token_id": 0,
    },
    renamed={
        "max_position_embeddings": "context_length",
        "encoder_layers": "n_layer",
        "decoder_layers": "n_decoder_layer",
        "encoder_attention_heads": "n_head",
        "d_model": "n_embd",
        "encoder_ffn_dim": "n_inner",
        "activation_function": "activation",
        "pad_token_id": "pad_id",
        "decoder_start_token_id": "start_id",
        "eos_token_id": "end_id",
    },
    activation="activation_function",
    dropouts=("dropout",),
    only={
        "model_type": ("marian",),
        "share_encoder_decoder_embeddings": (True, None),
        "tie_word_embeddings": (True, None),
        "quantization_config": (None,),
    },
)
SAME = {"decoder_attention_heads": "encoder_attention_heads", "decoder_ffn_dim": "encoder_ffn_dim"}  # must be equal
SAME["decoder_vocab_size"] = "vocab_size"
FIXED: dict[str, Any] = {"norm_first": False, "positions": "sinusoidal_halves", "tie_word_embeddings": True}
FIXED["layer_norm_epsilon"] = 1e-5

BIAS = "final_logits_bias"  # (1, V) in the file
# Copies of what the model has once or computes, in files of older versions.
COPIES = ("lm_head.weight", *(f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")))
COPIES += tuple(f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder"))

NAMES: dict[str, str | tuple[str, ...]] = {"source_table": "model.shared.weight", "head_bias": BIAS}
for _kind in ("weight", "bias"):
    for _side in ("encoder", "decoder"):
        _here, _there = f"{_side}.{{layer}}.", f"model.{_side}.layers.{{layer}}."
        _parts = {"attention.out": "self_attn.out_proj", "ln_1": "self_attn_layer_norm", "ln_2": "final_layer_norm"}
        _parts |= {"mlp.up": "fc1", "mlp.down": "fc2"}
        if _side == "decoder":
            _parts |= {"cross_attention.q": "encoder_attn.q_proj", "cross_attention.out": "encoder_attn.out_proj"}
            _parts["ln_cross"] = "encoder_attn_layer_norm"
            NAMES[f"{_here}cross_attention.kv.{_kind}"] = tuple(f"{_there}encoder_attn.{x}_proj.{_kind}" for x in "kv")
        NAMES |= {f"{_here}{ours}.{_kind}": f"{_there}{theirs}.{_kind}" for ours, theirs in _parts.items()}
        NAMES[f"{_here}attention.qkv.{_kind}"] = tuple(f"{_there}self_attn.{x}_proj.{_kind}" for x in "qkv")
LAYOUT = Layout(
    "transformers", NAMES, "out, in", tuple(f"{name}.weight" for name in ("qkv", ".q", "kv", "out", "up", "down"))
)


def to_hugging_face(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The content of a `config.json`. Raises ConfigError for a model that is not of Marian's kind."""
    c = config
    needed = {name: value for name, value in FIXED.items() if getattr(c, name) != value}
    wrong = [f"{name} is {getattr(c, name)}, not {value}" for name, value in needed.items()]
    wrong += ["source and target have two vocabularies"] if c.source_vocab_size else []
    if wrong:
        options = [
            f"--no-{name.replace('_', '-')}" if value is False else f"--{name.replace('_', '-')} {value}"
            for name, value in needed.items()
        ]
        remedy = f"; train one with {' '.join(options)}" if options else ""
        raise ConfigError(f"transformers' MarianMTModel has no such model: {', '.join(wrong)}{remedy}")
    depths = {"n_inner": c.n_inner or 4 * c.n_embd, "n_decoder_layer": c.n_decoder_layer or c.n_layer}
    settings: dict[str, Any] = {"model_type": "marian", "architectures": ["MarianMTModel"], **HUGGING_FACE.write(c)}
    settings |= {"encoder_ffn_dim": depths["n_inner"], "decoder_layers": depths["n_decoder_layer"]}
    settings |= {key: settings[other] for key, other in SAME.items()}
    settings |= {"is_encoder_decoder": True, "forced_eos_token_id": c.end_id}
    return settings
