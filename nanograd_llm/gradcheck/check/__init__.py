"""Check the gradient of one function against slopes that are computed from the function's values.

Read first what a check is made of: `function` (what is checked), `derivatives` (slopes from values), `rounding` (how
a mistake differs from rounding), `comparison` (the gradient beside the slopes). `check` puts them together and decides
the verdict. `kinks` finds where a function bends or jumps, and `consistency` tests what else must hold of a gradient.
`patterns` and `culprit` explain a wrong one, and `report` shows what was found. Two files stand for themselves:
`promises` checks a call of an op, and `invariance` a loss.
"""
