"""Check the gradient of one function against slopes that are computed from the function's values.

Read first what a check is made of: `function` (what is checked), `derivatives` (slopes from values), `comparison` (the
gradient beside the slopes), `rounding` and `decision` (how a mistake differs from rounding). `check` puts them together
and says the verdict. `kinks` finds where a function bends or jumps, and `consistency` tests what else must hold of a
gradient. `patterns` and `culprit` explain a wrong one, and `report` shows what was found. Two files stand for
themselves: `promises` checks a call of an op, and `invariance` a loss.
"""
