"""On a GPU: a training step of GPT-2 124M against PyTorch, and the time of a token against transformers.

All in float32 without TF32, each contender with random weights in a process of its own, and each step waits for the
GPU. The weights of GPT-2 would change no time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from nanograd_llm.bench import torch_gpt
from nanograd_llm.bench.decode import decoding
from nanograd_llm.bench.figures import Figure, OpTime, Report
from nanograd_llm.bench.profile import profile
from nanograd_llm.bench.race import Maker, Step, contenders, race, warm_up
from nanograd_llm.bench.workloads import GPU_STEP, Workload, training_step, wait_for
from nanograd_llm.models.gpt import GPTConfig

OURS, PYTORCH, TRANSFORMERS, CUDA = "nanograd_llm", "PyTorch", "transformers", "cuda"


def step(against: bool, rounds: int | None = None, *, workload: Workload = GPU_STEP) -> Iterator[Report]:
    """A training step, against PyTorch eager with its fused attention and AdamW."""
    w, name = workload, f"step {workload.batch_size} × {workload.length:,}"
    makers: dict[str, Maker] = {OURS: functools.partial(training_step, w, CUDA)}
    if against:
        makers[PYTORCH] = functools.partial(torch_gpt.training_step, w, device=CUDA)
    with contenders(makers) as children:
        yield from warm_up(children, w.name)
        seconds = race(children, rounds, w.burst, most=w.rounds)
        yield Figure(w.name, name, seconds[OURS] * 1e3, "ms")
        yield Figure(w.name, f"{name}, tokens", w.tokens / seconds[OURS], "tokens/s")
        if theirs := seconds.get(PYTORCH):
            yield Figure(w.name, f"{name}, {PYTORCH}", theirs * 1e3, "ms")
            yield Figure(w.name, f"{name} ÷ {PYTORCH}", seconds[OURS] / theirs, "ratio")
        for row in children[OURS].ask(_profile, w.burst):
            yield OpTime(w.name, *row)


def decode(
    against: bool, rounds: int | None = None, *, config: GPTConfig | None = None, count: int = 64
) -> Iterator[Report]:
    """The time of a token, of `count` tokens after a first one, against `generate` of transformers with its cache."""
    c = config or GPTConfig.preset("gpt2")
    makers: dict[str, Maker] = {OURS: functools.partial(decoding, c, count, CUDA)}
    if against:
        makers[TRANSFORMERS] = functools.partial(torch_gpt.transformers_decoding, c, count, CUDA)
    with contenders(makers) as children:
        yield from warm_up(children, "decode, cuda")
        took = {name: seconds / count * 1e3 for name, seconds in race(children, rounds, 2, most=5).items()}
        for name in makers:
            yield Figure("decode, cuda", "ms a token" if name == OURS else f"ms a token, {name}", took[name], "ms")
        if theirs := took.get(TRANSFORMERS):
            yield Figure("decode, cuda", f"ms a token ÷ {TRANSFORMERS}", took[OURS] / theirs, "ratio")
        for row in children[OURS].ask(_profile, 1):
            yield OpTime("decode, cuda", *row)


def _profile(step: Step, steps: int) -> list[tuple[str, float, float, float]]:
    return profile(step, steps, functools.partial(wait_for, CUDA))
