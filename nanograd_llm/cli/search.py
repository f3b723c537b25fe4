"""`nanograd-llm search`: the lines of a file that are nearest to a query in meaning."""

from __future__ import annotations

from pathlib import Path

from nanograd_llm.cli.options import Device, Encoder, lines_of
from nanograd_llm.cli.terminal import written


def search(
    model: Encoder, query: str, /, *, file: Path, top: int = 5, truncate: bool = False, device: Device = "cpu"
) -> None:
    """Show the lines of a file whose vectors are most like that of a query, each with its cosine.

    Parameters
    ----------
    query
        What to look for, such as a question.
    file
        A UTF-8 file with a text on each line, or - for standard input; blank lines are left out.
    top
        Lines to show.
    truncate
        Keep the first tokens of a line that is too long for the model.
    """
    from nanograd_llm import inference
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.runs.opening import open_encoder

    lines = lines_of(file)
    use_device(device)
    encoder, tokenizer = open_encoder(model)
    (sought,) = inference.embed(encoder, tokenizer, [query], truncate=truncate, name="the query")
    vectors = inference.embed(encoder, tokenizer, lines, truncate=truncate)
    for place, cosine in inference.nearest(vectors, sought, top):
        print(written(f"{cosine:6.3f}  {lines[place]}"))
