"""`nanograd-llm look`: what happens inside a model that reads a text."""

from __future__ import annotations

import shutil
from pathlib import Path

from nanograd_llm.cli.options import Device, Model


def look(model: Model, text: str, /, *, html: Path | None = None, device: Device = "cpu") -> None:
    """Show how surprised a GPT is at each token of a text, what each depth would say next, and how gradients flow.

    Parameters
    ----------
    text
        At least two tokens, of which each but the last predicts the next.
    html
        Write a page, with the attention of every head, such as look.html.
    """
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.cli.terminal import written
    from nanograd_llm.files.atomic import write_atomically
    from nanograd_llm.models import GPT
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.see.look import look as look_at
    from nanograd_llm.see.look import text_of, visible
    from nanograd_llm.see.page import require_html
    from nanograd_llm.see.pictures import look_page

    path = None if html is None else require_html(html)
    use_device(device)
    opened = open_model(model, GPT)
    tokenizer = opened.tokenizer()
    result = look_at(opened.model(), tokenizer.encode(text))

    def name(i: int) -> str:
        return visible(tokenizer.decode_bytes([i]))

    print(written(text_of(result, name, shutil.get_terminal_size((100, 24)).columns)))
    if path is not None:
        write_atomically(path, look_page(result, f"{model}: {text}", name).encode())
        print(written(f"wrote {path}; open it in a browser"))
