"""Randomness without state: every random number is a function of a key such as (seed, step, shard, use).

There is no generator to save or restore, so a resumed run is the same run, and shards on several threads draw what they
would have drawn alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator

import numpy as np


def generator(*key: int) -> np.random.Generator:
    """The generator that belongs to this key of non-negative integers."""
    return np.random.default_rng(key)


class _Noise(threading.local):
    key: tuple[int, ...] | None = None
    uses = 0


_noise = _Noise()


@contextlib.contextmanager
def noise(*key: int) -> Iterator[None]:
    """Inside this block (of this thread) the noise of dropout follows from `key`, such as (seed, step, shard)."""
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


Block = contextlib.AbstractContextManager[None]


def repeatable_noise() -> tuple[Block, Callable[[], Block]]:
    """A block that draws what would be drawn here without it, and a maker of later blocks that draw the same again."""
    if _noise.key is None:
        key = _by_chance()
        return noise(*key), functools.partial(noise, *key)
    return contextlib.nullcontext(), functools.partial(_noise_from, _noise.key, _noise.uses)


def next_key() -> tuple[int, ...]:
    """A fresh key for one use of noise: the block's key and a running number; outside any block, drawn by chance."""
    if _noise.key is None:
        return _by_chance()
    _noise.uses += 1
    return (*_noise.key, _noise.uses)


def _by_chance() -> tuple[int, ...]:
    return (int.from_bytes(os.urandom(8), "little"),)
