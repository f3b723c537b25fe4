"""Inputs to try: cases drawn from an op's own declaration, and the same as Hypothesis strategies."""
