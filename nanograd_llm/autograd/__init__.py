"""Reverse-mode differentiation: ops on Tensors are recorded on a tape, and backward walks the tape from its end.

Read `tape` first (the algorithm), then `sums`, `tensor`, `op`, `shapes`, `modes` and `checked`.
"""
