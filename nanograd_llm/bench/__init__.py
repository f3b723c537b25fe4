"""How fast is it here, against the machine's own limit and against PyTorch? `nanograd-llm bench` prints what is found.

Read `figures` (what is reported, and the targets), `race` (how it is timed), `floor` (the limit), `compare`; the rest
stand each on their own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

from nanograd_llm.bench import compare, decode, detection, memory, scaling, start, torch_gpt
from nanograd_llm.bench.figures import TARGETS, Figure, Note, OpTime, Report, Target
from nanograd_llm.bench.host import machine
from nanograd_llm.bench.workloads import MID, TOY
from nanograd_llm.settings import require_int

# Each takes (against PyTorch?, rounds or None for its own) and reports as it measures.
BENCHMARKS: dict[str, Callable[[bool, int | None], Iterator[Report]]] = {
    "toy": functools.partial(compare.step, TOY),
    "mid": functools.partial(compare.step, MID),
    "gpt2": compare.gpt2,
    "decode": decode.bench,
    "memory": memory.bench,
    "scaling": scaling.bench,
    "start": start.bench,
    "detection": detection.bench,
}


def run(names: Sequence[str], *, against: bool = False, rounds: int | None = None) -> Iterator[Report]:
    """Report as it is measured, one benchmark after the other. against: PyTorch takes part.

    Raises ConfigError, before anything is measured, for a number of rounds below 1 or a rival that is not installed.
    """
    if rounds is not None:
        require_int("rounds", rounds, 1)
    if against:
        torch_gpt.require_installed("torch", *(["transformers"] if {"gpt2", "decode"} & {*names} else []))
    return itertools.chain.from_iterable(BENCHMARKS[name](against, rounds) for name in names)
