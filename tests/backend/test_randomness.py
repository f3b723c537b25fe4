"""Masks of dropout follow from a key alone, by the counter-based generator Philox4x64-10."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm.backend import randomness

ONES = 2**64 - 1
# The known answers that its authors publish, in kat_vectors of Random123: (counter, key) -> words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
    ((ONES,) * 4, (ONES,) * 2, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(counter: tuple[int, ...], key: tuple[int, ...], words: str) -> None:
    found = randomness.philox(np.array(counter, np.uint64)[:, None], np.array(key, np.uint64))
    assert " ".join(f"{word:016x}" for word in found[:, 0]) == words


def test_philox_in_array_operations_is_the_philox_of_numpy() -> None:
    key, counter = np.array([5, 2**63 + 7], np.uint64), np.zeros((4, 100), np.uint64)
    counter[0] = np.arange(1, 101)
    found = randomness.philox(counter, key).T.reshape(-1)
    np.testing.assert_array_equal(found, np.random.Philox(key=key).random_raw(400))


def mask(shape: tuple[int, ...], key: tuple[int, ...], rate: float, dtype: str = "float32") -> np.ndarray:
    found = np.empty(shape, dtype)
    randomness.drop_at_random(found, key, rate)
    return found


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
def test_as_many_elements_are_dropped_as_the_rate_says(rate: float) -> None:
    found = mask((1000, 1000), (0, 1), rate)
    assert set(np.unique(found)) <= {0, np.float32(1) / np.float32(1 - rate)}
    assert abs((found == 0).mean() - rate) <= 5 * (rate / 1e6) ** 0.5


@pytest.mark.parametrize("dtype", ["float64", "complex128", "float16"])
def test_every_dtype_has_the_same_zeros(dtype: str) -> None:
    np.testing.assert_array_equal(mask((7, 3), (4, 5), 0.4, dtype) == 0, mask((7, 3), (4, 5), 0.4) == 0)


def test_other_keys_and_other_places_give_other_masks() -> None:
    found = [mask((64,), (seed, step, use), 0.5) for seed in (0, 1) for step in (0, 1) for use in (1, 2)]
    assert len({array.tobytes() for array in found}) == 8
    assert len({row.tobytes() for row in mask((8, 64), (0, 0), 0.5)}) == 8


def test_the_mask_of_a_key_never_changes() -> None:
    """Stored runs depend on it: a resumed run draws what the run drew before."""
    found = (mask((32,), (3, 1, 4), 0.5) > 0).astype(int)
    assert "".join(map(str, found)) == "10111101001001010101111001000111"
