"""Runs: a text becomes a trained model in a folder, and whatever holds a model is opened again.

Read `checkpoints`, `folder`, `opening`, `run`.
"""

from nanograd_llm.runs.checkpoints import load_checkpoint, save_checkpoint
from nanograd_llm.runs.folder import RunFolder
from nanograd_llm.runs.opening import Opened, open_model
from nanograd_llm.runs.run import TextConfig, TextRun, recipe

__all__ = ["Opened", "RunFolder", "TextConfig", "TextRun", "load_checkpoint", "open_model", "recipe", "save_checkpoint"]
