"""Is a gradient right?  Read `check` (one function), `cases`, `every_op`, `every_layer`; `mutation` checks the tests.

`strategies` draws cases for tests with Hypothesis; it needs Hypothesis (`pip install hypothesis`).
"""

from typing import TYPE_CHECKING

from nanograd_llm.backend.lazy import lazily  # the pytest plugin starts here, in every run of anybody's tests

if TYPE_CHECKING:
    from nanograd_llm.gradcheck.cases import strategies
    from nanograd_llm.gradcheck.cases.samples import LAYOUTS, Case, Draw, draw_cases, laid_out
    from nanograd_llm.gradcheck.check.check import assert_gradients, gradcheck
    from nanograd_llm.gradcheck.check.invariance import SplitError, assert_split_invariant
    from nanograd_llm.gradcheck.check.report import Culprit, Entry, Finding, GradientError, Kink, Report
    from nanograd_llm.gradcheck.every_layer import check_all, check_each, check_layer, check_model, cost_of_model
    from nanograd_llm.gradcheck.every_op import OpError, OpSummary, Summary, assert_case, check_op, table_head
    from nanograd_llm.gradcheck.exercise import attempt
    from nanograd_llm.gradcheck.foreign.check_gradient import assert_gradient, check_gradient
    from nanograd_llm.gradcheck.mutation.backward_rules import backward_rule
    from nanograd_llm.gradcheck.mutation.mutants import Mutant, mutants

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "cases.strategies": "",
        "cases.samples": "LAYOUTS Case Draw draw_cases laid_out",
        "check.check": "assert_gradients gradcheck",
        "check.report": "Culprit Entry Finding GradientError Kink Report",
        "every_layer": "check_all check_each check_layer check_model cost_of_model",
        "every_op": "OpError OpSummary Summary assert_case check_op table_head",
        "check.invariance": "SplitError assert_split_invariant",
        "exercise": "attempt",
        "foreign.check_gradient": "assert_gradient check_gradient",
        "mutation.backward_rules": "backward_rule",
        "mutation.mutants": "Mutant mutants",
    },
)
__all__ = [name for name in __all__ if name != "strategies"]  # so that `import *` works without Hypothesis
