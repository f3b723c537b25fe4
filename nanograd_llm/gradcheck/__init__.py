"""Is a gradient right?  Read `derivatives`, `function`, `check`, then `samples` and `every_op`."""

from nanograd_llm.gradcheck.check import Entry, Finding, GradientError, Report, assert_gradients, gradcheck
from nanograd_llm.gradcheck.every_op import OpSummary, Summary, check_all, check_op, scaled_rule
from nanograd_llm.gradcheck.samples import Case, Draw, cases

__all__ = [
    "Case",
    "Draw",
    "Entry",
    "Finding",
    "GradientError",
    "OpSummary",
    "Report",
    "Summary",
    "assert_gradients",
    "cases",
    "check_all",
    "check_op",
    "gradcheck",
    "scaled_rule",
]
