"""PNG pictures, drawn with matplotlib, which is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nanograd_llm.errors import ConfigError

PNG_BEGINS = b"\x89PNG"


def png_of(draw: Callable[[Any], None], width: float, height: float) -> bytes:
    """The picture that `draw` makes on an empty Figure of matplotlib. width, height: in inches of 100 pixels.

    Texts are shown as they are, also with a $ in them. Raises ConfigError without matplotlib, of the extra "plot".
    """
    import io

    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "a PNG needs matplotlib: pip install matplotlib; an SVG or an HTML page needs nothing"
        ) from None
    picture = io.BytesIO()
    with rc_context({"text.parse_math": False, "text.usetex": False}):
        figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
        draw(figure)
        FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
