"""The folded CRC-32C equals published values, and division byte by byte at lengths where the method changes."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm.files.crc32c import EXPONENTS, POLYNOMIAL, crc32c, masked_crc32c


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # RFC 3720, B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"", 0),
    ],
)
def test_published_values(data, crc):
    assert crc32c(np.frombuffer(data, np.uint8)) == crc


def test_the_mask_is_that_of_leveldb():
    assert masked_crc32c(np.zeros(32, np.uint8)) == ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) % 2**32


def test_the_sparse_polynomial_is_a_multiple_of_the_crcs():
    power, remainder = 1 << 31, 0  # x^0; the highest power is in bit 0
    for exponent in range(max(EXPONENTS) + 1):
        if exponent in EXPONENTS:
            remainder ^= power
        power = power >> 1 ^ (POLYNOMIAL if power & 1 else 0)
    assert remainder == 0


def divided_byte_by_byte(data: bytes) -> int:
    """The textbook's method, with the remainders of single bytes divided bit by bit."""
    table = list(range(256))
    for _ in range(8):
        table = [x >> 1 ^ (POLYNOMIAL if x & 1 else 0) for x in table]
    state = 0xFFFFFFFF
    for byte in data:
        state = table[(state ^ byte) & 0xFF] ^ state >> 8
    return state ^ 0xFFFFFFFF


FINE, COARSE, BLOCK = EXPONENTS[0], 8 * EXPONENTS[0], 2**20


@pytest.mark.parametrize(
    "size",
    [1, 3, 4, 2 * FINE, 2 * FINE + 1, 3 * FINE + 5, 2 * COARSE, 2 * COARSE + 1]
    + [BLOCK + COARSE, BLOCK + COARSE + 1, 2 * BLOCK + COARSE + 1234],
)
def test_folding_is_division(rng, size):
    data = rng.integers(0, 256, size, dtype=np.uint8)
    assert crc32c(data) == divided_byte_by_byte(data.tobytes())


def test_any_flipped_bit_is_seen(rng):
    data = rng.integers(0, 256, 120_000, dtype=np.uint8)
    crc = crc32c(data)
    for place in rng.integers(0, len(data), 50):
        data[place] ^= 1 << int(place % 8)
        assert crc32c(data) != crc
        data[place] ^= 1 << int(place % 8)
