"""Randomness without state: random numbers are a function of a key such as (seed, step, shard, use).

There is no generator to save and restore: a resumed run draws the same numbers, and so do shards on several threads.
Masks of dropout are made of integers that a counter-based generator computes, so they are the same on every device.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nanograd_llm.backend.arrays import xp
from nanograd_llm.backend.kernels import PHILOX_INCREMENTS, PHILOX_MULTIPLIERS, on_gpu


def generator(*key: int) -> np.random.Generator:
    """A new generator seeded with this key of non-negative integers."""
    return np.random.default_rng(key)


def drop_at_random(mask: Any, key: tuple[int, ...], rate: float) -> None:
    """Write 0 with probability `rate`, else 1/(1 - rate), into each element of mask (*), of floats.

    `key` and the place of an element determine it: on both devices, and in every dtype, the same ones are 0.
    """
    words = np.random.SeedSequence(key).generate_state(2, np.uint64)
    _write_mask(mask, words, int(rate * 2**32), mask.dtype.type(1) / mask.dtype.type(1 - rate))


@on_gpu
def _write_mask(mask, key, threshold, scale):
    """Element i is dropped if half a word, the i-th number of 32 bits from Philox, is below the threshold."""
    count = (mask.size + 1) // 2
    if xp(mask) is np:
        words = np.random.Philox(key=key).random_raw(count)  # the same words, from C; its first counter is 1
    else:
        counter = np.zeros_like(mask, shape=(4, (count + 3) // 4), dtype=np.uint64)
        counter[0] = xp(mask).arange(1, counter.shape[1] + 1, dtype=np.uint64)
        words = philox(counter, key).T.reshape(-1)[:count]
    kept = words.view(np.uint32)[: mask.size] >= np.uint32(threshold)
    np.multiply(kept.reshape(mask.shape), scale, out=mask, dtype=mask.dtype)


def philox(counter: Any, key: Any) -> Any:
    """Philox4x64-10: random words as a function of a counter and a key (Salmon, Moraes, Dror and Shaw 2011).

    counter (4, n), key (2) -> (4, n), all uint64, the lowest word first
    """
    a, b, c, d = counter
    key = [int(word) for word in key]
    for _ in range(10):
        (high_a, low_a), (high_c, low_c) = map(_product, (a, c), PHILOX_MULTIPLIERS)
        a, b, c, d = high_c ^ b ^ np.uint64(key[0]), low_c, high_a ^ d ^ np.uint64(key[1]), low_a
        key = [(word + step) % 2**64 for word, step in zip(key, PHILOX_INCREMENTS)]
    return xp(counter).stack([a, b, c, d])


def _product(x: Any, factor: int) -> tuple[Any, Any]:
    """x * factor in 128 bits, as the high and the low 64; from products of 32-bit halves, as no dtype has 128."""
    half, ones = np.uint64(32), np.uint64(2**32 - 1)
    x_low, x_high, low, high = x & ones, x >> half, np.uint64(factor % 2**32), np.uint64(factor >> 32)
    middle = x_high * low + (x_low * low >> half)
    other = x_low * high + (middle & ones)
    return x_high * high + (middle >> half) + (other >> half), x * np.uint64(factor)


class _Noise(threading.local):
    key: tuple[int, ...] | None = None
    uses = 0
    random_uses = 0


_noise = _Noise()


@contextlib.contextmanager
def noise(*key: int) -> Iterator[None]:
    """Inside this block, in this thread, `key` determines the masks of dropout, e.g. (seed, step, shard)."""
    with _noise_from(key, 0):
        yield


@contextlib.contextmanager
def _noise_from(key: tuple[int, ...], uses: int) -> Iterator[None]:
    before = _noise.key, _noise.uses
    _noise.key, _noise.uses = key, uses
    try:
        yield
    finally:
        _noise.key, _noise.uses = before


NoiseBlock = contextlib.AbstractContextManager[None]


def repeatable_noise() -> tuple[NoiseBlock, Callable[[], NoiseBlock]]:
    """A block with the noise that would be drawn here anyway, and a function that makes blocks with the same noise."""
    if _noise.key is None:
        key = _random_key()
        return noise(*key), functools.partial(noise, *key)
    return contextlib.nullcontext(), functools.partial(_noise_from, _noise.key, _noise.uses)


def next_key() -> tuple[int, ...]:
    """A new key for one use of noise: the block's key and a running number; outside of such a block a random key."""
    if _noise.key is None:
        _noise.random_uses += 1
        return _random_key()
    _noise.uses += 1
    return (*_noise.key, _noise.uses)


def random_uses() -> int:
    """How often this thread has drawn noise outside of any block, which no second call draws again."""
    return _noise.random_uses


def _random_key() -> tuple[int, ...]:
    return (int.from_bytes(os.urandom(8), "little"),)
