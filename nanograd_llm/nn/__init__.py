"""Layers. Read `module`, `layers`, `attention` (a lesson in steps), then `block`; `lora` for fine-tuning."""

from typing import TYPE_CHECKING

from nanograd_llm.backend.lazy import absent
from nanograd_llm.nn import lora
from nanograd_llm.nn.attention import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadList,
    SelfAttention,
    SimplifiedSelfAttention,
)
from nanograd_llm.nn.block import Block
from nanograd_llm.nn.cache import KeyValueCache
from nanograd_llm.nn.layers import MLP, Dropout, Embedding, LayerNorm, Linear, RMSNorm, Sequential
from nanograd_llm.nn.module import Module
from nanograd_llm.nn.recompute import recompute

__all__ = [
    "MLP",
    "Block",
    "CausalAttention",
    "Dropout",
    "Embedding",
    "KeyValueCache",
    "LayerNorm",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "MultiHeadList",
    "RMSNorm",
    "SelfAttention",
    "Sequential",
    "SimplifiedSelfAttention",
    "lora",
    "recompute",
]

_INSTEAD = {  # PyTorch's name -> what to use
    **{"Parameter": "ng.Parameter", "ReLU": "ng.ops.relu in forward", "GELU": "ng.ops.gelu in forward"},
    **{"Tanh": "ng.ops.tanh in forward", "Softmax": "ng.ops.softmax in forward", "functional": "ng.ops"},
    **{"CrossEntropyLoss": "ng.ops.cross_entropy", "MSELoss": "ng.ops.mse", "ModuleList": "a list of modules"},
    **{"MultiheadAttention": "ng.nn.MultiHeadAttention"},
}

if not TYPE_CHECKING:  # type checkers would think that every name is here

    def __getattr__(name: str) -> None:
        raise absent(f"module {__name__!r}", name, _INSTEAD)
