"""What a benchmark reports: figures, the times of ops, and notes; and a table of the target of each figure."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, Literal, NamedTuple


class Target(NamedTuple):
    """The target of a figure: at most (≤) or at least (≥) `limit`."""

    bound: Literal["≤", "≥"]
    limit: float

    def is_met(self, value: float) -> bool:
        return {"≤": operator.le, "≥": operator.ge}[self.bound](value, self.limit)

    def __str__(self) -> str:
        return f"{self.bound} {self.limit:.2f}"


# By workload and measure: ratios, seconds and counts. Those that name PyTorch or transformers need `--against`.
TARGETS = {
    ("toy", "step ÷ best of PyTorch"): Target("≤", 0.80),
    ("toy", "step ÷ floor"): Target("≤", 1.35),
    ("mid", "step ÷ best of PyTorch"): Target("≤", 0.93),
    ("mid", "step ÷ floor"): Target("≤", 1.18),
    ("gpt2", "forward 1 × 1,024 ÷ best of transformers"): Target("≤", 0.60),
    ("gpt2", "step 1 × 512 ÷ best of PyTorch"): Target("≤", 0.95),
    ("translation", "step ÷ PyTorch"): Target("≤", 0.90),
    ("decode", "nano: tokens/s ÷ best of PyTorch"): Target("≥", 3.0),
    ("decode", "gpt2: bytes/s ÷ sgemv"): Target("≥", 0.85),
    ("gpt2, cuda", "step 8 × 1,024 ÷ PyTorch"): Target("≤", 1.3),
    ("decode, cuda", "ms a token ÷ transformers"): Target("≤", 1.0),
    ("embed", "sentences/s ÷ transformers"): Target("≥", 1.0),
    ("memory", "toy ÷ PyTorch"): Target("≤", 0.40),
    ("memory", "mid ÷ PyTorch"): Target("≤", 0.85),
    ("memory", "gpt2 ÷ PyTorch"): Target("≤", 0.90),
    ("lora", "step ÷ training all weights"): Target("≤", 0.75),
    ("lora", "memory ÷ training all weights"): Target("≤", 0.50),
    ("lora", "step ÷ PyTorch with PEFT"): Target("≤", 1.0),
    ("scaling", "growth, 1 to 8 sequences ÷ floor's"): Target("≤", 1.10),
    ("scaling", "growth, 64 to 1,024 tokens ÷ floor's"): Target("≤", 1.10),
    ("scaling", "growth, 2 to 24 layers ÷ floor's"): Target("≤", 1.10),
    ("start", "train: Enter to first step"): Target("≤", 1.0),
    ("start", "generate, gpt2 on disk: Enter to first token"): Target("≤", 1.5),
    ("detection", "one entry of 1,000 off by a billionth, missed"): Target("≤", 0),
    ("detection", "all entries off by a billionth, missed"): Target("≤", 0),
    ("detection", "right gradients, called wrong"): Target("≤", 0),
}


@dataclasses.dataclass(frozen=True)
class _Record:
    workload: str

    def record(self) -> dict[str, Any]:
        """The fields, for a line of JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Figure(_Record):
    """One measured number. unit: ms, s, MB, GB/s, GFLOP/s, tokens/s, sentences/s, ratio, or "of N" for a count."""

    measure: str
    value: float
    unit: str

    @property
    def target(self) -> Target | None:
        return TARGETS.get((self.workload, self.measure))

    def __str__(self) -> str:
        is_whole = self.value >= 1000 or self.unit.startswith("of ")
        digits = 2 if self.unit in ("ratio", "s") else 0 if is_whole else 1
        return f"{self.measure:<52}{self.value:>12,.{digits}f} {self.unit}"

    def record(self) -> dict[str, Any]:
        """The fields, and if there is a target, the target and whether it is met."""
        record = super().record()
        if self.target:
            record |= {"target": str(self.target), "met": self.target.is_met(self.value)}
        return record


@dataclasses.dataclass(frozen=True)
class OpTime(_Record):
    """Calls and seconds per step of one op or other part, in the calling worker, without the parts that it calls."""

    op: str
    calls: float
    seconds: float
    share: float


@dataclasses.dataclass(frozen=True)
class Note(_Record):
    """A remark on a measurement, such as why a contender is missing."""

    note: str

    def __str__(self) -> str:
        return self.note


Report = Figure | OpTime | Note
