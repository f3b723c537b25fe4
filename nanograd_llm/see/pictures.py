"""HTML pages without scripts: what `look` sees of a text, and the curves of training runs, also as PNG."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nanograd_llm.files.png import png_of, smoothed
from nanograd_llm.see.look import LookResult
from nanograd_llm.see.page import shell

POINTS = 200  # of a curve at most; each is the mean of the steps around it
CHARTS = (  # title, x, y, is y logarithmic?
    ("loss, by step", "step", "loss", False),
    ("loss, by items trained on", "items", "loss", False),
    ("loss, by seconds of training", "seconds", "loss", False),
    ("learning rate, by step", "step", "learning_rate", False),
    ("norm of the gradient, by step (log)", "step", "gradient_norm", True),
)
_DASHES = "", "7 3", "2 3", "9 3 2 3", "12 4"


def look_page(result: LookResult, title: str, name: Callable[[int], str]) -> str:
    """The page of what `look` sees. name: the text of what is said, by number."""
    targets = [name(i) for i in result.targets]
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(line)}</p>" for line in result.missing)]
    if targets:
        most = float(result.bits.max()) or 1.0
        surprise = [(f"{t}\n{bits:.1f}", bits / most, False) for t, bits in zip(targets, result.bits)]
        parts += ["<h2>how surprised it is at each target, in bits</h2>", _table([], [("bits", surprise)])]
    if result.attention:
        heads = "".join(
            f'<tr><th scope="row">{html.escape(module)}{f", text {row + 1}" if len(maps) > 1 else ""}</th>'
            + "".join(f"<td>{_attention(head, i)}<br>head {i}</td>" for i, head in enumerate(of_text))
            + "</tr>"
            for module, maps in result.attention
            for row, of_text in enumerate(maps)
        )
        parts.append("<h2>attention: row looks at column; one scale, 0 to 1</h2>" + _scrolled(heads))
    if result.lens:
        lens = [
            (depth, [(f"{name(b)}\n{q:.0%}", float(q), b == t) for b, q, t in zip(best, p, result.targets)])
            for depth, best, p in reversed(result.lens)
        ]
        parts += [
            "<h2>logit lens: what each depth would say, framed where that is the target</h2>",
            _table([], [*lens, _truth(targets)]),
        ]
    if result.gradient_lens:
        same = len(result.gradient_lens[0][1]) == len(targets)
        favoured = [
            (place, [(name(b), 0.0, same and b == result.targets[i]) for i, b in enumerate(best)])
            for place, best in reversed(result.gradient_lens)
        ]
        heading = "gradient lens: what a step against the cotangent makes likelier, at each depth, token by token"
        parts += [f"<h2>{heading}</h2>", _table([], [*favoured, *([_truth(targets)] if same else [])])]
    if result.flow:
        largest = max(size for _, size, _ in result.flow) or 1.0
        flow = "".join(
            f'<tr><th scope="row">{html.escape(place)}</th><td class="num">{size:.4f}</td>'
            f"<td>{_bar(size / largest)}</td><td>{_strip(parts)}</td></tr>"
            for place, size, parts in result.flow
        )
        parts.append("<h2>gradient flow: the norm of the stream's cotangent, and of each token's part</h2>")
        parts.append(_scrolled(flow))
    if result.uses:
        uses = "".join(
            f'<tr><th scope="row">{html.escape(use.name)}</th><td>norm {use.norm:.4f}</td>'
            f"<td>{use.share:.1%} of the whole, in its direction</td>"
            f"<td>{use.rows:,} of {result.table_rows:,} rows</td></tr>"
            for use in result.uses
        )
        parts += [f"<h2>the gradient of {html.escape(result.table)}, the token table, use by use</h2>", _scrolled(uses)]
    return shell(title, "".join(parts))


def _scrolled(rows: str) -> str:
    return f'<div class="scroll" tabindex="0"><table class="plain">{rows}</table></div>'


def _truth(targets: Sequence[str]) -> tuple[str, list[tuple[str, float, bool]]]:
    return "target", [(target, 0.0, False) for target in targets]


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[tuple[str, float, bool]]]]) -> str:
    """Cells of a text, a shade from 0 to 1, and whether they are right, which frames them."""
    parts = [f"<tr><td></td>{''.join(f'<th scope=col>{html.escape(h)}</th>' for h in head)}</tr>"] if head else []
    for name, cells in rows:
        shown = "".join(
            f'<td class="s{min(9, int(10 * shade))}{" right" if right else ""}">'
            f"{html.escape(text).replace(chr(10), '<br>')}</td>"
            for text, shade, right in cells
        )
        parts.append(f'<tr><th scope="row">{html.escape(name)}</th>{shown}</tr>')
    return f'<div class="scroll" tabindex="0"><table class="plain cells">{"".join(parts)}</table></div>'


def _bar(share: float) -> str:
    return f'<svg class="plus" width="200" height="10" role="img" aria-label="{share:.2f} of the largest">' + (
        f'<rect width="{200 * share:.1f}" height="10"/></svg>'
    )


def _strip(parts: np.ndarray) -> str:
    most = float(parts.max()) or 1.0
    cells = "".join(
        f'<rect x="{14 * i}" width="14" height="14" fill-opacity="{p / most:.2f}"/>' for i, p in enumerate(parts)
    )
    return f'<svg class="minus" width="{14 * len(parts)}" height="14" role="img" aria-label="by token">{cells}</svg>'


def _attention(maps: np.ndarray, head: int) -> str:
    size = max(3, min(12, 160 // len(maps)))
    cells = "".join(
        f'<rect x="{size * j}" y="{size * i}" width="{size}" height="{size}" fill-opacity="{maps[i, j]:.2f}"/>'
        for i, j in np.argwhere(maps >= 0.01)
    )
    side = size * len(maps)
    return f'<svg class="minus frame" width="{side}" height="{side}" role="img" aria-label="head {head}">{cells}</svg>'


def training_page(runs: Mapping[str, Sequence[Mapping[str, Any]]], watched: Mapping[str, Any]) -> str:
    """The curves of training runs. runs: name -> the records of metrics.jsonl.  watched: name -> those of --watch."""
    names = list(runs)
    drawn = [_chart(title, [(runs[n], x, y) for n in names], log) for title, x, y, log in CHARTS]
    legend = "".join(
        f'<li><svg width="40" height="10" aria-hidden="true"><path d="M0 5H40" class="line" {_dash(i)}/></svg> '
        f"{html.escape(name)}</li>"
        for i, name in enumerate(names)
    )
    pictures = [_watched(name, records) for name, records in watched.items() if records]
    title = ", ".join(names)
    main = f'<h1>{html.escape(title)}</h1><ul class="legend">{legend}</ul><div class="maps">{"".join(drawn)}</div>'
    return shell(title, main + "".join(pictures))


def training_png(runs: Mapping[str, Sequence[Mapping[str, Any]]], watched: Mapping[str, Any]) -> bytes:
    """The pictures of `training_page` as PNG. Raises ConfigError without matplotlib, of the extra "plot"."""
    pictures: list[tuple[Callable[..., None], float, str, Sequence[Mapping[str, Any]]]] = []
    for name, records in watched.items():
        if records and (layers := len(records[-1]["update"])):
            pictures.append((_draw_updates, 1.5 + 0.16 * layers, name, records))
        if records and (rows := -(-len(records[-1]["activations"]) // 6)):
            pictures.append((_draw_activations, 0.5 + 2 * rows, name, records))
    heights = [7.0, *(height for _, height, *_ in pictures)]

    def draw(figure: Any) -> None:
        from matplotlib.ticker import LogFormatter, MaxNLocator

        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        panels = parts[0].subplots(2, 3)
        for axes, (title, x, y, log) in zip(panels.flat, CHARTS):
            for number, (name, records) in enumerate(runs.items()):
                curve = series(records, x, y)
                style = (0, tuple(map(float, dash.split()))) if (dash := _DASHES[number % len(_DASHES)]) else "-"
                # the space is for a name that begins with _, which a legend leaves out
                values = np.maximum(curve[:, 1], 1e-12) if log else curve[:, 1]
                axes.plot(curve[:, 0], values, linestyle=style, label=f" {name:.80}")
            axes.set(title=title, yscale="log" if log else "linear")
            axes.xaxis.set_major_locator(MaxNLocator(4))  # more numbers of items would touch each other
            if log:  # its own labels are mathematics
                axes.yaxis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter())
        panels[1, 2].axis("off")
        panels[1, 2].legend(*panels[0, 0].get_legend_handles_labels(), loc="upper left")
        for part, (draw_part, _, name, records) in zip(parts[1:], pictures):
            draw_part(part, name, records)

    return png_of(draw, 14, min(sum(heights), 600))  # matplotlib draws 65,535 pixels at most


def _draw_updates(figure: Any, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    layers = list(records[-1]["update"])
    ratios = np.log10([[record["update"].get(layer, math.nan) for record in records] for layer in layers])
    axes = figure.subplots()
    image = axes.imshow(ratios, aspect="auto", interpolation="nearest", vmin=-5, vmax=-1)
    at = np.unique(np.linspace(0, len(records) - 1, 12).astype(int))
    axes.set_xticks(at, [str(records[i]["step"]) for i in at])
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.set(title=f"{name:.80}: update ÷ weight, by step; about 0.001 is usual")
    figure.colorbar(image, ax=axes, label="power of ten")


def _draw_activations(figure: Any, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    step, found = records[-1]["step"], records[-1]["activations"]
    figure.suptitle(f"{name:.80}: what goes into the activations at step {step}; flat is where the slope is below 0.01")
    panels = figure.subplots(-(-len(found) // 6), 6, squeeze=False).flat
    for axes in panels[len(found) :]:
        axes.axis("off")
    for axes, (place, a) in zip(panels, found.items()):
        axes.stairs(a["counts"], np.linspace(a["low"], a["high"], len(a["counts"]) + 1), fill=True)
        axes.set(yticks=())
        axes.set_title(f"{place}\nmean {a['mean']:.2f}, std {a['std']:.2f}, flat {a['flat']:.1%}", fontsize=7)


def series(records: Sequence[Mapping[str, Any]], x: str, y: str) -> np.ndarray:
    """(N, 2): two numbers of each record of a step; `seconds` are added up from the rate of each step."""
    steps = [record for record in records if "loss" in record and "learning_rate" in record]
    seconds, items, rows = 0.0, 0.0, []
    for record in steps:
        seconds += (record["items"] - items) / record["items_per_second"] if record.get("items_per_second") else 0.0
        items = record["items"]
        known = {**record, "seconds": seconds}
        rows.append((float(known[x]), float(known[y])))
    found = np.array(rows).reshape(-1, 2)
    return smoothed(found[np.isfinite(found).all(axis=1)], POINTS)


def _dash(number: int) -> str:
    return f'stroke-dasharray="{_DASHES[number % len(_DASHES)]}" data-run="{number % 6}"'


def _chart(title: str, of: Sequence[tuple[Any, str, str]], log: bool) -> str:
    curves = [series(*one) for one in of]
    curves = [np.stack([c[:, 0], np.log10(np.maximum(c[:, 1], 1e-12))], 1) if log else c for c in curves]
    every = np.concatenate([*curves, np.zeros((0, 2))])
    if not len(every):
        return f"<figure><figcaption>{title}: no steps yet</figcaption></figure>"
    low, high = every.min(axis=0), every.max(axis=0)
    if low[1] == high[1]:  # in the middle
        low, high = low - (0, abs(low[1]) or 1), high + (0, abs(high[1]) or 1)
    span = np.where(high > low, high - low, 1.0)
    lines = ""
    for number, curve in enumerate(curves):
        points = [f"{60 + 300 * a:.1f} {170 - 150 * b:.1f}" for a, b in ((curve - low) / span).tolist()]
        lines += f'<path class="line" {_dash(number)} d="M{"L".join(points)}"/>' if points else ""
    bottom, top = (f"{10**v if log else v:.3g}" for v in (low[1], high[1]))
    return (
        f'<figure><svg width="380" height="200" viewBox="0 0 380 200" role="img" '
        f'aria-label="{title}, from {bottom} to {top}">'
        f'<path class="axis" d="M60 20V170H360"/>{lines}<text x="54" y="26" text-anchor="end">{top}</text>'
        f'<text x="54" y="172" text-anchor="end">{bottom}</text><text x="60" y="188">{low[0]:,.0f}</text>'
        f'<text x="360" y="188" text-anchor="end">{high[0]:,.0f}</text></svg><figcaption>{title}</figcaption></figure>'
    )


def _watched(name: str, records: Sequence[Mapping[str, Any]]) -> str:
    """One picture over all layers: how large each update was beside its weights; and the activations at the end."""
    layers = list(records[-1]["update"])
    shades = []
    for layer in layers:
        ratios = [math.log10(max(record["update"].get(layer, 0.0), 1e-12)) for record in records]
        cells = [(f"{10**r:.1g}", min(0.99, max(0.0, (r + 5) / 4)), False) for r in ratios[-12:]]
        shades.append((layer, cells))
    steps = [str(record["step"]) for record in records[-12:]]
    histograms = "".join(
        f"<figure>{_histogram(a['counts'])}<figcaption>{html.escape(place)}: mean {a['mean']:.2f}, std {a['std']:.2f}, "
        f"flat {a['flat']:.1%}<br>from {a['low']:.1f} to {a['high']:.1f}</figcaption></figure>"
        for place, a in records[-1]["activations"].items()
    )
    return (
        f"<h2>{html.escape(name)}: update ÷ weight, by step; about 0.001 is usual</h2>{_table(steps, shades)}"
        f"<h2>{html.escape(name)}: what goes into the activations at step {records[-1]['step']}; flat is where the "
        f'slope is below 0.01</h2><div class="maps">{histograms}</div>'
    )


def _histogram(counts: Sequence[int]) -> str:
    most = max(counts) or 1
    bars = "".join(
        f'<rect x="{5 * i}" y="{60 - 60 * n / most:.1f}" width="4" height="{60 * n / most:.1f}"/>'
        for i, n in enumerate(counts)
    )
    return f'<svg class="plus" width="{5 * len(counts)}" height="60" role="img" aria-label="histogram">{bars}</svg>'
