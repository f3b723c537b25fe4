"""`nanograd-llm embed`: texts as vectors."""

from __future__ import annotations

from pathlib import Path

from nanograd_llm.cli.options import Device, Encoder, given_texts
from nanograd_llm.settings import counted, printable


def embed(
    model: Encoder,
    /,
    *texts: str,
    file: Path | None = None,
    out: Path | None = None,
    truncate: bool = False,
    device: Device = "cpu",
) -> None:
    """Turn texts into vectors: show the cosines between the first texts, or write all vectors to a file.

    Parameters
    ----------
    texts
        The texts, each in quotes; if there are none, or for -, the lines that are piped in.
    file
        A UTF-8 file with more texts, a line each, or - for standard input; blank lines are left out.
    out
        The file of NumPy to write, such as vectors.npy, with a row for each text. An existing file is replaced only if
        it is a .npy.
    truncate
        Keep the first tokens of a text that is too long for the model.
    """
    from nanograd_llm import inference
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.files.atomic import require_replaceable
    from nanograd_llm.files.npz import NPY_BEGINS, write_npy
    from nanograd_llm.runs.opening import open_encoder

    lines = given_texts(texts, file, "embed")
    if out is not None:
        require_replaceable(out, ".npy", NPY_BEGINS)  # before the work
    use_device(device)
    encoder, tokenizer = open_encoder(model)
    vectors = inference.embed(encoder, tokenizer, lines, truncate=truncate)
    of = f"{encoder.pooling} of the last hidden states of a {type(encoder.model).__name__}"
    print(f"{counted(len(lines), 'text')}, {vectors.shape[1]} numbers each: the {of}")
    if out is not None:
        write_npy(out, vectors)
        print(f"written to {out}")
        return
    shown = vectors[:8]
    for text, row in zip(lines, shown @ shown.T):
        print(" ".join(f"{cosine:6.3f}" for cosine in row), "", printable(text)[:60])
