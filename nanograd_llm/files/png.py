"""PNG pictures, drawn with matplotlib, which is imported when one is asked for; and how any curve is thinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nanograd_llm.errors import ConfigError

PNG_BEGINS = b"\x89PNG"


def smoothed(values: np.ndarray, points: int) -> np.ndarray:
    """At most this many means of neighbouring values along axis 0, all but the last of equally many.

    >>> smoothed(np.array([1.0, 3.0, 5.0, 7.0, 8.0]), 3)
    array([2., 6., 8.])
    """
    size = -(-len(values) // points)
    if size <= 1:
        return values
    return np.array([values[i : i + size].mean(axis=0) for i in range(0, len(values), size)])


def require_matplotlib() -> None:
    """Raise ConfigError without matplotlib."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("a PNG needs matplotlib: pip install matplotlib")


def png_of(draw: Callable[[Any], None], width: float, height: float) -> bytes:
    """The picture that `draw` makes on an empty Figure of matplotlib. width, height: in inches of 100 pixels.

    Texts are shown as they are, also with a $ in them. Raises ConfigError without matplotlib, of the extra "plot".
    """
    import io

    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = io.BytesIO()
    with rc_context({"text.parse_math": False, "text.usetex": False}):
        figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
        draw(figure)
        FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
