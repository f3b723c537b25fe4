"""Stochastic gradient descent with momentum: each step continues in the direction of the steps before.

Polyak 1964; Sutskever et al. 2013, in PyTorch's form, whose velocity does not contain the learning rate.

    u ← μ u + g + λ p;  p ← p - η u
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Parameter
from nanograd_llm.errors import NanogradError
from nanograd_llm.settings import require_known, require_number
from nanograd_llm.training.flat import at_step, require_one_each


class SGD:
    """Optimizer over these parameters, updated in place. momentum: μ; weight_decay: λ, on every parameter.

    `step` takes a list of gradients in the order of the parameters, as AdamW's does.
    """

    def __init__(
        self, parameters: Sequence[Parameter], *, momentum: float = 0.0, weight_decay: float = 0.0, **other: Any
    ):
        require_known(other, "SGD", "momentum weight_decay", at_step)
        require_number("momentum", momentum, 0, 1, below=True)
        require_number("weight_decay", weight_decay, 0)
        self.parameters = list(parameters)
        if not self.parameters:
            raise NanogradError("SGD got no parameters; give it model.parameters() of a model that has some")
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocities = [np.zeros_like(p.data) for p in self.parameters]

    def step(self, gradients: Sequence[np.ndarray], learning_rate: float) -> None:
        """Update every parameter. gradients: one for each parameter, in the order given.

        Raises ShapeError if a gradient has another shape than its parameter, GraphError for one that is None.
        """
        require_one_each(gradients, self.parameters)
        for p, velocity, gradient in zip(self.parameters, self.velocities, gradients):
            velocity *= self.momentum
            velocity += gradient
            velocity += self.weight_decay * p.data
            p.data -= learning_rate * velocity
