"""How to train: the settings of a trainer."""

from __future__ import annotations

from nanograd_llm.settings import MAX_SEED, Settings, setting


class TrainConfig(Settings):
    """How to train. Raises ConfigError naming the field that cannot be."""

    steps: int = setting(
        "Length of the run. The same steps and number of workers give the same model, bit for bit.", default=1000, low=1
    )
    minutes: float | None = setting(
        "Length of the run in time instead of in steps; the schedule then follows the clock.",
        default=None,
        low=1e-3,
    )
    batch_size: int = setting("Rows of a batch: the windows of a step.", default=12, low=1)
    accumulate: int = setting("Work through each batch in so many pieces a worker, to save memory.", default=1, low=1)
    learning_rate: float = setting("At its peak.", default=1e-3)
    warmup: float = setting("Share of the run in which the rate climbs to its peak.", default=0.1, high=1, below=True)
    final: float = setting("Share of the peak that the rate falls to at the end.", default=0.01, high=1)
    weight_decay: float = setting("Decay of AdamW, on matrices only.", default=0.1)
    beta1: float = setting("Decay a step of AdamW's mean of gradients.", default=0.9, high=1, below=True)
    beta2: float = setting("Decay a step of AdamW's mean of squared gradients.", default=0.95, high=1, below=True)
    eps: float = setting("Keeps AdamW from dividing by 0.", default=1e-8, low=1e-16)
    max_norm: float = setting("The gradient is scaled down to this norm where it is larger.", default=1.0, low=1e-12)
    seed: int = setting("Decides the first weights, every batch and every dropout mask.", default=0, high=MAX_SEED)
    workers: int = setting("Workers that a batch is split over; 0 for one a core.", default=0)
    processes: bool | None = setting(
        "Have the workers be forked processes, faster for small models, or threads; the bits are the same. Processes "
        "where they are safe (on Linux; not in a notebook, a thread, a process of a pool, or beside other threads) if "
        "not given.",
        default=None,
    )
