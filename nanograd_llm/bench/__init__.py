"""How fast is it here, against the machine's own limit and against PyTorch? `nanograd-llm bench` prints what is found.

Read `figures` (what is reported, and the targets), `race` (how it is timed), `floor` (the limit), `compare`; then
`decode`, `memory`, `scaling` and `start`, each on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nanograd_llm.bench import compare, decode, memory, scaling, start
from nanograd_llm.bench.figures import TARGETS, Figure, Note, OpTime, Report, Target
from nanograd_llm.bench.machine import machine

# Each takes (against PyTorch?, rounds or None for its own) and reports as it measures.
BENCHMARKS: dict[str, Callable[[bool, int | None], Iterator[Report]]] = {
    "toy": compare.toy,
    "mid": compare.mid,
    "gpt2": compare.gpt2,
    "decode": decode.bench,
    "memory": memory.bench,
    "scaling": scaling.bench,
    "start": start.bench,
}
