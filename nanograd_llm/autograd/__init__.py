"""The engine: tensors that remember how they were made, and the walk back along that memory.

Read `tape` (the walk: the lesson), `sums`, `tensor`, `op`, `shapes`, `modes`; `checked` is what the strict mode tests.
"""
