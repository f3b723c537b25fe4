"""nanograd_llm: tensors that differentiate themselves, and language models built on them, in NumPy.

    import nanograd_llm as ng

    model = ng.GPT(ng.GPTConfig.preset("nano"), seed=0)
    loss = model.loss(tokens, targets)      # ids (B, T) -> Tensor (), the mean over the targets
    loss.backward()
    model.wte.grad                          # an array, of the parameter's shape and dtype

Read the package in the order of its floors, each built on those before it: backend, modes, checked, tape, engine,
shapes, op; ops; gradcheck, nn; models; text; training, inference; runs, bench; cli.
"""

from nanograd_llm import inference, nn, ops, text, training
from nanograd_llm.engine import Parameter, Tensor, grad, hvp, value_and_grad
from nanograd_llm.errors import NanogradError
from nanograd_llm.models import GPT, GPTConfig
from nanograd_llm.modes import checked, higher_order, no_grad
from nanograd_llm.op import keep, op

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
    "nn",
    "no_grad",
    "op",
    "ops",
    "text",
    "training",
    "value_and_grad",
]
