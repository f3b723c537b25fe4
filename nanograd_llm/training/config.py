"""How to train: the settings of a trainer, which check themselves."""

from __future__ import annotations

import dataclasses

from nanograd_llm.settings import require_bool, require_int, require_number, require_seed


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises ConfigError naming the field that cannot be.

    learning_rate: at its peak. warmup: share of the run that climbs to it. final: share of it left at the end.
    steps: how long the run is; minutes: a limit of time instead (the schedule then follows the clock).
    accumulate: pieces each worker's share of a batch is worked through in, to bound memory.
    workers: how many the batch is split over; 0 for one a core.
    processes: True has the workers be forked processes, on Linux, which is faster for small models; False threads. None
        takes processes where they are safe: not in a notebook, a thread, a process of a pool, or beside other threads.
    """

    learning_rate: float = 1e-3
    warmup: float = 0.1
    final: float = 0.01
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    max_norm: float = 1.0
    batch_size: int = 12
    accumulate: int = 1
    steps: int = 1000
    minutes: float | None = None
    workers: int = 0
    processes: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field, low in (("batch_size", 1), ("accumulate", 1), ("steps", 1), ("workers", 0)):
            require_int(field, getattr(self, field), low)
        for field in ("learning_rate", "weight_decay"):
            require_number(field, getattr(self, field), 0)
        require_number("eps", self.eps, 1e-16)  # what has no gradient would be divided 0/0
        for field in ("warmup", "beta1", "beta2"):
            require_number(field, getattr(self, field), 0, 1, below=True)
        require_seed(self.seed)
        if self.processes is not None:
            require_bool("processes", self.processes)
        require_number("final", self.final, 0, 1)
        require_number("max_norm", self.max_norm, 1e-12)
        if self.minutes is not None:
            require_number("minutes", self.minutes, 1e-3)
