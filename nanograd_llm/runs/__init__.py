"""Runs: a task is trained into a folder, and whatever holds a model is opened again.

Read `checkpoints`, `folder`, `run`, `opening`. Each name is loaded when it is first used: training needs no formats of
pretrained models, which opening knows.
"""

from typing import TYPE_CHECKING

from nanograd_llm.backend.lazy import lazily

if TYPE_CHECKING:
    from nanograd_llm.runs.checkpoints import load_checkpoint, save_checkpoint
    from nanograd_llm.runs.folder import RunFolder
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.runs.run import Run

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "checkpoints": "load_checkpoint save_checkpoint",
        "folder": "RunFolder",
        "opening": "open_model",
        "run": "Run",
    },
)
