"""`nanograd-llm tokenize`: show the tokens of a text and their ids."""

from __future__ import annotations


def tokenize(text: str, /, *, model: str | None = None, special: bool = False) -> None:
    r"""Show the pieces that a tokenizer splits a text into, each with its id.

    Parameters
    ----------
    text
        The text to split. Put one that begins with a dash last, after " -- ".
    model
        Use the tokenizer of this model: the folder of a run, or a pretrained model; if not given GPT-2, or
        bytes where that is not on this machine and cannot be fetched.
    special
        Read <|endoftext|> in the text as that token, not as ordinary text.
    """
    import warnings

    from nanograd_llm.errors import StorageError
    from nanograd_llm.pretrained import gpt2_tokenizer
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.settings import counted
    from nanograd_llm.text import ByteTokenizer, Tokenizer
    from nanograd_llm.text.bpe import readable

    try:
        tokenizer: Tokenizer = gpt2_tokenizer() if model is None else open_model(model).tokenizer()
    except StorageError:
        if model is not None:
            raise
        warnings.warn(
            "GPT-2's tokenizer is not on this machine, so each byte is a token; --model RUN takes that of a run",
            stacklevel=2,
        )
        tokenizer = ByteTokenizer()
    pieces = tokenizer.pieces(text, allow_special=special)
    for i, piece in pieces:
        print(f"{i:>8}  {readable(piece)}")
    size = sum(len(piece) for _, piece in pieces)
    print(f"{counted(len(pieces), 'token')}, {counted(size, 'byte')}, by {tokenizer}")
