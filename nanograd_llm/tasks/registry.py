"""The tasks that `train --task NAME` knows, by name. Only the one that is asked for is loaded."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nanograd_llm.errors import ConfigError
from nanograd_llm.nn.module import Module
from nanograd_llm.settings import Settings, check_keys, nearest, require_choice, shown
from nanograd_llm.tasks.reading import Reading
from nanograd_llm.tasks.task import Task, Tuning
from nanograd_llm.training.config import TrainConfig

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
# of a class of tasks: each member, whether it is what it must be, and that in words
MEMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda it: isinstance(it, str), "a str"),
    "used_by": (lambda it: isinstance(it, str), "a str, the name of a command"),
    "tables": (lambda it: _is_table(it, lambda kind: _is_class(kind, Settings)), "a dict of Settings classes by table"),
    "hidden": (lambda it: _is_table(it, _are_names), "a dict of tuples of names by table"),
    "model_class": (lambda it: _is_class(it, Module), "a class that is derived from nn.Module"),
    "presets": (lambda it: _are_names(it), "a tuple of names"),
    "fresh": (lambda it: _is_table(it), "a dict of settings by name"),
    "tuning": (lambda it: it is None or isinstance(it, Tuning), "a Tuning, or None"),
}
FORMS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [  # how each method is called
    ("batch(self, step)", (None, 0), {}),
    ("score(self, rows=None)", (None, 8), {}),
    ("sample(self, *, last=False)", (None,), {"last": True}),
    ("example(self)", (None,), {}),
    ("hold_out(self, *files)", (None, "a.csv", "b.csv"), {}),
    ("describe(self)", (None,), {}),
    ("save_beside(self, folder)", (None, None), {}),
    ("__init__(self, config, *, seed=None)", (None,), {"seed": 0}),
]
USES = "generate chat translate fill classify embed search eval step look info".split()  # commands that take a model
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
    where = f"the class {getattr(found, '__name__', shown(found))} of the task {name}"
    if not _is_class(found, Task):
        raise ConfigError(f"{where} is no Task; write class NAME(Task)")
    missing = [known for known in ("name", "tables", "model_class") if not hasattr(found, known)]
    missing += sorted(found.__abstractmethods__)
    if missing:
        raise ConfigError(f"{where} has no {', no '.join(missing)}; see Task in tasks/task.py")
    for member, (fits, words) in MEMBERS.items():
        if not fits(value := getattr(found, member)):
            raise ConfigError(f"{where}: its {member} must be {words}; got {shown(value)}")
    if found.name != name:
        raise ConfigError(f"{where} has the name {found.name!r}; see Task in tasks/task.py")
    if "model" not in found.tables:
        raise ConfigError(f'{where} has no "model" in its tables; see Task in tasks/task.py')
    require_choice(f"{where}: its used_by", found.used_by, USES)
    check_keys(found.hidden, found.tables, f"{where}: its hidden")
    for table, names in found.hidden.items():
        check_keys(names, found.tables[table].setting_types, f"{where}: its hidden {table}")
    kinds: list[type[Settings]] = [*found.tables.values(), TrainConfig]
    check_keys(found.fresh, [name for kind in kinds for name in kind.setting_types], f"{where}: its fresh")
    if found.tuning is not None:
        check_keys(found.tuning.also, TrainConfig.setting_types, f"{where}: its tuning")
    for form, given, named in FORMS:
        method = form.partition("(")[0]
        function = found.model_class if method == "__init__" else getattr(found, method)
        what = f"its model {found.model_class.__name__}" if method == "__init__" else f"its {method}"
        if not callable(function):
            raise ConfigError(f"{where}: {what} must be a method; got {shown(function)}; write def {form}")
        try:
            inspect.signature(function).bind(*given, **named)
        except TypeError as error:
            raise ConfigError(f"{where}: {what} cannot be called as it must: {error}; write def {form}") from None
    return found


def complete_tasks() -> Iterator[type[Task]]:
    """The classes of all tasks that are complete: one of yours that is not yet does not stop the others."""
    for name in TASKS:
        with contextlib.suppress(Exception):  # raised where this task is asked for
            yield task_named(name)


def reading_of(opened: Opened[Any], text: str, targets: Sequence[str] = (), **how: Any) -> Reading:
    """How a text becomes a batch for the loss of an opened model: see `Task.reading`."""
    found: Reading = _loaded((TASKS | UNTRAINED)[opened.task_name]).reading(opened, text, targets, **how)
    return found


def _is_table(value: Any, of: Callable[[Any], bool] = lambda value: True) -> bool:
    return isinstance(value, Mapping) and _are_names([*value]) and all(map(of, value.values()))


def _is_class(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _are_names(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str) and all(isinstance(one, str) for one in value)


def _loaded(place: str | type[Task]) -> Any:
    if not isinstance(place, str):
        return place
    module, kind = place.split()
    return getattr(importlib.import_module(f"nanograd_llm.tasks.{module}"), kind)
