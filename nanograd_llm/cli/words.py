"""Numbers in sentences: what is counted stands in the singular where it is one."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """How many of what.

    >>> counted(1, "token"), counted(2000, "token")
    ('1 token', '2,000 tokens')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
