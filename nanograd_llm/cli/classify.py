"""`nanograd-llm classify`: the likeliest classes of texts."""

from __future__ import annotations

from pathlib import Path

from nanograd_llm.cli.options import Device, Labeller, given_texts
from nanograd_llm.cli.terminal import written


def classify(model: Labeller, /, *texts: str, file: Path | None = None, top: int = 3, device: Device = "cpu") -> None:
    """Show the likeliest classes of each text, with their probabilities.

    Parameters
    ----------
    texts
        The texts, each in quotes; if there are none, or for -, the lines that are piped in.
    file
        A UTF-8 file with more texts, a line each, or - for standard input; blank lines are left out.
    top
        Classes to show for each.
    """
    from nanograd_llm import inference
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.runs.opening import open_classifier
    from nanograd_llm.settings import require_int

    require_int("top", top, 1)
    lines = given_texts(texts, file, "classify")
    use_device(device)
    classifier, tokenizer, names, longest = open_classifier(model)
    for text, p in zip(lines, inference.classify(classifier, tokenizer, lines, longest=longest)):
        said = ", ".join(f"{names[k]}: {p[k]:.1%}" for k in (-p).argsort(kind="stable")[:top])
        print(written(f"{said}  | {' '.join(text.split())[:60]}"))
