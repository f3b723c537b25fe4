"""The tasks that `train --task NAME` knows, by name. Only the one that is asked for is loaded."""

from __future__ import annotations

import importlib

from nanograd_llm.settings import require_choice
from nanograd_llm.tasks.task import NamedTask

TASKS = {  # the module here, and the class in it
    "language-model": "language_model LanguageModelling",
    "translation": "translation Translation",
    "masked-words": "masked_words MaskedWords",
    "classification": "classification Classification",
    "instruction": "instruction Instructions",
    "preference": "preference Preferences",
}
DEFAULT = "language-model"


def task_named(name: str) -> type[NamedTask]:
    """The class of a task. Raises ConfigError for a name that none has."""
    require_choice("task", name, TASKS)
    module, kind = TASKS[name].split()
    found: type[NamedTask] = getattr(importlib.import_module(f"nanograd_llm.tasks.{module}"), kind)
    return found
