"""Tasks: what a model can be trained to do. A task has the model, its batches, its score and a sample of its work.

Read `task`, the contract, which `runs` trains and saves; then `language_model`.
"""

from nanograd_llm.tasks.language_model import LanguageModelling, TextConfig, fine_tuning, recipe
from nanograd_llm.tasks.task import Sample, Score, Task

__all__ = ["LanguageModelling", "Sample", "Score", "Task", "TextConfig", "fine_tuning", "recipe"]
