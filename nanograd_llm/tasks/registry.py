"""The tasks that `train --task NAME` knows, by name. Only the one that is asked for is loaded."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nanograd_llm.errors import ConfigError
from nanograd_llm.settings import nearest, require_choice
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
    try:
        require_choice("task", name, TASKS)
    except ConfigError as error:
        if nearest(str(name), TASKS):
            raise
        raise ConfigError(f"{error}; a task of your own is known in the script that adds it to TASKS") from None
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
    forms: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {  # how each is called
        "batch(self, step)": (found.batch, (None, 0), {}),
        "score(self, rows=None)": (found.score, (None, 8), {}),
        "__init__(self, config, *, seed=None)": (found.model_class, (None,), {"seed": 0}),
    }
    for form, (function, given, named) in forms.items():
        try:
            inspect.signature(function).bind(*given, **named)
        except TypeError as error:
            what = f"{where}: its {function.__name__}" if given[1:] else f"{where}: its model {function.__name__}"
            raise ConfigError(f"{what} cannot be called as it must: {error}; write def {form}") from None
    return found


def complete_tasks() -> Iterator[type[Task]]:
    """The classes of all tasks that are complete: one of yours that is not yet does not stop the others."""
    for name in TASKS:
        with contextlib.suppress(ConfigError):  # raised where this task is asked for
            yield task_named(name)


def reading_of(opened: Opened[Any], text: str, targets: Sequence[str] = (), **how: Any) -> Reading:
    """How a text becomes a batch for the loss of an opened model: see `Task.reading`."""
    found: Reading = _loaded((TASKS | UNTRAINED)[opened.task_name]).reading(opened, text, targets, **how)
    return found


def _loaded(place: str | type[Task]) -> Any:
    if not isinstance(place, str):
        return place
    module, kind = place.split()
    return getattr(importlib.import_module(f"nanograd_llm.tasks.{module}"), kind)
