"""The judge of the course's exercises: is the rule that a reader wrote right?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import array_of
from nanograd_llm.gradcheck.check.check import gradcheck


def attempt(exercise: Callable[..., Any], *inputs: Any) -> bool:
    """Print whether the rule of an op is right at these inputs, and where it differs; True if it is right.

    An error that the rule raises is printed as well, so that the lesson goes on to the next exercise.
    """
    name = getattr(exercise, "name", exercise.__name__).replace("_", " ").capitalize()
    try:
        report = gradcheck(exercise, *inputs)
    except Exception as error:  # whatever a half-written rule raises
        print(f"{name}: not yet right: {error}")
        return False
    is_alike = any(np.size(x) > 1 and np.ptp(x) == 0 for x in map(array_of, inputs))  # which hides a forgotten sum
    passed = f"{name}: right" + ", but one input holds equal numbers: try others" * is_alike
    print(passed if report.passed else f"{name}: not yet right\n{report}")
    return report.passed
