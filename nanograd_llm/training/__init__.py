"""Training. Read `schedule`, `flat`, `adamw`, `parallel`, `trainer`; `checkpoint` and `run_folder` keep the result."""

from nanograd_llm.training.adamw import AdamW, clip_by_global_norm
from nanograd_llm.training.checkpoint import load_checkpoint, save_checkpoint
from nanograd_llm.training.run_folder import RunFolder
from nanograd_llm.training.schedule import warmup_cosine
from nanograd_llm.training.trainer import StepRecord, TrainConfig, Trainer

__all__ = [
    "AdamW",
    "RunFolder",
    "StepRecord",
    "TrainConfig",
    "Trainer",
    "clip_by_global_norm",
    "load_checkpoint",
    "save_checkpoint",
    "warmup_cosine",
]
