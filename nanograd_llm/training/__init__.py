"""Training: the learning rate, the optimizers, and a Trainer that shares each batch among workers.

Read `schedule`, `sgd`, `flat`, `adamw`, `team`, `workers`, `trainer`."""

from nanograd_llm.training.adamw import AdamW, clip_by_global_norm
from nanograd_llm.training.config import TrainConfig
from nanograd_llm.training.schedule import scheduled
from nanograd_llm.training.sgd import SGD
from nanograd_llm.training.trainer import StepRecord, Trainer

__all__ = ["SGD", "AdamW", "StepRecord", "TrainConfig", "Trainer", "clip_by_global_norm", "scheduled"]
