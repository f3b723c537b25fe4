"""File formats, one module each. They know no model: they turn bytes into named arrays, and check all that a file says.

Read `atomic` (safe writing), `mapped` (bytes as arrays), then the formats; `npz` is the simplest.
"""
