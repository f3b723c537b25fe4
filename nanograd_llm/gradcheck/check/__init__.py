"""One function's gradient held to its own numbers.

Read `function`, `derivatives`, `rounding`, `comparison`, `check`; then what explains a verdict: `kinks`, `patterns`,
`culprit`; `promises` of an op's call and `invariance` of a loss stand beside.
"""
