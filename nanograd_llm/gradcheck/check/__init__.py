"""One function's gradient held to its own numbers.

Read `derivatives`, `function`, `comparison`, `check`; then what explains a verdict: `kinks`, `patterns`, `culprit`.
"""
