"""What the optimizers share: the checks of parameters and gradients, and what to write instead of PyTorch's names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nanograd_llm.autograd.tensor import Parameter, Tensor
from nanograd_llm.backend.lazy import absent
from nanograd_llm.errors import DtypeError, GraphError, NanogradError, ShapeError, SignatureError

_STEP = "step([p.grad for p in model.parameters()], learning_rate)"
_INSTEAD = {  # PyTorch's name -> what to write
    "zero_grad": "model.zero_grad()",
    "param_groups": f"{_STEP} for the learning rate, and an optimizer for each group of parameters",
    **dict.fromkeys(("state_dict", "load_state_dict"), "a Trainer, which has both"),
}


class Optimizer:
    """Base class of optimizers. order: the parameters, as given.

    Raises DtypeError for what is not a list of Parameters, NanogradError for an empty one.
    """

    def __init__(self, parameters: Iterable[Parameter]):
        name, single = type(self).__name__, isinstance(parameters, Tensor)
        is_list = isinstance(parameters, Iterable) and not single
        self.order: list[Parameter] = list(parameters) if is_list else [parameters]  # type: ignore[list-item]
        if not self.order:
            raise NanogradError(f"{name} got no parameters; give it model.parameters() of a model that has some")
        for parameter in self.order:
            if single or not isinstance(parameter, Tensor):
                call = f"{name}([table])" if single else f"{name}(model.parameters())"
                of = f" of {type(parameter).__name__}" if is_list else ""
                raise DtypeError(
                    f"{name} takes a list of Parameters; got {type(parameters).__name__}{of}; write {call}"
                )

    if not TYPE_CHECKING:  # type checkers would think that an optimizer has every attribute

        def __getattr__(self, name: str) -> Any:
            if name in _INSTEAD:
                raise absent(f"{type(self).__name__!r} object", name, _INSTEAD)
            return object.__getattribute__(self, name)  # raises the error that led here

    def step(
        self, gradients: Iterable[np.ndarray] | None = None, learning_rate: float | None = None, **other: Any
    ) -> None:
        """Update every parameter. gradients: one for each parameter, in the order given. Both are required.

        Raises SignatureError for other arguments, ShapeError if a gradient has another shape than its parameter,
        GraphError for one that is None, DtypeError for one that is a Tensor.
        """
        if other or learning_rate is None or isinstance(gradients, Tensor) or not isinstance(gradients, Iterable):
            raise SignatureError(f"step takes the gradients and the learning rate: write {_STEP}")
        gradients = list(gradients)
        for i, gradient in enumerate(gradients):
            if gradient is None:
                raise GraphError(
                    f"the gradient of parameter {i} is None: it is frozen, the loss does not use it, or step "
                    "came before loss.backward(); leave out what has no gradient"
                )
            if isinstance(gradient, Tensor):
                raise DtypeError(f"the gradient of parameter {i} is a Tensor; give arrays: {_STEP}")
        shapes, expected = [np.shape(g) for g in gradients], [p.shape for p in self.order]
        if shapes != expected:
            raise ShapeError(f"the gradients have shapes {shapes}; expected one for each parameter, {expected}")
        self.move(gradients, learning_rate)

    def move(self, gradients: Sequence[np.ndarray], learning_rate: float) -> None:
        """What `step` does with gradients that fit. Subclasses write it."""
        raise NotImplementedError


def at_step(name: str, value: Any) -> str:
    """Where an optimizer gets the learning rate, in words; "" for another argument."""
    is_rate = name in ("lr", "learning_rate")
    return "the learning rate is given to each step: step(gradients, learning_rate)" if is_rate else ""
