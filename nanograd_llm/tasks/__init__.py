"""Tasks: what a model can be trained to do. A task has the model, its batches, its score and a sample of its work.

Read `task`, the contract, which `runs` trains and saves; `text_task`, what tasks of texts share; `registry`, the tasks
by name; then `language_model`, `masked_words`, `translation`, `classification`; `answering`, and on it `instruction`
and `preference`. Each name is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from nanograd_llm.backend.lazy import lazily

if TYPE_CHECKING:
    from nanograd_llm.tasks.classification import Classification, LabelledTextConfig, TuningConfig
    from nanograd_llm.tasks.instruction import InstructionConfig, Instructions
    from nanograd_llm.tasks.language_model import LanguageModelling, TextConfig, recipe
    from nanograd_llm.tasks.masked_words import HidingConfig, HidingTextConfig, MaskedWords
    from nanograd_llm.tasks.preference import PreferenceConfig, Preferences
    from nanograd_llm.tasks.registry import TASKS, task_named
    from nanograd_llm.tasks.task import Request, Sample, Score, Task
    from nanograd_llm.tasks.translation import PairsConfig, Translation

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "classification": "Classification LabelledTextConfig TuningConfig",
        "instruction": "InstructionConfig Instructions",
        "language_model": "LanguageModelling TextConfig recipe",
        "masked_words": "HidingConfig HidingTextConfig MaskedWords",
        "preference": "PreferenceConfig Preferences",
        "registry": "TASKS task_named",
        "translation": "PairsConfig Translation",
        "task": "Request Sample Score Task",
    },
)
