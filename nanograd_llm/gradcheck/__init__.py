"""Is a gradient right?  Read `derivatives`, `function`, `comparison`, `check`, `report`, then `samples`, `every_op`.

`strategies` draws cases for tests with Hypothesis; import it by itself, it needs the extra "test".
"""

from nanograd_llm.gradcheck.check import assert_gradients, gradcheck
from nanograd_llm.gradcheck.every_layer import check_all, check_each, check_layer, check_model, cost_of_model
from nanograd_llm.gradcheck.every_op import OpError, OpSummary, Summary, assert_case, check_op, table_head
from nanograd_llm.gradcheck.invariance import SplitError, assert_split_invariant
from nanograd_llm.gradcheck.mutants import Mutant, mutants
from nanograd_llm.gradcheck.report import Culprit, Entry, Finding, GradientError, Kink, Report
from nanograd_llm.gradcheck.samples import LAYOUTS, Case, Draw, cases, laid_out

__all__ = [
    "Case",
    "Culprit",
    "Draw",
    "Entry",
    "Finding",
    "GradientError",
    "Kink",
    "LAYOUTS",
    "Mutant",
    "OpError",
    "OpSummary",
    "Report",
    "SplitError",
    "Summary",
    "assert_case",
    "assert_gradients",
    "assert_split_invariant",
    "cases",
    "check_all",
    "check_each",
    "check_layer",
    "check_model",
    "check_op",
    "cost_of_model",
    "gradcheck",
    "laid_out",
    "table_head",
    "mutants",
]
