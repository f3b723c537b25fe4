"""`nanograd-llm fill`: the likeliest words where a text has [MASK]."""

from __future__ import annotations

from nanograd_llm.cli.options import Device, Filler, given_text
from nanograd_llm.settings import printable


def fill(
    model: Filler, text: str | None = None, /, *, top: int = 5, truncate: bool = False, device: Device = "cpu"
) -> None:
    """Show the likeliest words for each [MASK] of a text, with their probabilities.

    Parameters
    ----------
    text
        A text with [MASK] in place of a word, or of several; if not given, or -, what is piped in.
    top
        Words to show for each.
    truncate
        Keep the first tokens of a text that is too long for the model.
    """
    from nanograd_llm import inference
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.models import BERT
    from nanograd_llm.runs.opening import open_model

    text = given_text(text, "fill")
    use_device(device)
    opened = open_model(model, BERT)
    tokenizer, loaded = opened.tokenizer(), opened.model()
    for number, guesses in enumerate(inference.fill(loaded, tokenizer, text, top=top, truncate=truncate), 1):
        print(f"[MASK] {number}")
        for guess in guesses:
            print(f"{guess.probability:8.2%}  {printable(guess.word)}")
