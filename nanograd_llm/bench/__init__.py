"""Benchmarks: speed and memory beside the machine's limit and PyTorch; how many wrong gradients the check detects.

`nanograd-llm bench` runs them. Read `figures` (what is reported, and the targets), `race` (how it is timed), `floor`
(the limit), `compare`. The other modules do not depend on each other.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

from nanograd_llm.backend.arrays import library
from nanograd_llm.bench import (
    compare,
    decode,
    detection,
    embed,
    gpu,
    lora,
    memory,
    scaling,
    start,
    torch_gpt,
    translation,
)
from nanograd_llm.bench.figures import TARGETS, Figure, Note, OpTime, Report, Target
from nanograd_llm.bench.host import machine
from nanograd_llm.bench.workloads import MID, TOY
from nanograd_llm.settings import require_choice, require_int

# Each takes (against PyTorch?, number of rounds or None for its default) and yields reports as it measures.
Benchmark = Callable[[bool, int | None], Iterator[Report]]
BENCHMARKS: dict[str, Benchmark] = {
    "toy": functools.partial(compare.step, TOY),
    "mid": functools.partial(compare.step, MID),
    "gpt2": compare.gpt2,
    "translation": translation.bench,
    "decode": decode.bench,
    "embed": embed.bench,
    "memory": memory.bench,
    "lora": lora.bench,
    "scaling": scaling.bench,
    "start": start.bench,
    "detection": detection.bench,
}
ON_GPU: dict[str, Benchmark] = {"gpt2": gpu.step, "decode": gpu.decode}


def run(
    names: Sequence[str], *, against: bool = False, rounds: int | None = None, device: str = "cpu"
) -> Iterator[Report]:
    """Run the benchmarks one after the other, and yield reports as they are measured. against: also measure PyTorch.

    Raises ConfigError, before anything is measured, if rounds is below 1, a package is not installed, or there is no
    such benchmark on the device; DeviceError if the device cannot be used.
    """
    library(device)
    known = BENCHMARKS if device == "cpu" else ON_GPU
    for name in names:
        require_choice(f"the workload on {device}", name, known)
    if rounds is not None:
        require_int("rounds", rounds, 1)
    if against:
        also = {"transformers": {"gpt2", "decode", "embed", "lora"}, "peft": {"lora"}}
        torch_gpt.require_installed("torch", *(package for package, users in also.items() if users & {*names}))
    return itertools.chain.from_iterable(known[name](against, rounds) for name in names)
