"""`nanograd-llm gradcheck`: is every rule right?"""

from __future__ import annotations


def gradcheck(*, op: str | None = None, order: int = 2, cases: int = 8, seed: int = 0) -> int:
    """Check the gradient of every op against its numerical derivative; exit code 1 if any is wrong.

    Parameters
    ----------
    op
        The name of one op; all if not given.
    order
        1 checks gradients, 2 the gradients of gradients as well.
    cases
        Random cases an op.
    seed
        Decides the cases.
    """
    from nanograd_llm.gradcheck import check_all

    summary = check_all(None if op is None else [op], order=order, cases=cases, seed=seed)
    print(summary)
    return 0 if summary.passed else 1
