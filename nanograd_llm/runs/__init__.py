"""Runs: a task is trained into a folder, and whatever holds a model is opened again.

Read `checkpoints`, `folder`, `run`, `opening`.
"""

from nanograd_llm.runs.checkpoints import load_checkpoint, save_checkpoint
from nanograd_llm.runs.folder import RunFolder
from nanograd_llm.runs.opening import open_model
from nanograd_llm.runs.run import Run

__all__ = ["Run", "RunFolder", "load_checkpoint", "open_model", "save_checkpoint"]
