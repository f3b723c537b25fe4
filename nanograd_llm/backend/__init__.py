"""Arrays of NumPy or CuPy, BLAS threads and the heap, randomness without state, child processes."""
