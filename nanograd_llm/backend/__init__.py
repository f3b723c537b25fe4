"""The machine beneath: arrays of NumPy or CuPy, BLAS threads and the heap, randomness without state, processes."""
