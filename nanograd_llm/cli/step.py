"""`nanograd-llm step`: walk through one backward pass of a model."""

from __future__ import annotations

from pathlib import Path

from nanograd_llm.cli.options import Device, Model


def step(
    model: Model,
    text: str,
    /,
    *,
    html: Path | None = None,
    script: Path | None = None,
    op: int = 0,
    device: Device = "cpu",
) -> None:
    """Step through the loss of a GPT on a text and its backward pass, one op call at a time.

    The prompt takes commands like those of Python's debugger; h lists them. They may come from a pipe.

    Parameters
    ----------
    text
        At least two tokens, of which each but the last predicts the next.
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
    from nanograd_llm.models import GPT
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.see import trace
    from nanograd_llm.see.look import tokens_and_targets, visible

    use_device(device)
    opened = open_model(model, GPT)
    loaded, tokenizer = opened.model(), opened.tokenizer()
    recorded = trace(loaded.loss, *tokens_and_targets(loaded, tokenizer.encode(text)))
    if html is not None:
        pieces = [visible(piece) for _, piece in tokenizer.pieces(text)]
        recorded.html(html, pieces[:-1])
        print(written(f"wrote {html}; open it in a browser"))
    if script is not None:
        recorded.script(script)
        print(written(f"wrote {script} and {script.with_suffix('.npz').name}; run it: python {script}"))
    if html is script is None:
        recorded.step(op)
