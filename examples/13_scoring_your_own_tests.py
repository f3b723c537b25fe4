"""13  Scoring your own tests: how many typical mistakes would they notice?

The one idea: a test of a gradient should fail if the rule is wrong. So make the rule wrong, in all the usual ways, one
at a time, and count how often the tests fail.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from nanograd_llm import Tensor, grad, ops
from nanograd_llm.gradcheck import gradcheck, mutants

# %% The mistakes
# A gradient may be twice as large, have the wrong sign, or be transposed. The sum over a broadcast axis may be missing.
# There may be = for +=, or n-1 for n. The cotangent may be ignored, a term may be missing, the gradient of another
# entry may be used, or the gradient may be off by a billionth. For each op, the mistakes that change its gradient are
# planted.
found = mutants(ops.softmax)
for mutant in found:
    print(f"{mutant.name:28} {mutant.description}")
assert len(found) >= 8

# %% Two tests by hand
# Each row of a softmax sums to one, so the gradient of the sum is zero for every multiple of the right rule. The first
# test below notices only mistakes that turn this zero into another number. A check with random cotangents notices all.
x = np.random.default_rng(0).standard_normal((2, 3))


def sum_backward_notices():
    leaf = Tensor(x, requires_grad=True)
    return not np.allclose(grad(ops.softmax(leaf).sum(), leaf), 0)


def gradcheck_notices():
    return not gradcheck(ops.softmax, x).passed


counts = {}
for test in (sum_backward_notices, gradcheck_notices):
    counts[test.__name__] = 0
    for mutant in found:
        with mutant.planted():
            counts[test.__name__] += test()
    print(f"{test.__name__}: {counts[test.__name__]} of {len(found)}")
assert counts["gradcheck_notices"] == len(found) > 2 * counts["sum_backward_notices"]

# %% The same for a whole file of tests
# `pytest --gradient-mutants` plants every mistake in the ops that the tests declare, runs the tests that use them, and
# lists the mistakes that no test noticed. With --gradient-mutants-min=100 the run fails if there is one.
TESTS = '''
import numpy as np
import nanograd_llm as ng
from nanograd_llm.gradcheck import assert_gradients

@ng.op("y = exp x / Σ exp x", "x̄ = y*(ȳ - Σ ȳ*y)")
def soft(x):
    """Softmax.  x (..., C) -> y (..., C)"""
    e = np.exp(x - x.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)

@soft.backward
def soft_backward(dy, y):
    return y * (dy - ng.ops.sum(dy * y, axis=-1, keepdims=True))

X = np.array([[-1.5, 0.5, 2.0], [1.0, -0.25, 3.0]])

def test_weak():
    x = ng.Tensor(X, requires_grad=True)
    soft(x).sum().backward()
    assert np.allclose(x.grad, 0)
'''
STRONG = """
def test_strong():
    assert_gradients(soft, X)
"""


# %% What no test noticed
# The weak test notices a third of the mistakes. The strong test, of one line, notices the rest. With the right rule
# both pass.
def score(tests):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_soft.py").write_text(tests, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_soft.py", "--gradient-mutants"]
        answer = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout.partition("gradient mutants")[2].partition("\n")[2].strip()


if importlib.util.find_spec("pytest"):
    weak, strong = score(TESTS), score(TESTS + STRONG)
    print(f"\nthe weak test alone:\n{weak}\n\nwith the strong one:\n{strong}")
    assert "not noticed: the gradient of x is twice what it should be" in weak and "score: 100 %" in strong
else:
    print("\nthe rest needs pytest: pip install pytest")
