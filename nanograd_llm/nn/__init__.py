"""Layers. Read `module`, `layers`, `attention` (a lesson in steps), then `block`."""

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
    "recompute",
]
