"""`nanograd-llm step`: walk through one backward pass of a model."""

from __future__ import annotations

from pathlib import Path

from nanograd_llm.cli.options import Device, Model, Target


def step(
    model: Model,
    text: str,
    /,
    *,
    target: Target = (),
    html: Path | None = None,
    script: Path | None = None,
    op: int = 0,
    device: Device = "cpu",
) -> None:
    """Step through the loss of a model on a text and its backward pass, one op call at a time.

    The prompt takes commands like those of Python's debugger; h lists them. They may come from a pipe.

    Parameters
    ----------
    text
        What the model reads: for a language model at least two tokens, of which each but the last predicts the next;
        for masked words a text with [MASK]; for other tasks what their command takes.
    html
        Write the pass as a page to step through in a browser instead, such as step.html.
    script
        Write the pass as a NumPy script instead, which compares itself with the recorded numbers, such as backward.py;
        its arrays go to a .npz beside it.
    op
        The number of the call to begin with.
    """
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.cli.terminal import written
    from nanograd_llm.files.atomic import require_folder
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.see import trace
    from nanograd_llm.see.look import visible
    from nanograd_llm.see.page import require_html
    from nanograd_llm.tasks.registry import reading_of

    if html is not None:
        require_html(html)
    if script is not None:
        require_folder(script)
    use_device(device)
    reading = reading_of(open_model(model), text, target, merged=False)
    recorded = trace(reading.loss, *reading.batch)
    if reading.remark:
        print(written(reading.remark))
    tokens = [[visible(piece) for piece in pieces] for pieces in reading.texts]
    if html is not None:
        recorded.html(html, *tokens)
        print(written(f"wrote {html}; open it in a browser"))
    if script is not None:
        recorded.script(script)
        print(written(f"wrote {script} and {script.with_suffix('.npz').name}; run it: python {script}"))
    if html is script is None:
        recorded.step(op, tokens=tokens)
