"""The tasks that `train --task NAME` knows, by name. Only the one that is asked for is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanograd_llm.errors import ConfigError
from nanograd_llm.settings import require_choice
from nanograd_llm.tasks.reading import Reading
from nanograd_llm.tasks.task import Task

if TYPE_CHECKING:
    from nanograd_llm.pretrained.opened import Opened

TASKS: dict[str, str | type[Task]] = {  # the module here and the class in it, or a class of yours
    "language-model": "language_model LanguageModelling",
    "translation": "translation Translation",
    "masked-words": "masked_words MaskedWords",
    "classification": "classification Classification",
    "instruction": "instruction Instructions",
    "preference": "preference Preferences",
}
DEFAULT = "language-model"
UNTRAINED = {"similarity": "similarity Similarity"}  # of models that no task here trains


def task_named(name: str) -> type[Task]:
    """The class of a task. Raises ConfigError for a name that none has, and for a class that is not complete."""
    require_choice("task", name, TASKS)
    found: type[Task] = _loaded(TASKS[name])
    where = f"the class {found.__name__} of the task {name}"
    if not issubclass(found, Task):
        raise ConfigError(f"{where} is no Task; write class {found.__name__}(Task)")
    missing = [known for known in ("name", "tables", "model_class") if not hasattr(found, known)]
    missing += sorted(found.__abstractmethods__)
    missing += [] if "tables" in missing or "model" in found.tables else ['"model" in its tables']
    if missing or found.name != name:
        problem = f"has no {', no '.join(missing)}" if missing else f"has the name {found.name!r}"
        raise ConfigError(f"{where} {problem}; see Task in tasks/task.py")
    return found


def reading_of(opened: Opened[Any], text: str, targets: Sequence[str] = (), **how: Any) -> Reading:
    """How a text becomes a batch for the loss of an opened model: see `Task.reading`."""
    found: Reading = _loaded((TASKS | UNTRAINED)[opened.task_name]).reading(opened, text, targets, **how)
    return found


def _loaded(place: str | type[Task]) -> Any:
    if not isinstance(place, str):
        return place
    module, kind = place.split()
    return getattr(importlib.import_module(f"nanograd_llm.tasks.{module}"), kind)
