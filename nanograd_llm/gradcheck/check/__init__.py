"""One function's gradient held to its own numbers.

Read `function`, `derivatives`, `rounding`, `comparison`, `check`; then `kinks`, and what must hold besides the numbers,
`consistency`; then what explains a verdict: `patterns`, `culprit`. `promises` of a call and `invariance` of a loss
stand beside.
"""
