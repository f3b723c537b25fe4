"""A recorded pass as one HTML file that needs no network: the code that steps through it, and the numbers.

Arrays are stored once each, as base64. A large one is pooled: each cell is the entry of largest size, with its sign.
The chain rule and nudges are worked out here for the entries that can be clicked.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import inspect
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.errors import ConfigError
from nanograd_llm.files.atomic import require_folder
from nanograd_llm.see.record import Call, Record, Value, norm
from nanograd_llm.see.replay import Around, Replay, calls_below, composition, nudge, terms, wrong_places
from nanograd_llm.see.source import source_lines

WHOLE = 48  # entries of an array that is clickable everywhere
TOP = 6  # the largest entries of others
SHOWN_TERMS = 5
LARGE = 2e5  # numbers of a call from which on only the largest entry of each gradient is worked out, and quickly
COMPARED = 2e6  # numbers of a call up to which all its gradients are compared
_SLOPES, _REPLAYED = 1e9, 4e9  # numbers that may be computed with for terms, and for nudges
_MANY = 40  # calls from which on arrays are pooled more, and only the first call of each kind opens
_CELLS, _FEW_CELLS = 2048, 800
_COLUMNS = 96
NOTEBOOK_BYTES, NOTEBOOK_NUMBERS = 2**20, 10**5  # of a page, and of the leaves, that a cell of a notebook shows whole


def page(record: Record, *tokens: list[str]) -> str:
    """The HTML page of a record. tokens: of each text, names for the rows of arrays that have one for each token."""
    with blas_threads(1):  # many small products
        data = _Packer(record, tokens).data
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return shell(record.title, plain_table(record), script=code("page.js"), data=text)


def shell(title: str, main: str, *, script: str = "", data: str = "") -> str:
    """An HTML document with our style, and a policy by which it can load nothing and run no other script."""
    style = code("page.css")
    policy = f"default-src 'none'; style-src '{_digest(style)}'; base-uri 'none'; form-action 'none'"
    policy += f"; script-src '{_digest(script)}'" if script else ""
    scripts = f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script>' if script else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main id="main">
{main}
</main>
{scripts}
</body>
</html>
"""


@functools.cache
def code(name: str) -> str:
    return (Path(__file__).parent / name).read_text("utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def plain_table(record: Record) -> str:
    """The calls as an HTML table, which stands on the page until a script runs, and where none may."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("", "op", "module", "shape", "|y|", "|ȳ|", "rule"))
    rows = "".join(
        f"<tr><td>{c.number}</td><td>{html.escape(c.op.name)}</td><td>{html.escape(c.module)}</td>"
        f"<td>{c.output.array.shape}</td><td>{norm(c.output.array):.3g}</td><td>{norm(c.cotangent):.3g}</td>"
        f"<td>{html.escape(c.rule_place)}</td></tr>"
        for c in record.calls
    )
    return f'<h1>{html.escape(record.title)}</h1>\n<table class="plain"><tr>{head}</tr>{rows}</table>'


def pooled(a: np.ndarray, cells: int) -> tuple[np.ndarray, int, int, np.ndarray | None]:
    """The array as a table of at most about so many cells, how many rows and columns of it one cell stands for, places.

    Rows are along all axes but the last; a long array of one axis is folded into rows. Each cell has the entry of
    largest size among those it stands for, with its sign. places: which of them that is, counted row by row; None where
    each cell stands for one entry.
    """
    flat = a.reshape(-1, a.shape[-1]) if a.ndim > 1 and a.size else a.reshape(1, -1)
    if len(flat) == 1 and flat.shape[1] > _COLUMNS and flat.shape[1] % 64 == 0:
        flat = flat.reshape(-1, 64)
    if flat.size <= cells or not flat.size:
        return flat, 1, 1, None
    by_column = math.ceil(flat.shape[1] / _COLUMNS)
    columns = math.ceil(flat.shape[1] / by_column)
    by_row = math.ceil(len(flat) / max(1, cells // columns))
    table = np.empty((math.ceil(len(flat) / by_row), columns), flat.dtype)
    places = np.empty(table.shape, np.min_scalar_type(by_row * by_column - 1))
    for r in range(len(table)):
        rows = flat[r * by_row : (r + 1) * by_row]
        full = np.zeros((len(rows), columns * by_column), flat.dtype)  # the last cell of a row may lack columns
        full[:, : flat.shape[1]] = rows
        blocks = full.reshape(len(rows), columns, by_column).swapaxes(0, 1).reshape(columns, -1)
        places[r] = np.abs(blocks).argmax(axis=1)
        table[r] = blocks[np.arange(columns), places[r]]
    return table, by_row, by_column, places


class _Packer:
    """Collects what the page shows of a record, each array once."""

    def __init__(self, record: Record, tokens: Sequence[list[str]]):
        self.cells = _FEW_CELLS if len(record.calls) > _MANY else _CELLS
        self.arrays: list[dict[str, Any]] = []
        self.known: dict[Any, int] = {}
        self.by_id: dict[int, int] = {}
        self.alive: list[np.ndarray] = []  # what is known by its id must live
        self.sources: list[str] = []
        self.terms_left, self.nudges_left = _SLOPES, _REPLAYED
        self.widened: dict[int, np.ndarray] = {}
        self.data = {
            **self.pass_of(record, opens=True),
            "arrays": self.arrays,
            "sources": self.sources,
            "tokens": tokens,
        }

    def pass_of(self, record: Record, *, opens: bool) -> dict[str, Any]:
        values = list(record.values())
        numbers = {id(value): i for i, value in enumerate(values)}
        kinds: set[Any] = set()
        calls = []
        for call in record.calls:
            kind = call.op.name, tuple(x.array.shape for x in call.inputs if x is not None)
            may_open = opens and call.op.equals is not None and (len(record.calls) <= _MANY or kind not in kinds)
            kinds.add(kind)
            calls.append({**self.call(call, numbers, opens), "open": self.opened(record, call) if may_open else None})
        nudges: dict[int, Any] = {}
        if opens:  # sums of several uses first, then what is not far from the result
            costs = {id(v): 1 + 2 * sum(map(_numbers, calls_below(record, v))) for v in values}
            for value in sorted(values, key=lambda v: (len(v.uses) < 2, v.made_by is not None, costs[id(v)])):
                nudges[id(value)] = self.nudges(record, value, costs[id(value)])
        return {
            "title": record.title,
            "values": [self.value(value, nudges.get(id(value), {})) for value in values],
            "calls": calls,
        }

    def opened(self, record: Record, call: Call) -> Any:
        inside = composition(record, call, Record)
        return self.pass_of(inside, opens=False)

    def value(self, value: Value, nudges: dict[str, Any]) -> dict[str, Any]:
        return {
            "n": value.label,
            "a": self.array(value.array),
            "g": None if value.grad is None else self.array(value.grad),
            "made": value.made_by.number if value.made_by else -1,
            "uses": [[use.call.number, use.place, self.array(use.gradient)] for use in value.uses],
            "hook": value.hooked,
            "nudge": nudges,
        }

    def call(self, call: Call, numbers: dict[int, int], deep: bool) -> dict[str, Any]:
        inputs, around = [], Around(call)
        compared, wrong = _numbers(call) <= COMPARED, self.wrong(call, around)
        for i, x in enumerate(call.inputs):
            if x is not None:
                known = {"v": numbers[id(x)]} if id(x) in numbers else {"a": self.array(x.array)}
                sent = call.sent[i]
                shown: dict[str, Any] = {}
                if sent is not None:
                    shown = {
                        "g": self.array(sent),
                        "t": self.terms(call, i, around) if deep else {},
                        "ok": int(i not in wrong) if compared else -1,
                    }
                inputs.append({"n": call.input_name(i), "i": i, **known, **shown})
        kept = [(name, x) for name, x in call.kept.items() if isinstance(x, np.ndarray)]
        return {
            "op": call.op.name,
            "module": call.module,
            "doc": (inspect.getdoc(call.op) or "").partition("\n")[0],
            "f": call.op.formula,
            "adj": call.op.adjoint,
            "at": call.call_place,
            "src": call.source,
            "in": inputs,
            "static": [f"{name} = {value!r:.60}" for name, value in call.static.items()],
            "y": numbers[id(call.output)],
            "forward": self.source(call.op.forward),
            "keeps": call.op.keeps,
            "rule": self.source(call.op.rule),
            "ruleat": call.rule_place,
            "kept": [[name, self.array(x)] for name, x in kept],
        }

    def source(self, f: Any) -> int:
        source = "\n".join(source_lines(f))
        if source not in self.sources:
            self.sources.append(source)
        return self.sources.index(source)

    def array(self, a: np.ndarray) -> int:
        if id(a) in self.by_id:
            return self.by_id[id(a)]
        content: Any = id(a) if a.size > 2**20 else hashlib.sha1(np.ascontiguousarray(a).tobytes()).digest()
        key = a.shape, a.dtype.str, content
        if key not in self.known:
            table, rows, columns, places = pooled(a, self.cells)
            packed = table.astype("<f4" if a.dtype.itemsize <= 4 and a.dtype.kind == "f" else "<f8")
            self.known[key] = len(self.arrays)
            more: dict[str, Any] = {}
            if places is not None:
                more = {"p": [rows, columns], "norm": _short(norm(a)), "o": _base64(places), "ob": places.itemsize}
            self.arrays.append(
                {
                    "s": a.shape,
                    "d": str(a.dtype),
                    "g": table.shape,
                    "b": _base64(packed),
                    **more,
                }
            )
        self.alive.append(a)
        self.by_id[id(a)] = self.known[key]
        return self.known[key]

    def entries(self, gradient: np.ndarray, x: np.ndarray, work: float, left: float) -> list[int]:
        """The entries to work out, as places in the flat array: those with the largest gradients, all where few.

        work: of one entry, of which there is `left`.
        """
        count = min(1 if work > LARGE else TOP if gradient.size > WHOLE else gradient.size, int(left / work))
        sizes = np.abs(gradient).reshape(-1)
        if count == 1:
            places = np.array([int(np.argmax(sizes if np.isfinite(sizes.max()) else np.nan_to_num(sizes)))])
        else:
            sizes = np.nan_to_num(sizes)
            places = np.sort(np.argpartition(-sizes, count)[:count]) if count < gradient.size else np.arange(count)
        return [int(i) for i in places if np.isfinite(x.flat[i])]

    def terms(self, call: Call, place: int, around: Around) -> dict[str, Any]:
        sent, x = call.sent[place], call.inputs[place]
        assert sent is not None and x is not None
        work = 2 * _numbers(call)
        found: dict[str, Any] = {}
        for flat in self.entries(sent, x.array, work, self.terms_left):
            self.terms_left -= work
            index = tuple(map(int, np.unravel_index(flat, sent.shape)))
            one = terms(call, place, index, quick=work > LARGE, around=around)
            shown, rest = one.terms[:SHOWN_TERMS], one.terms[SHOWN_TERMS:]
            places = [int(np.ravel_multi_index(k, call.cotangent.shape)) if k else 0 for k, _, _ in shown]
            found[str(flat)] = [
                [[k, _short(a), _short(b)] for k, (_, a, b) in zip(places, shown)],
                [len(rest), _short(math.fsum(a * b for _, a, b in rest))],
                _short(one.total, 9),
                _short(one.sent, 9),
                one.agreement,
            ]
        return found

    def wrong(self, call: Call, around: Around) -> list[int]:
        """The places of the inputs whose gradients do not agree with the forward's slopes: see `wrong_places`.

        The gradients of a large call are compared together, along one direction; those of the largest are not.
        """
        places = [place for place, sent in enumerate(call.sent) if sent is not None]
        size = _numbers(call)
        if size > COMPARED or (size > LARGE and (not places or around.agrees(places, 1, quick=True))):
            return []
        return wrong_places(call, around)

    def nudges(self, record: Record, value: Value, work: float) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if value.grad is None or work > self.nudges_left:
            return found
        replay = Replay(record, value, widened=self.widened)
        for flat in self.entries(value.grad, value.array, work, self.nudges_left):
            self.nudges_left -= work
            index = tuple(map(int, np.unravel_index(flat, value.grad.shape)))
            one = nudge(record, value, index, replay, quick=True)
            found[str(flat)] = [_short(one.slope), _short(one.backward), one.agreement, _short(one.tolerance, 1)]
        return found


def _numbers(call: Call) -> int:
    """How many numbers go into a call and come out."""
    return call.output.array.size + sum(x.array.size for x in call.inputs if x is not None)


def _base64(a: np.ndarray) -> str:
    little = np.ascontiguousarray(a, a.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


def _short(x: float, digits: int = 6) -> float | str:
    """A number with few digits; JSON has no infinities and no NaN, so these are strings."""
    return float(f"{x:.{digits}g}") if math.isfinite(x) else str(x)


def notebook(record: Record) -> str:
    """The page for a cell of a notebook, escaped in an iframe, which keeps its scripts; of a large one the table."""
    table = plain_table(record)
    if sum(leaf.array.size for leaf in record.leaves.values()) > NOTEBOOK_NUMBERS:
        return table
    text = page(record)
    inside = html.escape(text, quote=True)
    iframe = f'<iframe srcdoc="{inside}" width="100%" height="720" title="a recorded pass"></iframe>'
    return iframe if len(text.encode()) <= NOTEBOOK_BYTES else table


def require_html(path: Any) -> Path:
    """The path. Raises ConfigError unless it ends in .html, StorageError unless its folder can be written to."""
    if not isinstance(path, (str, os.PathLike)) or Path(path).suffix != ".html":
        raise ConfigError(f"a page ends in .html, such as step.html; got {path}")
    require_folder(path)
    return Path(path)
