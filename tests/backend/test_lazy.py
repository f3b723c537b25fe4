"""Names of the package are loaded at their first use, also by several threads at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nanograd_llm

PACKAGE = Path(nanograd_llm.__path__[0])


def run(source: str, cwd: Path) -> str:
    """What these lines print in a new interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}  # the package under test
    command = [sys.executable, "-c", source]
    answer = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize(
    "first_use",
    [
        "x = ng.Tensor([1.0, 2.0], requires_grad=True); print(ng.grad((x * x).sum(), x))",
        "print(ng.value_and_grad(lambda x: (x * x).sum())([1.0, 2.0])[1])",
        "w = ng.Parameter([1.0, 2.0]); (w * w).sum().backward(); print(w.grad)",
    ],
)
def test_operators_work_before_ops_is_imported(first_use: str, tmp_path: Path) -> None:
    assert run(f"import nanograd_llm as ng; {first_use}", tmp_path) == "[2. 4.]\n"


THREADS = """
import sys, threading
import nanograd_llm as ng

def with_operators():
    x = ng.Tensor([1.0, 2.0], requires_grad=True)
    return ng.grad((x * x).sum(), x).tolist()

def with_ops():
    from nanograd_llm import Parameter, grad, ops
    x = Parameter([1.0, 2.0])
    return grad(ops.sum(ops.multiply(x, x)), x).tolist()

def of_second_order():
    with ng.higher_order():
        x = ng.Parameter([1.0, 2.0])
        return ng.grad((x * x).sum(), x).data.tolist()

def of_a_layer():
    layer = ng.nn.LayerNorm(2)
    with ng.checked():
        layer(ng.Tensor([[3.0, 5.0]])).sum().backward()
    return (2 * (layer.bias.grad + [0, 1])).tolist()

def of_a_model():
    model = ng.GPT(ng.GPTConfig(vocab_size=5, context_length=2, n_layer=1, n_head=1, n_embd=2), seed=0)
    model.loss([[1, 2]], [[2, 3]]).backward()
    return [2.0, 4.0] if all(p.grad is not None for p in model.parameters()) else None

work = [with_operators, with_ops, of_second_order, of_a_layer, of_a_model] * 2
found, start = [], threading.Barrier(len(work))

def run(function):
    start.wait()
    found.append(function())

sys.setswitchinterval(1e-6)  # so that the threads meet in the middle of what they load
threads = [threading.Thread(target=run, args=(function,)) for function in work]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sum(values == [2.0, 4.0] for values in found), "of", len(work))
"""


@pytest.mark.parametrize("before", ["", "import numpy"])  # loading NumPy takes so long that the threads wait for it
def test_several_threads_may_import_from_the_package_at_once(before: str, tmp_path: Path) -> None:
    assert run(f"{before}\n{THREADS}", tmp_path) == "10 of 10\n"


def test_a_process_forked_while_a_thread_loads_can_load_as_well(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    source = """
import os, threading
import nanograd_llm as ng
threading.Thread(target=lambda: ng.GPT).start()
child = os.fork()
ng.Tensor
if child == 0:
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    assert run(source, tmp_path) == "0\n"
