"""GPT's forward for one more token, in plain calls of NumPy or CuPy that write into arrays made once.

For a small model, calls cost more than arithmetic: here are as few calls as possible. The results are those of `nn`, to
rounding. Read `nn/block.py` first.

B sequences, C channels, H heads, D = C/H, n tokens so far, V vocabulary
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.modes import modes
from nanograd_llm.backend.arrays import beside, xp
from nanograd_llm.backend.kernels import GPTBlockStep, has_kernels
from nanograd_llm.errors import ShapeError
from nanograd_llm.models.gpt import GPT
from nanograd_llm.models.preference import PreferenceGPT
from nanograd_llm.nn import Block, LayerNorm, Linear, MultiHeadAttention
from nanograd_llm.nn.cache import KeyValueCache
from nanograd_llm.nn.layers import ACTIVATIONS
from nanograd_llm.ops.fused import gelu_into


def can_decode(model: GPT) -> bool:
    """Can `Decoder` compute this model? Its parts must be those that GPT makes, unchanged, and all of one dtype
    and device.

    In `checked()` mode the answer is no, since that looks at every op.
    """
    if type(model) not in (GPT, PreferenceGPT):  # which differ in their loss alone
        return False
    modules, plain = dict(model.named_modules()), dict(type(model)(model.config, seed=None).named_modules())
    arrays = [parameter.data for parameter in model.parameters()]
    return (
        [(name, type(module)) for name, module in modules.items()] == [(name, type(m)) for name, m in plain.items()]
        and all(block.norm_first and block.attention.causal for block in model.blocks)
        and not any(module.training for module in modules.values())
        and not any(hasattr(type(m), name) for m in modules.values() for name in vars(m).keys() - {"training"})
        and all(type(array) is type(arrays[0]) and array.dtype == arrays[0].dtype for array in arrays)
        and not modes().tracing_calls
    )


class Decoder:
    """Computes the next logits after one more token of each of B sequences, for a model that `can_decode`.

        caches = model.new_caches(B)
        model.next_logits(prompts, caches)
        logits = Decoder(model, caches)(tokens)  # tokens (B) ids -> (B, V), valid until the next call

    The caller checks that the ids are in the vocabulary. Raises ShapeError if the caches are full.
    """

    def __init__(self, model: GPT, caches: list[KeyValueCache]):
        rows, width = len(caches[0].keys), model.config.n_embd
        self.norm = _norm_step(model.ln_f, rows)
        self.caches = caches
        self.tokens, self.positions = model.wte.data, model.wpe.data
        self.head = model.head_table.data.T  # (C, V)
        self.stream = _empty((rows, width), self.tokens)
        self.logits = _empty((rows, model.config.vocab_size), self.tokens)
        step = GPUBlockStep if can_use_kernels(model, rows) else BlockStep
        self.blocks = [step(block, cache, self.stream) for block, cache in zip(model.blocks, caches)]

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        position, x = self.caches[0].length, self.stream
        if position >= len(self.positions):
            raise ShapeError(f"the caches are full, with {len(self.positions)} tokens; begin new ones")
        np.add(self.tokens[beside(tokens, x)], self.positions[position], out=x)  # (B, C)
        for block in self.blocks:
            block(x)
        return np.dot(self.norm(x), self.head, out=self.logits)  # (B, C)·(C, V) -> (B, V)


class LinearStep:
    def __init__(self, layer: Linear, rows: int):
        self.weight = layer.weight.data
        self.bias = None if layer.bias is None else layer.bias.data[None]  # (1, m), not broadcast for one row
        self.out = _empty((rows, self.weight.shape[1]), self.weight)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = np.dot(x, self.weight, out=self.out)
        return y if self.bias is None else np.add(y, self.bias, out=y)


class NormStep:
    def __init__(self, layer: LayerNorm, rows: int):
        self.weight, self.bias = layer.weight.data[None], layer.bias.data[None]
        width, arrays, dtype = self.weight.shape[1], xp(self.weight), self.weight.dtype
        self.eps = arrays.full((rows, 1), layer.eps, dtype)
        self.mean = arrays.full((width, 1), 1 / width, dtype)  # a row times this is the row's mean
        self.out, self.square = _empty((2, rows, width), self.weight)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = np.subtract(x, np.dot(x, self.mean), out=self.out)
        r = np.dot(np.multiply(y, y, out=self.square), self.mean)  # the variance, (B, 1)
        np.sqrt(np.add(r, self.eps, out=r), out=r)
        np.divide(y, r, out=y)
        np.multiply(y, self.weight, out=y)
        return np.add(y, self.bias, out=y)


class OneNormStep(NormStep):
    """For a single row on the CPU: its mean and variance are plain numbers, which takes half the time."""

    def __init__(self, layer: LayerNorm):
        super().__init__(layer, rows=1)
        self.row, self.mean_of_row, self.epsilon = self.out[0], self.mean[:, 0], layer.eps

    def __call__(self, x: np.ndarray) -> np.ndarray:
        row, y = x[0], self.row
        np.subtract(row, np.dot(row, self.mean_of_row), out=y)
        np.divide(y, math.sqrt(np.dot(y, y) / len(y) + self.epsilon), out=y)
        np.multiply(self.out, self.weight, out=self.out)
        return np.add(self.out, self.bias, out=self.out)


def _norm_step(layer: LayerNorm, rows: int) -> NormStep:
    return OneNormStep(layer) if rows == 1 and layer.weight.device == "cpu" else NormStep(layer, rows)


def _empty(shape: tuple[int, ...], like: Any) -> Any:
    return xp(like).empty(shape, like.dtype)


class AttentionStep:
    def __init__(self, layer: MultiHeadAttention, cache: KeyValueCache):
        rows, heads, _, size = cache.keys.shape
        self.cache = cache
        self.qkv, self.out = LinearStep(layer.qkv, rows), LinearStep(layer.out, rows)
        arrays = xp(cache.keys)
        self.largest = np.maximum.reduce if arrays is np else arrays.max
        self.scale = arrays.full((rows, heads, size, 1), 1 / layer.scale, self.qkv.out.dtype)
        q, k, v = self.qkv.out.reshape(rows, 3, heads, size).swapaxes(0, 1)  # views, (B, H, D) each
        self.query, self.key, self.value = q[..., None], k[:, :, None], v[:, :, None]
        self.mixed = _empty((rows, heads, 1, size), self.qkv.out)
        self.joined = self.mixed.reshape(rows, heads * size)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.qkv(x)  # into query, key and value
        np.multiply(self.query, self.scale, out=self.query)
        keys, values = self.cache.extend(self.key, self.value)
        p = np.matmul(keys, self.query)  # (B, H, n, D)·(B, H, D, 1) -> (B, H, n, 1)
        np.subtract(p, self.largest(p, axis=2, keepdims=True), out=p)
        np.exp(p, out=p)
        np.divide(p, np.add.reduce(p, axis=2, keepdims=True), out=p)
        np.matmul(p.swapaxes(2, 3), values, out=self.mixed)  # (B, H, 1, n)·(B, H, n, D) -> (B, H, 1, D)
        return self.out(self.joined)


class BlockStep:
    """Adds the output of a block to the residual stream, in place."""

    def __init__(self, block: Block, cache: KeyValueCache, stream: np.ndarray):
        rows = len(stream)
        self.ln_1, self.ln_2 = _norm_step(block.ln_1, rows), _norm_step(block.ln_2, rows)
        self.attention = AttentionStep(block.attention, cache)
        self.up, self.down = LinearStep(block.mlp.up, rows), LinearStep(block.mlp.down, rows)
        self.activation: Any = ACTIVATIONS[block.mlp.activation]
        self.active = np.empty_like(self.up.out)

    def __call__(self, x: np.ndarray) -> None:
        np.add(x, self.attention(self.ln_1(x)), out=x)
        wide = self.up(self.ln_2(x))
        if self.activation is ops.gelu:
            gelu_into(wide, self.active)
        else:
            self.active = self.activation(wide)
        np.add(x, self.down(self.active), out=x)


class GPUBlockStep:
    """The same in a few kernels, since on a GPU it is their number that takes the time."""

    def __init__(self, block: Block, cache: KeyValueCache, stream: np.ndarray):
        self.cache, a, mlp = cache, block.attention, block.mlp
        layers = (block.ln_1, a.qkv, a.out, block.ln_2, mlp.up, mlp.down)
        parts = [(layer.weight.data, None if layer.bias is None else layer.bias.data) for layer in layers]
        eps = (block.ln_1.eps, block.ln_2.eps)
        self.step = GPTBlockStep(parts, eps, float(a.scale), cache.keys, cache.values, stream)

    def __call__(self, x: np.ndarray) -> None:
        self.step(self.cache.claim(1))


FEW = 8  # sequences; with more, cuBLAS multiplies faster than the kernel for one token


def can_use_kernels(model: GPT, rows: int) -> bool:
    """Can `GPUBlockStep` compute the blocks of this model, for so many sequences?"""
    return rows <= FEW and has_kernels(model.wte.data) and model.config.activation == "gelu"
