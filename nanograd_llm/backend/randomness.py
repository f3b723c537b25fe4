"""Randomness without state: random numbers are a function of a key such as (seed, step, shard, use).

There is no generator to save and restore: a resumed run draws the same numbers, and so do shards on several threads.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator

import numpy as np


def generator(*key: int) -> np.random.Generator:
    """A new generator seeded with this key of non-negative integers."""
    return np.random.default_rng(key)


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
