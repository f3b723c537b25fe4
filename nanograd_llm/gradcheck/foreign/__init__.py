"""Gradients that other code computes: plain NumPy, layers with a backward method, PyTorch, JAX.

Read `inputs`, `library`, `function`, `layers`, `check_gradient`; then `pytorch` and `jax_arrays`, which are
loaded for functions of theirs only.
"""
