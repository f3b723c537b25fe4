"""Runs: a text becomes a trained model in a folder, and whatever holds a model is opened again.

Read `checkpoints`, `folder`, `run`, `opening`.
"""

from nanograd_llm.runs.checkpoints import load_checkpoint, save_checkpoint
from nanograd_llm.runs.folder import RunFolder
from nanograd_llm.runs.run import TextConfig, TextRun, load_run, recipe

__all__ = ["RunFolder", "TextConfig", "TextRun", "load_checkpoint", "load_run", "recipe", "save_checkpoint"]
