"""What a GPT does with a text: its surprise token by token, its attention, and gradients read as tokens.

The logit lens gives the last norm and the head the stream of an earlier depth: what would be said if the model ended
there (nostalgebraist, "interpreting GPT: the logit lens", 2020). The gradient lens multiplies the head with the
cotangent of the stream, reversed: which token would a small step down the gradient make likelier?

T tokens but for the last, which is only predicted; L blocks, D = 2L + 1 places of the stream; V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.backend.arrays import beside
from nanograd_llm.errors import ConfigError
from nanograd_llm.models.gpt import GPT
from nanograd_llm.see.record import Record, norm, recorded
from nanograd_llm.settings import counted

BLOCKS = "▁▂▃▄▅▆▇█"


def tokens_and_targets(model: GPT, ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """A text's ids as a batch of one for `loss`: all but the last, and for each the next.  (1, T), (1, T)

    Raises ConfigError for fewer than two ids, or more than fit into the context and one more.
    """
    length = model.config.context_length
    if not 2 <= len(ids) <= length + 1:
        raise ConfigError(
            f"the text has {counted(len(ids), 'token')}; this model can be looked at on 2 to {length + 1}"
        )
    row = np.asarray(ids)[None]
    return row[:, :-1], row[:, 1:]


@dataclass(frozen=True)
class TableUse:
    """One use of the tied table: its gradient's norm, its share of the whole gradient along it, the rows it changes."""

    name: str
    norm: float
    share: float
    rows: int


@dataclass(frozen=True)
class LookResult:
    """What `look` sees.

    bits: (T,) surprise at each next token.  attention: L arrays (H, T, T), row looks at column.
    lens: for each depth its name, the likeliest next token (T,) and its probability (T,).
    gradient_lens: for each place of the stream its name, and the token (T,) that a step against the cotangent favours.
    flow: for each place its name, the norm of the cotangent, and that of each token's part (T,).
    uses: of the token table, the first to arrive first; table_rows: how many it has.
    """

    ids: np.ndarray
    targets: np.ndarray
    bits: np.ndarray
    attention: list[np.ndarray]
    lens: list[tuple[str, np.ndarray, np.ndarray]]
    gradient_lens: list[tuple[str, np.ndarray]]
    flow: list[tuple[str, float, np.ndarray]]
    uses: list[TableUse]
    table_rows: int


def look(model: GPT, ids: Any) -> LookResult:
    """Look at a GPT, in evaluation mode, reading a text of these ids. Raises ConfigError if they do not fit it.

    Also where the token table is frozen, since nothing would be known of its gradient.
    """
    tokens, targets = tokens_and_targets(model, ids)
    if not model.wte.requires_grad:
        raise ConfigError("wte is frozen, so it gets no gradient: call lora.merge(model), or model.unfreeze(), first")
    was_training = model.training
    model.eval()
    try:
        seen = model.look(tokens)
        record = recorded(model.loss, (tokens, targets), {})
        head = model.head_table.numpy()
        lens = []
        for depth, state in enumerate(seen.hidden_states):
            logits = model.ln_f(beside(state[0], model.wte.data)).numpy() @ head.T  # (T, C)·(C, V) -> (T, V)
            p = ops.softmax(logits)
            lens.append((f"after block {depth - 1}" if depth else "embedding", p.argmax(-1), p.max(-1)))
    finally:
        model.train(was_training)
    logp = ops.log_softmax(seen.logits[0])
    bits = -logp[np.arange(tokens.size), targets[0]] / np.log(2)
    places = _stream(record)
    favoured = [(name, (-cotangent @ head.T).argmax(-1)) for name, cotangent in places]
    flow = [(name, norm(cotangent), np.linalg.norm(cotangent, axis=-1)) for name, cotangent in places]
    attention = [maps[0] for maps in seen.attention_maps]
    wte = record.leaves["wte"]
    return LookResult(tokens[0], targets[0], bits, attention, lens, favoured, flow, _uses(wte), len(wte.array))


def _stream(record: Record) -> list[tuple[str, np.ndarray]]:
    """The cotangent (T, C) of the stream into the first block and after each half of a block, the first first."""
    first = next(call for call in record.calls if call.module.startswith("blocks.0"))
    entry = first.inputs[0]
    assert entry is not None and entry.grad is not None
    places = [("into block 0", entry.grad[0])]
    for call in record.calls:
        group, _, number = call.module.partition(".")
        if call.op.name == "add" and group == "blocks" and number.isdigit():
            half = "attention" if places[-1][0] != f"after attention {number}" else "mlp"
            places.append((f"after {half} {number}", call.cotangent[0]))
    return places


def _uses(wte: Any) -> list[TableUse]:
    total = wte.grad.astype(np.float64)
    whole = float(np.vdot(total, total)) or 1.0
    return [
        TableUse(
            {"embedding": "lookup (embedding)"}.get(use.call.op.name, f"head ({use.call.op.name})"),
            norm(use.gradient),
            float(np.vdot(use.gradient.astype(np.float64), total)) / whole,
            int(np.count_nonzero(np.any(use.gradient != 0, axis=-1))),
        )
        for use in wte.uses
    ]


def text_of(result: LookResult, name: Any, columns: int = 100) -> str:
    """The result in lines of at most about so many columns, but for the attention maps. name: the text of an id."""
    most = float(result.bits.max())
    lines = ["how surprised it is at each token, in bits,", "and what it would say instead at each depth"]
    width = 14
    depths = result.lens[-max(1, (columns - width - 10) // (width + 5)) :]  # the last, as many as there is room for
    lines.append(f"{'next token':<{width}} {'bits':>5}    " + "".join(f"{name:<{width + 5}}" for name, _, _ in depths))
    for i, target in enumerate(result.targets):
        bar = BLOCKS[min(7, int(8 * result.bits[i] / (most or 1.0)))]
        cells = "".join(f"{name(best[i]):<{width}.{width}} {p[i]:>3.0%} " for _, best, p in depths)
        lines.append(f"{name(target):<{width}.{width}} {result.bits[i]:>5.1f} {bar}  {cells}")
    lines += ["", "gradient flow: the norm of the stream's cotangent,", "and the tokens that a step against it favours"]
    for (place, size, _), (_, best) in zip(result.flow, result.gradient_lens):
        marked = [f"[{name(b)}]" if b == t else name(b) for b, t in zip(best, result.targets)]
        lines.append(f"{place:<18} {size:>8.4f}  {' '.join(marked)[: columns - 29]}")
    lines += ["", "the gradient of the token table, use by use"]
    for use in result.uses:
        rows = f"in {use.rows:,} of {result.table_rows:,} rows"
        lines += [f"{use.name:<28} norm {use.norm:.4f}", f"  {use.share:.1%} of the whole along it, {rows}"]
    return "\n".join(line.rstrip() for line in lines)


def visible(piece: bytes) -> str:
    r"""A token's bytes as text in which spaces and line ends can be seen; as a literal if they are not valid UTF-8.

    >>> print(visible(b" the"), visible(b"\n"), visible(b"\xe2\x80"))
    ␣the ⏎ \xe2\x80
    """
    try:
        text = piece.decode("utf-8").translate({32: "␣", 10: "⏎", 9: "⇥"})
    except UnicodeDecodeError:
        return repr(piece)[2:-1]
    return text if text.isprintable() else repr(text)[1:-1]
