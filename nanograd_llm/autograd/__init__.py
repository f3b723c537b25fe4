"""The engine: tensors that remember how they were made, and the walk back along that memory.

Read `modes`, `tape`, `tensor`, `shapes`, `op`; `checked` holds what the strict mode tests.
"""
