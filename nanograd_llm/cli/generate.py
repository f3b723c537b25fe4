"""`nanograd-llm generate`: a trained model continues a prompt."""

from __future__ import annotations


def generate(
    model: str,
    prompt: str | None = None,
    /,
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 0.95,
    seed: int = 0,
    cache: bool = True,
) -> None:
    """Continue a prompt with a model; the text appears as it is written.

    Parameters
    ----------
    model
        The folder of a run, or a pretrained model: a folder, a file or a name, such as gpt2.
    prompt
        What to continue; a new line if not given, or the first character of an alphabet that has none. One that begins
        with a dash goes last, behind " -- ".
    max_new_tokens
        Tokens to write; the text ends earlier where the model says so.
    temperature
        0 takes the likeliest token always; below 1 is careful, above 1 bold.
    top_k
        Choose among the k likeliest tokens only; all if not given.
    top_p
        Choose among the likeliest tokens that together have this probability.
    seed
        The same seed writes the same text.
    cache
        Keep keys and values instead of computing them again; the text is the same.
    """
    from nanograd_llm.inference import Sampling, opening, stream_text
    from nanograd_llm.runs.opening import open_model

    opened = open_model(model)
    tokenizer, loaded = opened.tokenizer(), opened.model()
    prompt = prompt or opening(tokenizer)
    ids = tokenizer.encode(prompt)
    sampling = Sampling(temperature, top_k, top_p)
    pieces = stream_text(
        loaded, tokenizer, ids, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, cache=cache
    )
    print(prompt + next(pieces, ""), end="", flush=True)  # only once the first piece shows that all is well
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
