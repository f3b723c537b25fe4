"""Stochastic gradient descent with momentum: each step continues in the direction of the steps before.

Polyak 1964; Sutskever et al. 2013, in PyTorch's form, whose velocity does not contain the learning rate.

    u ← μ u + g + λ p;  p ← p - η u
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Parameter
from nanograd_llm.settings import require_known, require_number
from nanograd_llm.training.optimizer import Optimizer, at_step


class SGD(Optimizer):
    """Optimizer over these parameters, updated in place. momentum: μ; weight_decay: λ, on every parameter.

    `step` takes a list of gradients in the order of the parameters, as AdamW's does.
    """

    def __init__(
        self, parameters: Sequence[Parameter], *, momentum: float = 0.0, weight_decay: float = 0.0, **other: Any
    ):
        require_known(other, "SGD", "momentum weight_decay", at_step)
        require_number("momentum", momentum, 0, 1, below=True)
        require_number("weight_decay", weight_decay, 0)
        super().__init__(parameters)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocities = [np.zeros_like(p.data) for p in self.order]

    def move(self, gradients: Sequence[np.ndarray], learning_rate: float) -> None:
        for p, velocity, gradient in zip(self.order, self.velocities, gradients):
            velocity *= self.momentum
            velocity += gradient
            velocity += self.weight_decay * p.data
            p.data -= learning_rate * velocity
