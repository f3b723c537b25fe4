"""What a model does with a text, read from a recorded loss: its surprise, its attention, and gradients read as tokens.

The logit lens runs the end of the model on the stream of an earlier depth: what would be said if the model ended there
(nostalgebraist, "interpreting GPT: the logit lens", 2020). The gradient lens multiplies the head with the cotangent of
the stream, reversed: which token would a small step down the gradient make likelier?

What a model says may be tokens or classes. A part that a model does not have is left
out, and a line says so.

N rows of the stream, one for each token; M targets that count; V things to say; L blocks
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.ops.composed import split_heads, unpacked
from nanograd_llm.see.record import Call, Record, Value, norm
from nanograd_llm.see.replay import Replay
from nanograd_llm.settings import IGNORE_INDEX

BLOCKS = "▁▂▃▄▅▆▇█"
_BLOCK = re.compile(r"(?P<stack>.*)\.(?P<number>\d+)")


@dataclass(frozen=True)
class TableUse:
    """One use of the tied table: its gradient's norm, its share of the whole gradient along it, the rows it changes."""

    name: str
    norm: float
    share: float
    rows: int


@dataclass
class LookResult:
    """What `look` sees.

    targets, bits: (M,) what should be said, and the surprise at it.  attention: (module, maps (B, H, T, S)), row looks
        at column.
    lens: for each depth its name, what is likeliest to be said (M,) and its probability (M,).
    gradient_lens: for each place of the stream its name, and what (N,) a step against the cotangent makes likelier.
    flow: for each place its name, the norm of the cotangent, and that of each token's part (N,).
    table, uses: the name of the token table, and its uses, the first to arrive first; table_rows: how many it has.
    missing: lines that say what is left out, and why.
    """

    targets: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    bits: np.ndarray = field(default_factory=lambda: np.zeros(0))
    attention: list[tuple[str, np.ndarray]] = field(default_factory=list)
    lens: list[tuple[str, np.ndarray, np.ndarray]] = field(default_factory=list)
    gradient_lens: list[tuple[str, np.ndarray]] = field(default_factory=list)
    flow: list[tuple[str, float, np.ndarray]] = field(default_factory=list)
    table: str = ""
    uses: list[TableUse] = field(default_factory=list)
    table_rows: int = 0
    missing: list[str] = field(default_factory=list)


def look(record: Record) -> LookResult:
    """Look at a recorded loss of a model of blocks, best of one text and in evaluation mode."""
    found = LookResult(attention=list(_attention(record)))
    stacks = _stacks(record)
    places = [place for stack in stacks for place in _places(record, stack, len(stacks) > 1)]
    rows = [(name, stack, cotangent.reshape(-1, cotangent.shape[-1])) for name, stack, cotangent in places]
    found.flow = [(name, norm(cotangent), np.linalg.norm(cotangent, axis=-1)) for name, _, cotangent in rows]
    for stack in stacks:
        if _entry(record, stack) is None:
            first = _numbers(record, stack)[0]
            found.missing.append(f"What comes into {stack}.{first} gets no gradient, so flow and lens begin after it.")
    if not found.flow:
        found.missing.append("No block has parameters that get a gradient, so there is no gradient flow.")
    head = next((c for c in reversed(record.calls) if c.op.name in ("cross_entropy", "linear_cross_entropy")), None)
    if head is None:
        found.missing.append("The loss compares no tokens or classes with targets: there is no surprise and no lens.")
    else:
        _say(found, record, head, stacks[-1:], rows)
    _table(found, record)
    return found


def _say(found: LookResult, record: Record, head: Call, stacks: list[str], rows: list[Any]) -> None:
    """Fill in what the model says, in the end and at each depth, and what gradients make likelier."""
    scored, *others = [x for x in head.inputs if x is not None]
    targets = others[-1].array.reshape(-1)
    counts = targets != head.static.get("ignore_index", IGNORE_INDEX)
    found.targets = targets[counts]
    maker = scored.made_by
    if len(others) == 2:
        table: Any = others[0].array  # (V, C)
    else:
        table = maker.inputs[1].array.T if maker and maker.op.name == "linear" else None  # type: ignore[union-attr]

    def logits(x: np.ndarray) -> np.ndarray:
        x = x.reshape(-1, x.shape[-1])[counts]
        return x @ table.T if len(others) == 2 else x  # (M, C)·(C, V) -> (M, V)

    said = ops.log_softmax(logits(scored.array))
    found.bits = (0 - said[np.arange(len(said)), found.targets]) / np.log(2)  # 0 rather than -0
    for stack in stacks:
        depths = _depths(record, stack)
        replay = Replay(record, depths[-1][1], scored)
        for name, value in depths:
            p = ops.softmax(logits(replay.computed(value.array.astype(np.float64))))
            found.lens.append((name, p.argmax(-1), p.max(-1)))
        for name, inside, cotangent in rows:
            if table is not None and inside == stack and cotangent.shape[-1] == table.shape[-1]:
                found.gradient_lens.append((name, (-cotangent @ table.T).argmax(-1)))


def _stacks(record: Record) -> list[str]:
    """The paths of the lists of blocks, the one that the loss comes from last."""
    found: dict[str, None] = {}
    for call in record.calls:
        if call.op.name == "add" and (match := _BLOCK.fullmatch(call.module)):
            found.pop(match["stack"], None)
            found[match["stack"]] = None
    return list(found)


def _places(record: Record, stack: str, named: bool) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, stack, cotangent) of the stream into the first block and after each part of a block, the first first."""
    of = f" of the {stack.rpartition('.')[2]}" if named else ""
    if (entry := _entry(record, stack)) is not None and entry.grad is not None:
        yield f"into block 0{of}", stack, entry.grad
    for call in record.calls:
        match = _BLOCK.fullmatch(call.module)
        if call.op.name == "add" and match and match["stack"] == stack:
            part = call.inputs[1]
            module = part.made_by.module if part is not None and part.made_by else ""
            name = module.removeprefix(f"{call.module}.").partition(".")[0].replace("_", "-") or "an addition"
            yield f"after {name} {match['number']}{of}", stack, call.cotangent


def _numbers(record: Record, stack: str) -> list[int]:
    """The numbers of the blocks that were recorded: frozen ones before the first that learns were not."""
    modules = (call.module.removeprefix(f"{stack}.") for call in record.calls if call.module.startswith(f"{stack}."))
    return sorted({int(number) for number in (module.partition(".")[0] for module in modules) if number.isdigit()})


def _entry(record: Record, stack: str) -> Value | None:
    """The stream into block 0: what its first sum adds to. None where that gets no gradient, so was not recorded."""
    calls = record.inside(f"{stack}.0")
    entry = next((call.inputs[0] for call in calls if call.op.name == "add" and call.module == f"{stack}.0"), None)
    is_inside = entry is not None and entry.made_by is not None and entry.made_by in calls
    return None if entry is None or entry.grad is None or is_inside else entry


def _depths(record: Record, stack: str) -> list[tuple[str, Value]]:
    """(name, value) of the stream before the first block, and after each."""
    entry = _entry(record, stack)
    found = [] if entry is None else [("embedding", entry)]
    return found + [(f"after block {n}", record.inside(f"{stack}.{n}")[-1].output) for n in _numbers(record, stack)]


def _attention(record: Record) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of each attention: what it makes of values that are the rows of the identity."""
    for call in record.calls:
        if call.op.name == "multi_head_attention":
            x, kv, key_mask, query_mask = [None if x is None else x.array for x in (*call.inputs, None, None, None)][:4]
            x, kv = unpacked(x, key_mask if kv is None else query_mask), unpacked(kv, key_mask)
            q, k, _ = split_heads(x, kv, call.static["n_head"])
            mask = None if key_mask is None else key_mask[:, None]  # (B, S) -> (B, 1, S)
            kind = {name: call.static[name] for name in ("causal", "scale") if name in call.static}
            yield call.module, np.asarray(ops.attention(q, k, np.eye(k.shape[-2], dtype=q.dtype), mask, **kind))


def _table(found: LookResult, record: Record) -> None:
    """Fill in the uses of the table that the first tokens are looked up in."""
    lookup = next((call for call in record.calls if call.op.name == "embedding"), None)
    table = None if lookup is None else lookup.inputs[0]
    if table is None or table.grad is None:
        found.missing.append("The token table gets no gradient, so there is nothing to divide among its uses.")
        return
    total = table.grad.astype(np.float64)
    whole = float(np.vdot(total, total)) or 1.0
    found.table, found.table_rows = table.label, len(table.array)
    for use in table.uses:
        kind = "lookup" if use.call.op.name == "embedding" else "head"
        name = f"{kind} ({use.call.number} {use.call.op.name})"
        share = float(np.vdot(use.gradient.astype(np.float64), total)) / whole
        rows = int(np.count_nonzero(np.any(use.gradient != 0, axis=-1)))
        found.uses.append(TableUse(name, norm(use.gradient), share, rows))


def text_of(result: LookResult, name: Any, columns: int = 100) -> str:
    """The result in lines of at most about so many columns, but for the attention maps.

    name: the text of what is said, by number.
    """
    lines = []
    width = 14
    if len(result.bits):
        most = float(result.bits.max())
        lines = ["how surprised it is at each target, in bits,", "and what it would say instead at each depth"]
        depths = result.lens[-max(1, (columns - width - 10) // (width + 5)) :]  # the last, as many as there is room for
        lines.append(f"{'target':<{width}} {'bits':>5}    " + "".join(f"{name:<{width + 5}}" for name, _, _ in depths))
        for i, target in enumerate(result.targets):
            bar = BLOCKS[min(7, int(8 * result.bits[i] / (most or 1.0)))]
            cells = "".join(f"{name(best[i]):<{width}.{width}} {p[i]:>3.0%} " for _, best, p in depths)
            lines.append(f"{name(target):<{width}.{width}} {result.bits[i]:>5.1f} {bar}  {cells}")
        lines.append("")
    if result.flow:
        favoured = dict(result.gradient_lens)
        lines.append("gradient flow: the norm of the stream's cotangent,")
        lines += ["and for each token the word that a step against", "it makes likelier,"] if favoured else ["by place"]
        lines += ["in [ ] where this word is the target"] if favoured else []
        wide = max(len(place) for place, _, _ in result.flow)
        for place, size, _ in result.flow:
            best = favoured.get(place, ())
            same = len(best) == len(result.targets)
            marked = [f"[{name(b)}]" if same and b == result.targets[i] else name(b) for i, b in enumerate(best)]
            lines.append(f"{place:<{wide}} {size:>8.4f}  {' '.join(marked)[: columns - wide - 11]}")
        lines.append("")
    if result.uses:
        lines += [f"the gradient of {result.table}, the token table, use by use:"]
        lines += ["% is its share of the whole gradient, in the direction", "of the whole; the shares add up to 100%"]
    for use in result.uses:
        rows = f"in {use.rows:,} of {result.table_rows:,} rows"
        lines += [f"{use.name:<28} norm {use.norm:.4f}", f"  {use.share:.1%} of the whole, {rows}"]
    return "\n".join(line.rstrip() for line in [*lines, *result.missing])


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
