"""What a classifier mistakes for what: a table of its classes, and the confusion matrix, also as a picture.

N texts, K classes
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

MOST_SHOWN = 20  # classes of a table
MOST_DRAWN = 40  # classes of a picture


def confusion_matrix(classes_of: np.ndarray, guesses: np.ndarray, classes: int) -> np.ndarray:
    """How many texts of each class were taken for each: row the right class, column the guess.  (N,), (N,) -> (K, K)

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (classes_of, guesses), 1)
    return matrix


def class_table(matrix: np.ndarray, names: Sequence[str]) -> str:
    """A line for each class, those with most texts first: precision, recall, texts, and what it is mostly taken for.

    >>> print(class_table(np.array([[3, 1], [0, 4]]), ["ham", "spam"]))
    class  precision  recall  texts  mostly taken for (times)
    ham        100 %    75 %      4  spam (1)
    spam        80 %   100 %      4
    """
    width = max(5, *(min(24, len(name)) for name in names))
    lines = [f"{'class':<{width}}  precision  recall  texts  mostly taken for (times)"]
    right, texts, guessed = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    order = np.argsort(-texts, kind="stable")
    for k in order[:MOST_SHOWN].tolist():
        wrong = np.where(np.arange(len(names)) == k, 0, matrix[k])
        mistaken = f"{names[int(wrong.argmax())]:.24} ({wrong.max():,})" if wrong.any() else ""
        shares = "  ".join(
            f"{f'{100 * right[k] / of[k]:.0f} %' if of[k] else '-':>{room}}" for of, room in ((guessed, 9), (texts, 6))
        )
        lines.append(f"{names[k]:<{width}.24}  {shares}  {texts[k]:>5,}  {mistaken}".rstrip())
    more = len(names) - len(lines) + 1
    return "\n".join(lines + [f"and {more:,} classes with fewer texts"] * (more > 0))


def confusion_picture(matrix: np.ndarray, names: Sequence[str]) -> str:
    """The matrix as an SVG: a row for each class, darker the larger the share of its texts that has this guess.

    Of more than 40 classes those with the most texts are drawn.
    """
    if len(names) > MOST_DRAWN:
        most = np.sort(np.argsort(-matrix.sum(axis=1), kind="stable")[:MOST_DRAWN])
        matrix, names = matrix[np.ix_(most, most)], [names[k] for k in most]
    cell, left, top = 34, 150, 120
    size = cell * len(names)
    width, height = left + size + 20, top + size + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        '  font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="{height - 14}">row: the right class; column: what the model says</text>',
    ]
    for row, name in enumerate(names):
        middle, shown = cell * row + cell // 2, escape(f"{name:.20}")
        parts.append(f'<text x="{left - 8}" y="{top + middle + 4}" text-anchor="end">{shown}</text>')
        parts.append(f'<text transform="translate({left + middle + 4} {top - 8}) rotate(-60)">{shown}</text>')
        for column, count in enumerate(matrix[row].tolist()):
            share = count / max(1, matrix[row].sum())
            x, y = left + cell * column, top + cell * row
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="#08519c" fill-opacity="{share:.3f}" '
                f'stroke="#ddd"><title>{escape(f"{name} taken for {names[column]}")}: {count}</title></rect>'
            )
            if count:
                parts.append(
                    f'<text x="{x + cell // 2}" y="{y + cell // 2 + 4}" text-anchor="middle" pointer-events="none" '
                    f'fill="{"white" if share > 0.5 else "black"}">{count}</text>'
                )
    return "\n".join([*parts, "</svg>\n"])
