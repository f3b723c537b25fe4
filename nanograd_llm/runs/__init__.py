"""Runs: train a task and store the results in a folder; open any model, of a run or pretrained.

Read `checkpoints`, `folder`, `tables`, `run`, `progress`, `prepare`, `compare`, `opening`, `scoring`. Each name is
loaded when it is first used: opening needs the formats of pretrained models, which training does not.
"""

from typing import TYPE_CHECKING

from nanograd_llm.backend.lazy import lazily

if TYPE_CHECKING:
    from nanograd_llm.runs.checkpoints import load_checkpoint, save_checkpoint
    from nanograd_llm.runs.folder import RunFolder
    from nanograd_llm.runs.opening import open_encoder, open_model
    from nanograd_llm.runs.progress import shown
    from nanograd_llm.runs.run import Run

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "checkpoints": "load_checkpoint save_checkpoint",
        "folder": "RunFolder",
        "opening": "open_encoder open_model",
        "progress": "shown",
        "run": "Run",
    },
)
