"""GPT's forward for one more token, in plain calls of NumPy or CuPy that write into arrays made once.

For a small model, calls cost more than arithmetic: here are as few calls as possible. The results are those of `nn`, to
rounding. Read `nn/block.py` first.

B sequences, C channels, H heads, D = C/H, n tokens so far, V vocabulary
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.modes import modes
from nanograd_llm.backend.arrays import beside, xp
from nanograd_llm.backend.kernels import GPTBlockStep, has_kernels
from nanograd_llm.errors import ShapeError
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.nn import Block, LayerNorm, Linear, MultiHeadAttention
from nanograd_llm.nn.cache import KeyValueCache
from nanograd_llm.nn.layers import ACTIVATIONS
from nanograd_llm.ops.fused import FAR, GELU_CUBE, GELU_SLOPE


def can_decode(model: GPT) -> bool:
    """Can `Decoder` compute this model? Its parts must be those that GPT makes, unchanged, and all of one dtype
    and device.

    In `checked()` mode the answer is no, since that looks at every op.
    """
    from nanograd_llm.models.preference import PreferenceGPT

    if type(model) not in (GPT, PreferenceGPT):  # which differ in their loss alone
        return False
    modules = dict(model.named_modules())
    arrays = [parameter.data for parameter in model.parameters()]
    return (
        [(name, type(module)) for name, module in modules.items() if name] == _plain_modules(model.config)
        and all(block.norm_first and block.attention.causal for block in model.blocks)
        and not any(module.training for module in modules.values())
        and not any(hasattr(type(m), name) for m in modules.values() for name in vars(m).keys() - {"training"})
        and all(type(array) is type(arrays[0]) and array.dtype == arrays[0].dtype for array in arrays)
        and not modes().tracing_calls
    )


@functools.lru_cache(maxsize=8)
def _plain_modules(config: GPTConfig) -> list[tuple[str, type]]:
    """The name and class of each module in a fresh model."""
    return [(name, type(module)) for name, module in GPT(config, seed=None).named_modules() if name]


class Decoder:
    """Computes the next logits after one more token of each of B sequences, for a model that `can_decode`.

        caches = model.new_caches(B)
        model.next_logits(prompts, caches)
        logits = Decoder(model, caches)(tokens)  # tokens (B) ids -> (B, V), valid until the next call

    The caller checks that the ids are in the vocabulary. Raises ShapeError if the caches are full.
    """

    def __init__(self, model: GPT, caches: list[KeyValueCache]):
        rows = len(caches[0].keys)
        self.caches = caches
        self.tokens, self.positions = model.wte.data, model.wpe.data
        self.head = model.head_table.data.T  # (C, V)
        self.logits = _empty((rows, model.config.vocab_size), self.tokens)
        self.is_one = rows == 1 and model.wte.device == "cpu"  # then the arrays of each step have no axis B
        lead = () if self.is_one else (rows,)
        self.stream = _empty((*lead, model.config.n_embd), self.tokens)
        self.out = self.logits.reshape(*lead, -1)
        self.norm = _norm_step(model.ln_f, self.stream)
        step = GPUBlockStep if can_use_kernels(model) else BlockStep
        self.blocks = [step(block, cache, self.stream) for block, cache in zip(model.blocks, caches)]

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        position, x = self.caches[0].length, self.stream
        if position >= len(self.positions):
            raise ShapeError(f"the caches are full, with {len(self.positions)} tokens; begin new ones")
        ids = int(tokens[0]) if self.is_one else beside(tokens, x)
        np.add(self.tokens[ids], self.positions[position], out=x)  # (B, C)
        for block in self.blocks:
            block(x)
        np.dot(self.norm(x), self.head, out=self.out)  # (B, C)·(C, V) -> (B, V)
        return self.logits


class LinearStep:
    def __init__(self, layer: Linear, lead: tuple[int, ...]):
        self.weight = layer.weight.data
        self.bias = None if layer.bias is None else layer.bias.data
        self.out = _empty((*lead, self.weight.shape[1]), self.weight)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = x.dot(self.weight, out=self.out)
        return y if self.bias is None else np.add(y, self.bias, out=y)


class NormStep:
    def __init__(self, layer: LayerNorm, stream: np.ndarray):
        self.weight, self.bias = layer.weight.data, layer.bias.data
        (rows, width), arrays, dtype = stream.shape, xp(stream), stream.dtype
        self.eps = arrays.full((rows, 1), layer.eps, dtype)
        self.mean = arrays.full((width, 1), 1 / width, dtype)  # a row times this is the row's mean
        self.out, self.square = _empty((2, rows, width), self.weight)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = np.subtract(x, np.dot(x, self.mean), out=self.out)
        np.subtract(y, np.dot(y, self.mean), out=y)  # the rounding of a mean far from 0
        r = np.dot(np.multiply(y, y, out=self.square), self.mean)  # the variance, (B, 1)
        np.sqrt(np.add(r, self.eps, out=r), out=r)
        np.divide(y, r, out=y)
        np.multiply(y, self.weight, out=y)
        return np.add(y, self.bias, out=y)


class OneNormStep:
    """For one row on the CPU. An array without axes has its mean and deviation, as NumPy is slower with a number."""

    def __init__(self, layer: LayerNorm, stream: np.ndarray):
        self.weight, self.bias, self.eps = layer.weight.data, layer.bias.data, layer.eps
        self.mean = np.full_like(stream, 1 / stream.size)
        self.out, self.number = np.empty_like(stream), np.empty((), stream.dtype)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y, number = self.out, self.number
        np.subtract(x, x.dot(self.mean, number), out=y)
        variance, mean = y.dot(y) / y.size, number.item()
        if mean * mean > FAR**2 * variance:  # then its rounding is seen
            np.subtract(y, y.dot(self.mean, number), out=y)
            variance = y.dot(y) / y.size
        number[()] = math.sqrt(variance + self.eps)
        np.divide(y, number, out=y)
        np.multiply(y, self.weight, out=y)
        return np.add(y, self.bias, out=y)


def _norm_step(layer: LayerNorm, stream: np.ndarray) -> NormStep | OneNormStep:
    return OneNormStep(layer, stream) if stream.ndim == 1 else NormStep(layer, stream)


class GeluStep:
    """`ops.gelu` in fewer calls: its (1 + tanh u)/2 is 1/(1 + exp(-2u))."""

    def __init__(self, x: np.ndarray):
        slope = -2 * GELU_SLOPE
        self.cube, self.slope, self.one = (np.array(value, x.dtype) for value in (GELU_CUBE * slope, slope, 1))
        self.out = np.empty_like(x)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = self.out
        np.multiply(x, x, out=y)
        np.multiply(y, self.cube, out=y)
        np.add(y, self.slope, out=y)
        np.multiply(y, x, out=y)
        np.exp(y, out=y)
        np.add(y, self.one, out=y)
        return np.divide(x, y, out=y)


def _empty(shape: tuple[int, ...], like: Any) -> Any:
    return xp(like).empty(shape, like.dtype)


class AttentionStep:
    def __init__(self, layer: MultiHeadAttention, cache: KeyValueCache):
        rows, heads, _, size = cache.keys.shape
        self.cache = cache
        self.qkv, self.out = LinearStep(layer.qkv, (rows,)), LinearStep(layer.out, (rows,))
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


class OneAttentionStep:
    """For one sequence on the CPU: no axis B, and the largest score is subtracted only where scores may be large."""

    def __init__(self, layer: MultiHeadAttention, cache: KeyValueCache):
        _, heads, _, size = cache.keys.shape
        self.cache, self.stored = cache, cache.arrays[:, 0]  # (2, H, T, D)
        self.keys, self.values = self.stored[0].swapaxes(1, 2), self.stored[1]
        self.qkv, self.out = LinearStep(layer.qkv, ()), LinearStep(layer.out, ())
        self.joined = np.empty(heads * size, self.qkv.out.dtype)
        self.mixed = self.joined.reshape(heads, 1, size)
        self.queries, new = self.qkv.out[: heads * size], self.qkv.out[heads * size :]
        self.query, self.new = self.queries.reshape(heads, 1, size), new.reshape(2, heads, size)
        self.scale = np.array(1 / layer.scale, self.qkv.out.dtype)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.qkv(x)  # into queries and new
        np.multiply(self.queries, self.scale, out=self.queries)
        n = self.cache.claim(1)
        self.stored[:, :, n - 1] = self.new
        p = np.matmul(self.query, self.keys[:, :, :n])  # (H, 1, D)·(H, D, n) -> (H, 1, n)
        scores = p.reshape(-1)
        if not scores.dot(scores) < LARGE**2:
            np.subtract(p, np.maximum.reduce(p, axis=2, keepdims=True), out=p)
        np.exp(p, out=p)
        np.divide(p, np.add.reduce(p, axis=2, keepdims=True), out=p)  # before p, perhaps 1e34, multiplies values
        np.matmul(p, self.values[:, :n], out=self.mixed)  # (H, 1, n)·(H, n, D) -> (H, 1, D)
        return self.out(self.joined)


LARGE = 80  # the exponential of a score below it is not too large in float32, and of one above -80 not too small


class BlockStep:
    """Adds the output of a block to the residual stream, in place."""

    def __init__(self, block: Block, cache: KeyValueCache, stream: np.ndarray):
        lead = stream.shape[:-1]
        self.ln_1, self.ln_2 = _norm_step(block.ln_1, stream), _norm_step(block.ln_2, stream)
        self.attention = (AttentionStep if lead else OneAttentionStep)(block.attention, cache)
        self.up, self.down = LinearStep(block.mlp.up, lead), LinearStep(block.mlp.down, lead)
        self.activation: Any = ACTIVATIONS[block.mlp.activation]
        if self.activation is ops.gelu and xp(stream) is np:
            self.activation = GeluStep(self.up.out)

    def __call__(self, x: np.ndarray) -> None:
        np.add(x, self.attention(self.ln_1(x)), out=x)
        np.add(x, self.down(self.activation(self.up(self.ln_2(x)))), out=x)


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


def can_use_kernels(model: GPT) -> bool:
    """Can `GPUBlockStep` compute the blocks of this model?"""
    return has_kernels(model.wte.data) and model.config.activation == "gelu"
