"""Training: the learning rate, the optimizers, and a Trainer that shares each batch among workers.

Read `schedule`, `optimizer`, `sgd`, `flat`, `adamw`, `muon`, `team`, `workers`, `trainer`. Each name is loaded
when it is first used.
"""

from typing import TYPE_CHECKING

from nanograd_llm.backend.lazy import lazily

if TYPE_CHECKING:
    from nanograd_llm.training.adamw import AdamW, clip_by_global_norm
    from nanograd_llm.training.config import TrainConfig
    from nanograd_llm.training.muon import Muon
    from nanograd_llm.training.schedule import scheduled
    from nanograd_llm.training.sgd import SGD
    from nanograd_llm.training.trainer import StepRecord, Trainer

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "adamw": "AdamW clip_by_global_norm",
        "config": "TrainConfig",
        "muon": "Muon",
        "schedule": "scheduled",
        "sgd": "SGD",
        "trainer": "StepRecord Trainer",
    },
)
