"""`nanograd-llm tokenize`: the pieces of a text and their ids."""

from __future__ import annotations


def tokenize(text: str, /, *, model: str | None = None, special: bool = False) -> None:
    r"""Show the pieces that a text is cut into, each with its id.

    Parameters
    ----------
    text
        What to cut. One that begins with a dash goes last, behind " -- ".
    model
        Cut as for this model: the folder of a run, or a pretrained model; GPT-2 if not given.
    special
        Take <|endoftext|> in the text as the one token of that name, not as text.
    """
    from nanograd_llm.pretrained import gpt2_tokenizer
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.settings import counted
    from nanograd_llm.text.bpe import readable

    tokenizer = gpt2_tokenizer() if model is None else open_model(model).tokenizer()
    pieces = tokenizer.pieces(text, allow_special=special)
    for i, piece in pieces:
        print(f"{i:>8}  {readable(piece)}")
    size = sum(len(piece) for _, piece in pieces)
    print(f"{counted(len(pieces), 'token')}, {counted(size, 'byte')}, by {tokenizer}")
