"""How the time of a step grows with sequences, tokens and layers, compared with that of the matrix products alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

from nanograd_llm.bench.figures import Figure, Report
from nanograd_llm.bench.floor import Floor
from nanograd_llm.bench.race import Maker, contenders, race, warm_up
from nanograd_llm.bench.workloads import Workload, training_step
from nanograd_llm.models.gpt import GPTConfig

Pair = tuple[Workload, Workload]


def _workload(batch_size: int, length: int, n_layer: int) -> Workload:
    return Workload("scaling", GPTConfig(65, length, n_layer, n_head=4, n_embd=256), batch_size, length)


PAIRS: dict[str, Pair] = {
    "1 to 8 sequences": (_workload(1, 128, 4), _workload(8, 128, 4)),
    "64 to 1,024 tokens": (_workload(2, 64, 2), _workload(2, 1024, 2)),
    "2 to 24 layers": (_workload(4, 128, 2), _workload(4, 128, 24)),
}


def bench(against: bool, rounds: int | None = None, *, pairs: Mapping[str, Pair] | None = None) -> Iterator[Report]:
    """The growth of the time of our step and of its floor, and their ratio. PyTorch is not measured here."""
    for name, (small, large) in (PAIRS if pairs is None else pairs).items():
        makers: dict[str, Maker] = {}
        for size, workload in (("small", small), ("large", large)):
            makers[size] = functools.partial(training_step, workload)
            makers[f"{size} floor"] = functools.partial(Floor, workload)
        with contenders(makers) as children:
            yield from warm_up(children, "scaling")
            seconds = race(children, rounds, 3, most=6, limit=10)
        ours, limit = seconds["large"] / seconds["small"], seconds["large floor"] / seconds["small floor"]
        for size in ("small", "large"):
            yield Figure("scaling", f"step, {name}: {size}", seconds[size] * 1e3, "ms")
            yield Figure("scaling", f"step ÷ floor, {name}: {size}", seconds[size] / seconds[f"{size} floor"], "ratio")
        yield Figure("scaling", f"growth, {name}", ours, "ratio")
        yield Figure("scaling", f"growth of the floor, {name}", limit, "ratio")
        yield Figure("scaling", f"growth, {name} ÷ floor's", ours / limit, "ratio")
