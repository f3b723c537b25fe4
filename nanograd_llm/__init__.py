"""nanograd_llm: tensors that differentiate themselves, and language models built on them, in NumPy.

    import nanograd_llm as ng

    model = ng.GPT(ng.GPTConfig.preset("nano"), seed=0)
    loss = model.loss(tokens, targets)      # ids (B, T) -> Tensor (), the mean over the targets
    loss.backward()
    model.wte.grad                          # an array, of the parameter's shape and dtype

Read the package in the order of its floors, each built on those before it: backend, modes, checked, tape, engine,
shapes, op; ops; gradcheck, nn; models; text; training, inference, pretrained; runs, bench; cli.
"""

from typing import TYPE_CHECKING, Any

from nanograd_llm import inference, nn, ops, text, training
from nanograd_llm.engine import Parameter, Tensor, grad, hvp, value_and_grad
from nanograd_llm.errors import NanogradError
from nanograd_llm.models import GPT, GPTConfig
from nanograd_llm.modes import checked, higher_order, no_grad
from nanograd_llm.op import keep, op

if TYPE_CHECKING:
    from nanograd_llm import pretrained
    from nanograd_llm.pretrained import load_gpt2, save_gpt2

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "GPTConfig",
    "NanogradError",
    "Parameter",
    "Tensor",
    "checked",
    "grad",
    "higher_order",
    "hvp",
    "inference",
    "keep",
    "load_gpt2",
    "nn",
    "no_grad",
    "op",
    "ops",
    "pretrained",
    "save_gpt2",
    "text",
    "training",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    """`pretrained` and its two names are loaded when they are first used: most programs have no use for its readers."""
    if name not in ("pretrained", "load_gpt2", "save_gpt2"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    room = import_module("nanograd_llm.pretrained")
    return room if name == "pretrained" else getattr(room, name)
