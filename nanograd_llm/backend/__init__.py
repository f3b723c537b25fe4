"""Arrays of NumPy or CuPy, BLAS threads and the heap, randomness without state, child processes.

Read `arrays`, `randomness`, `threads`, `processes`; `kernels` and `lazy` when you meet them.
"""
