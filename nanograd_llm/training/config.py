"""How to train: the settings of a trainer."""

from __future__ import annotations

from nanograd_llm.errors import ConfigError
from nanograd_llm.settings import MAX_SEED, Settings, setting
from nanograd_llm.training.schedule import SCHEDULES

TWO_LENGTHS = "steps and minutes are both given; give the length of the run in one of them"


class TrainConfig(Settings):
    """How to train. Raises ConfigError that names the field."""

    steps: int = setting(
        "Steps of the run. The same steps and number of workers give the same model, bit for bit.", default=1000, low=1
    )
    minutes: float | None = setting(
        "Length of the run in minutes, in place of steps; the learning rate then follows the clock.",
        default=None,
        low=1e-3,
    )
    batch_size: int = setting("Rows of a batch, such as the windows of text in a step.", default=12, low=1)
    accumulate: int = setting(
        "Pieces that each worker splits its rows into, to save memory (gradient accumulation).", default=1, low=1
    )
    optimizer: str = setting(
        "adamw for all parameters, or muon for the matrices of linear layers and adamw for the rest. muon needs fewer "
        "steps to the same loss, but each costs more, above all with few tokens in a batch. LoRA's adapters always "
        "have adamw.",
        default="adamw",
        choices=("adamw", "muon"),
    )
    learning_rate: float = setting("Peak of the learning rate.", default=1e-3)
    warmup: float = setting(
        "Share of the run in which the learning rate rises to its peak.", default=0.1, high=1, below=True
    )
    schedule: str = setting(
        "How the learning rate changes after its peak. range tests learning rates: it rises from a 100,000th of the "
        "peak to the peak, and the run ends when the loss explodes.",
        default="cosine",
        choices=SCHEDULES,
    )
    final: float = setting("Learning rate at the end, as a share of the peak.", default=0.01, high=1)
    weight_decay: float = setting("Weight decay, on matrices and tables only.", default=0.1)
    beta1: float = setting(
        "AdamW's β₁: the larger, the slower its average of the gradient changes.", default=0.9, high=1, below=True
    )
    beta2: float = setting("β₂: the same for its average of the squared gradient.", default=0.95, high=1, below=True)
    eps: float = setting("Added to AdamW's denominator, so that it is never 0.", default=1e-8, low=1e-16)
    max_norm: float = setting("A gradient of a larger norm is scaled down to this norm.", default=1.0, low=1e-12)
    seed: int = setting("Seed of the initial weights, the batches and dropout.", default=0, high=MAX_SEED)
    workers: int = setting("Workers that the rows of a batch are split over; 0 for one per core.", default=0)
    processes: bool | None = setting(
        "Use forked processes as workers, which are faster for small models, or threads; the results are the same. "
        "Processes on Linux, but threads in a notebook, beside other threads, in a process of a pool, and on other "
        "systems, if not given.",
        default=None,
    )

    allow_tf32: bool = setting(
        "On a GPU, allow products of float32 to round their factors to 10 bits (TF32), which is faster. The first "
        "such product of a process decides for all later ones.",
        default=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minutes is not None and self.steps != type(self).steps:
            raise ConfigError(TWO_LENGTHS)
        for name in ("workers", "accumulate"):
            if (number := getattr(self, name)) > self.batch_size:
                raise ConfigError(f"{name} is {number}, but batch_size is {self.batch_size}; give at most that many")
