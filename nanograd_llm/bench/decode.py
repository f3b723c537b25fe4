"""Generation token by token: its speed, compared with the speed at which the machine can read the weights.

Each token needs every weight once, so reading memory is the limit. It is measured in the same run as the bandwidth of
the BLAS product of a matrix and a vector (sgemv).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from nanograd_llm.backend.arrays import use_device
from nanograd_llm.backend.threads import cpu_count
from nanograd_llm.bench import torch_gpt
from nanograd_llm.bench.figures import Figure, OpTime, Report
from nanograd_llm.bench.profile import profile
from nanograd_llm.bench.race import Maker, Step, contenders, race, warm_up
from nanograd_llm.inference.generate import generate
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.models.gpt import GPT, GPTConfig

OURS = "nanograd_llm"
SGEMV_BYTES = 2**29  # far larger than any cache


def bench(
    against: bool,
    rounds: int | None = None,
    *,
    nano: GPTConfig | None = None,
    gpt2: GPTConfig | None = None,
    count: int = 24,
    sgemv_bytes: int = SGEMV_BYTES,
) -> Iterator[Report]:
    """Tokens per second of a small model and of GPT-2: `count` tokens after a prompt of one token."""
    yield from _nano(against, rounds, nano or GPTConfig.preset("nano"))
    yield from _gpt2(against, rounds, gpt2 or GPTConfig.preset("gpt2"), count, sgemv_bytes)


def _nano(against: bool, rounds: int | None, config: GPTConfig) -> Iterator[Report]:
    count = config.context_length - 1  # up to the end of the context, so that nothing has to be dropped from it
    makers: dict[str, Maker] = {OURS: functools.partial(decoding, config, count)}
    rivals = {f"PyTorch, threads: {n}": n for n in sorted({1, cpu_count()})} if against else {}
    makers |= {name: functools.partial(torch_gpt.decoding, config, count, n) for name, n in rivals.items()}
    with contenders(makers) as children:
        yield from warm_up(children, "decode")
        speed = {name: count / seconds for name, seconds in race(children, rounds, 4, most=8, limit=10).items()}
        for name in makers:
            yield Figure("decode", "nano" if name == OURS else f"nano, {name}", speed[name], "tokens/s")
        if rivals:
            ratio = speed[OURS] / max(speed[name] for name in rivals)
            yield Figure("decode", "nano: tokens/s ÷ best of PyTorch", ratio, "ratio")
        for row in children[OURS].ask(profile, rounds or 8):
            yield OpTime("decode", *row)


def _gpt2(against: bool, rounds: int | None, config: GPTConfig, count: int, sgemv_bytes: int) -> Iterator[Report]:
    makers: dict[str, Maker] = {
        OURS: functools.partial(decoding, config, count),
        "sgemv": functools.partial(sgemv, sgemv_bytes),
        "sgemv, transposed": functools.partial(sgemv, sgemv_bytes, transposed=True),
    }
    if against:
        makers["transformers"] = functools.partial(torch_gpt.transformers_decoding, config, count)
    with contenders(makers) as children:
        yield from warm_up(children, "decode")
        seconds = race(children, rounds, 2, most=3)
        limit = sgemv_bytes / min(seconds["sgemv"], seconds["sgemv, transposed"])
        rate = weight_bytes(config) * count / seconds[OURS]
        yield Figure("decode", "gpt2", count / seconds[OURS], "tokens/s")
        yield Figure("decode", "gpt2, weights read", rate / 1e9, "GB/s")
        yield Figure("decode", "sgemv, the machine's limit", limit / 1e9, "GB/s")
        yield Figure("decode", "gpt2: bytes/s ÷ sgemv", rate / limit, "ratio")
        if theirs := seconds.get("transformers"):
            yield Figure("decode", "gpt2, transformers", count / theirs, "tokens/s")
            yield Figure("decode", "gpt2: tokens/s ÷ transformers", theirs / seconds[OURS], "ratio")
        for row in children[OURS].ask(profile, 1):
            yield OpTime("decode", *row)


def weight_bytes(c: GPTConfig) -> int:
    """The bytes read for a token in float32: every parameter once, and one row of the positions. The head is tied."""
    C, inner = c.n_embd, c.n_inner or 4 * c.n_embd
    block = (C * 3 * C + 3 * C) + (C * C + C) + (C * inner + inner) + (inner * C + C) + 4 * C
    return 4 * (c.vocab_size * C + C + c.n_layer * block + 2 * C)


def decoding(config: GPTConfig, count: int, device: str = "cpu") -> Step:
    """A step that generates `count` tokens after a first one, always the most probable; it returns their ids."""
    with use_device(device):
        model, sampling = GPT(config), Sampling(temperature=0)
    return lambda: generate(model, [0], max_new_tokens=count, sampling=sampling)[0]


def sgemv(size: int, transposed: bool = False) -> Step:
    """A step that multiplies a matrix of `size` bytes by a vector, with all BLAS threads."""
    columns = max(1, min(4096, size // 64))
    matrix, vector = np.ones((size // (4 * columns), columns), np.float32), np.ones(columns, np.float32)
    if transposed:
        matrix, vector = matrix.T, np.ones(len(matrix), np.float32)
    out = np.empty(len(matrix), np.float32)
    return lambda: np.matmul(matrix, vector, out=out)
