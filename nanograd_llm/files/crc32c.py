"""CRC-32C in NumPy, about as fast as memory can be read: a CRC is a remainder, and folding keeps the remainder.

A message is a polynomial over the field of two elements (addition is XOR); its first bit is the highest power. The CRC
is its remainder after division by P(x). A search found that P divides x^6777 + x^484 + x^100 + 1, so

    x^6777 ≡ x^484 + x^100 + 1   (mod P)

and the front of a message can be removed if it is added again at three later places. Squaring doubles each exponent,
hence x^(6777 k) ≡ x^(484 k) + x^(100 k) + 1 for k = 8, 16, 32, ...: the shifts are whole bytes, and each is one XOR of
two arrays. A table then handles the few thousand bytes that remain, one byte at a time.

Russell, "Chorba: a novel CRC32 implementation", 2024, arXiv:2412.16398.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78  # x^31 in bit 0, to 1 in bit 31; x^32 is left out
EXPONENTS = (6777, 484, 100, 0)
_COARSE, _FINE = 8, 1  # bytes for each unit of an exponent: folds of 54 kB first, then of 7 kB
_BLOCK = 2**20


def masked_crc32c(data: NDArray[np.uint8]) -> int:
    """The CRC-32C in the form that LevelDB and TensorFlow store: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: NDArray[np.uint8]) -> int:
    """The CRC-32C (Castagnoli) of the bytes `data`, uint8 (N,).

    >>> hex(crc32c(np.frombuffer(b"123456789", np.uint8)))
    '0xe3069283'
    """
    state = 0xFFFFFFFF
    for unit in (_COARSE, _FINE):
        if len(data) > 2 * EXPONENTS[0] * unit:
            data, state = _folded(data, state, unit), 0
    for byte in data.tobytes():
        state = _TABLE[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def _folded(data: NDArray[np.uint8], state: int, unit: int) -> NDArray[np.uint8]:
    """The last 6777 * unit bytes of `data`, with all earlier bytes folded in: they have the same remainder."""
    degree, *lower = (exponent * unit for exponent in EXPONENTS)
    shifts = [degree - exponent for exponent in lower]
    window = np.zeros(_BLOCK + degree, np.uint8)  # a block, and what is added to the bytes after it
    window[:4] = np.frombuffer(state.to_bytes(4, "little"), np.uint8)
    stop = len(data) - degree
    for start in range(0, stop, _BLOCK):
        size = min(_BLOCK, stop - start)
        window[:size] ^= data[start : start + size]
        for begin in range(0, size, shifts[0]):  # up to the nearest place that it is added to
            front = window[begin : min(begin + shifts[0], size)]
            for shift in shifts:
                window[begin + shift : begin + shift + len(front)] ^= front
        window[:degree] = window[size : size + degree].copy()
        window[degree:] = 0
    return window[:degree] ^ data[stop:]


def _table() -> list[int]:
    """The remainders of the 256 bytes, each followed by 32 zero bits."""
    remainders = list(range(256))
    for _ in range(8):
        remainders = [remainder >> 1 ^ (POLYNOMIAL if remainder & 1 else 0) for remainder in remainders]
    return remainders


_TABLE = _table()
