"""`nanograd-llm look`: what happens inside a model that reads a text."""

from __future__ import annotations

import shutil
from pathlib import Path

from nanograd_llm.cli.options import Device, Model, Target


def look(model: Model, text: str, /, *, target: Target = (), html: Path | None = None, device: Device = "cpu") -> None:
    """Show the loss of a model at each target in bits, what it would predict after each block, and its gradients.

    Parameters
    ----------
    text
        What the model reads: for a language model at least two tokens, of which each but the last predicts the next;
        for masked words a text with [MASK]; for other tasks what their command takes.
    html
        Write a page, with the attention of every head, such as look.html.
    """
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.cli.terminal import folded, written
    from nanograd_llm.files.atomic import write_atomically
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.see import trace
    from nanograd_llm.see.look import look as look_at
    from nanograd_llm.see.look import text_of, visible
    from nanograd_llm.see.page import require_html
    from nanograd_llm.see.pictures import look_page
    from nanograd_llm.tasks.registry import reading_of

    path = None if html is None else require_html(html)
    use_device(device)
    reading = reading_of(open_model(model), text, target)
    result = look_at(trace(reading.loss, *reading.batch))

    def name(i: int) -> str:
        return visible(reading.outputs(int(i)))

    if reading.remark:
        print(folded(reading.remark))
    columns = shutil.get_terminal_size((100, 24)).columns
    print(folded(text_of(result, name, columns)))
    if path is not None:
        write_atomically(path, look_page(result, f"{model}: {text}", name).encode())
        print(written(f"wrote {path}; open it in a browser"))
