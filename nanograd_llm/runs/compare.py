"""Runs side by side: the settings in which they differ, what they reached, and their losses as curves.

A run of any task has a loss for every step, so runs of different tasks can be compared as well, with care.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.atomic import read_bytes
from nanograd_llm.files.png import png_of, smoothed
from nanograd_llm.runs.folder import RunFolder
from nanograd_llm.tasks.registry import DEFAULT, TASKS, task_named
from nanograd_llm.tasks.task import SAME_ROWS, Score

POINTS = 160  # of a curve at most; each is the mean of the steps around it
DECISIVE = "run.task", "text.tokenizer", "model.vocab_size"  # settings without which losses cannot be compared
COLOURS = "#1f5fa8 #c65f00 #3f7f3f #7b4fa0 #8a6d00 #a03050".split()
SVG_BEGINS = b'<svg xmlns="http://www.w3.org/2000/svg" data-picture="nanograd-llm losses"'
DASHES = ["none", "7 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2"]  # so that curves can be told apart without colour


@dataclasses.dataclass(frozen=True)
class History:
    """What a run did.  N recorded steps, K scores

    settings: those of its config.toml, by "table.name". items: (N,) how many, such as tokens, were trained on by each
    step. seconds: (N,) spent in steps by then. losses: (N,) of each step.
    held_out: (K, 3) items, seconds and the loss on held-out data, all on the same rows. figure: the last score in
        words, "" without one.
    rates: (N,) the learning rates. text: the hash of what was learned from and held out, "" where it is not known.
    share: of the held-out data that the last score is on, nan where it is not known. lost: see `lost_metrics`.
    """

    path: str
    settings: dict[str, Any]
    items: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray
    held_out: np.ndarray
    figure: str
    rates: np.ndarray
    text: str
    share: float
    lost: str = ""

    @property
    def decades(self) -> np.ndarray:
        """(N,) the power of ten by which the learning rate of each step is above the first one."""
        return np.log10(self.rates / self.rates[0]) if self.steps else self.rates

    @property
    def steps(self) -> int:
        """Steps that are recorded."""
        return len(self.losses)

    @property
    def noun(self) -> str:
        """What the items are, such as tokens."""
        task = self.settings.get("run.task", DEFAULT)
        noun: str = task_named(task).model_class.loss_items if task in TASKS else "items"
        return noun


def history(path: str | os.PathLike[str]) -> History:
    """The history of the run at `path`. Raises as `RunFolder.open` and `RunFolder.read_metrics` do."""
    folder = RunFolder.open(path)
    settings = {
        f"{table}.{name}": value for table, values in folder.read_config().items() for name, value in values.items()
    }
    taken: list[tuple[float, float, float, float]] = []
    scored: list[tuple[float, float, float]] = []
    figure, share = "", math.nan
    records = folder.read_metrics()
    for record in records:
        items, seconds = taken[-1][:2] if taken else (0.0, 0.0)
        if "loss" in record:
            try:
                taken.append(
                    (
                        record["items"],
                        seconds + (record["items"] - items) / record["items_per_second"],
                        record["loss"],
                        record.get("learning_rate", math.nan),
                    )
                )
            except (KeyError, ZeroDivisionError) as error:
                raise BadFileError(f"{folder.metrics_path}: step {record['step']:g} has no usable {error}") from None
        elif len(record) > 1:
            figure = Score.figure_of({name: value for name, value in record.items() if name != "step"})
            share = record.get("scored_share", math.nan)
            if "held_out_loss" in record:
                scored.append((items, seconds, record.get(SAME_ROWS, record["held_out_loss"])))
    after, seconds_at, losses, rates = np.array(taken, float).reshape(-1, 4).T
    held_out = np.array(scored, float).reshape(-1, 3)
    text = read_bytes(folder.hash_path, at_most=10_000)[:64].decode("latin-1") if folder.hash_path.exists() else ""
    lost = folder.lost_metrics(records)
    return History(str(folder.path), settings, after, seconds_at, losses, held_out, figure, rates, text, share, lost)


def differences(histories: Sequence[History]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, by name: the value in each run, "" where a run has none.

    A value is one line: the end of a line in it is shown as in Python.
    """
    names = dict.fromkeys(name for one in histories for name in one.settings)
    rows = {name: [str(one.settings.get(name, "")).replace("\n", "\\n") for one in histories] for name in names}
    return {name: row for name, row in rows.items() if len({*row}) > 1}


def remarks(histories: Sequence[History]) -> list[str]:
    """Why the last scores cannot be compared: different data, or different amounts of what is held out."""
    found = []
    shares = ["unknown" if math.isnan(one.share) else f"{float(f'{100 * one.share:.2g}'):g} %" for one in histories]
    if len({one.text for one in histories if one.text}) > 1 or "text.held_out" in differences(histories):
        found.append("The runs have different data (text.sha256), so their scores are on different held-out data.")
    if len({*shares} - {"unknown"}) > 1:
        each = ", ".join(map(" ".join, zip(short_names([one.path for one in histories]), shares)))
        found.append(f"Their last scores are on different shares of the held-out data: {each}.")
    found += [one.lost for one in histories if one.lost]
    if found:
        found.append("Compare the scores with care; nanograd-llm eval scores a model on a text that you give.")
    return found


def short_names(paths: Sequence[str]) -> list[str]:
    """The paths of several runs without the folders that they all lie in.

    >>> short_names(["runs/a", "runs/b"]), short_names(["runs/a"])
    (['a', 'b'], ['runs/a'])
    """
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # absolute and relative ones
        return list(paths)
    return [os.path.relpath(path, common) for path in paths] if common and len({*paths}) > 1 else list(paths)


def sparkline(values: np.ndarray, width: int = 24) -> str:
    """A curve of one line of text, from the highest value to the lowest.

    >>> sparkline(np.array([8.0, 4.0, 2.0, 1.0]), width=4)
    '█▄▂▁'
    """
    values = smoothed(values[np.isfinite(values)], width)
    if not len(values):
        return ""
    low, high = values.min(), values.max()
    heights = np.rint(7 * (values - low) / (high - low if high > low else 1)).astype(int)
    return "".join("▁▂▃▄▅▆▇█"[height] for height in heights)


def loss_picture(histories: Sequence[History]) -> str:
    """An SVG of the losses against the items trained on, and against the seconds of training.

    A line is the training loss, the mean of neighbouring steps; a dot is a loss on held-out data.
    """
    notes = ["line: loss of training; dot: loss on held-out data"]
    if len({tuple(one.settings.get(name) for name in DECISIVE) for one in histories}) > 1:
        notes.append("These runs have different tasks or tokenizers, so their losses are of different things.")
    names = short_names([one.path for one in histories])
    wide, high, left, top = 380, 260, 56, 16
    bottom = top + high + 46 + 18 * (len(histories) + len(notes))
    parts = [
        f'{SVG_BEGINS.decode()} viewBox="0 0 {2 * (wide + left) + 24} {bottom}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    losses = np.concatenate([smoothed(one.losses, POINTS) for one in histories] + [h.held_out[:, 2] for h in histories])
    losses = losses[np.isfinite(losses)]
    low, most = (losses.min(), losses.max()) if len(losses) else (0.0, 1.0)
    low, most = (low, most) if most > low else (low - 0.5, low + 0.5)
    for panel, (axis, name) in enumerate(_against(histories)):
        x0 = left + panel * (wide + left)
        end = max([float(getattr(one, axis)[-1]) for one in histories if one.steps], default=1.0) or 1.0

        def x(value: float, x0: int = x0, end: float = end) -> str:
            return f"{x0 + wide * value / end:.1f}"

        def y(loss: float) -> str:
            return f"{top + high * (1 - (loss - low) / (most - low)):.1f}"

        parts += _axes(x0, top, wide, high, ticks(low, most), end, name, y)
        for number, one in enumerate(histories):
            colour, dash = _style(number)
            curve = smoothed(np.stack([getattr(one, axis), one.losses], axis=1), POINTS)
            points = " ".join(f"{x(at)},{y(loss)}" for at, loss in curve.tolist() if np.isfinite(loss))
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6" '
                f'stroke-dasharray="{dash}"/>'
            )
            for row in one.held_out[np.isfinite(one.held_out[:, 2]) & (axis != "decades")].tolist():
                at = row[0 if axis == "items" else 1]
                parts.append(f'<circle cx="{x(at)}" cy="{y(row[2])}" r="3" fill="{colour}"/>')
    for number, one in enumerate(histories):
        line, (colour, dash) = top + high + 46 + 18 * number, _style(number)
        parts.append(
            f'<line x1="{left}" y1="{line - 4}" x2="{left + 34}" y2="{line - 4}" stroke="{colour}" stroke-width="1.6" '
            f'stroke-dasharray="{dash}"/><text x="{left + 42}" y="{line}">'
            f"{escape(f'{names[number]:.80}')}{escape(f': {one.figure}') if one.figure else ''}</text>"
        )
    for number, note in enumerate(notes, len(histories)):
        parts.append(f'<text x="{left}" y="{top + high + 46 + 18 * number}">{note}</text>')
    return "\n".join([*parts, "</svg>\n"])


def loss_png(histories: Sequence[History]) -> bytes:
    """The picture of `loss_picture` as PNG. Raises ConfigError without matplotlib, of the extra "plot"."""
    names = short_names([one.path for one in histories])

    def draw(figure: Any) -> None:
        for axes, (axis, label) in zip(figure.subplots(1, 2), _against(histories)):
            for number, one in enumerate(histories):
                colour, dash = _style(number)
                steps = (0, tuple(map(float, dash.split()))) if dash != "none" else "-"
                curve = smoothed(np.stack([getattr(one, axis), one.losses], axis=1), POINTS)
                # the space is for a name that begins with _, which a legend leaves out
                axes.plot(*curve.T, color=colour, linestyle=steps, label=f" {names[number]:.80}")
                if axis != "decades":
                    dots = one.held_out[:, [0 if axis == "items" else 1, 2]]
                    axes.plot(*dots.T, "o", color=colour, markersize=4)
            axes.set(xlabel=label, ylabel="loss")
            axes.legend()

    return png_of(draw, 10, 4)


def _against(histories: Sequence[History]) -> tuple[tuple[str, str], tuple[str, str]]:
    """What the losses are drawn against: fields of a History, each with its name for a reader."""
    nouns = {one.noun for one in histories}
    items = nouns.pop() if len(nouns) == 1 else "items"
    second = "seconds", "seconds of training"
    if all(one.settings.get("train.schedule") == "range" and one.steps for one in histories):
        second = "decades", f"the learning rate, in powers of ten above {histories[0].rates[0]:.1e}"
    return ("items", f"{items} trained on"), second


def _style(number: int) -> tuple[str, str]:
    """Colour and dashes of a curve, no two the same among 36."""
    count = len(COLOURS)
    return COLOURS[number % count], DASHES[(number + number // count) % count]


def ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers from `low` to `high`.

    >>> ticks(3.07, 6.95), ticks(0.011, 0.042)
    ([4.0, 5.0, 6.0], [0.02, 0.03, 0.04])
    """
    unit = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(unit * factor for factor in (1, 2, 5) if (high - low) / (unit * factor) < 5)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{number * step:.6g}") for number in range(first, last + 1)]


def _axes(
    x0: int,
    top: int,
    wide: int,
    high: int,
    ticks: Sequence[float],
    end: float,
    name: str,
    y: Callable[[float], str],
) -> list[str]:
    base = top + high
    parts = [f'<path d="M{x0} {top}V{base}H{x0 + wide}" fill="none" stroke="#444"/>']
    for tick in ticks:
        at = float(y(tick)) + 4
        parts.append(f'<text x="{x0 - 6}" y="{at:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{x0}" y="{base + 16}">0</text>')
    parts.append(f'<text x="{x0 + wide}" y="{base + 16}" text-anchor="end">{end:,.0f}</text>')
    parts.append(f'<text x="{x0 + wide / 2}" y="{base + 16}" text-anchor="middle">loss against {escape(name)}</text>')
    return parts
