"""The stepper's transcripts: what it prints for a list of commands that come through a pipe.

Run this file to write the transcripts again, and read the changes.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from passes import small_gpt

import nanograd_llm as ng
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import GraphError
from nanograd_llm.see.stepper import HELP, Stepper

FOLDER = Path(__file__).parent / "transcripts"


def expression(a, b, c):
    h1 = a * b
    h2 = h1 + c
    return ng.ops.tanh(h2)


def scalar() -> Any:
    return ng.trace(expression, 2.0, -0.5, 1.5)


def gpt() -> Any:
    model, tokens, targets = small_gpt()
    return ng.trace(model.astype(np.float64).loss, tokens, targets)  # with digits that are the same everywhere


WALKS = {  # a trace, and the commands, an empty one among them
    "expression": (scalar, "n/n/n/t x/p dx//m h1/n/n/n/b/u h1/q"),
    "gpt": (
        gpt,
        "g 12/f/n/b/g 3/f/t x[0,3,2]/m blocks.0.ln_1[0,3,2]/open/n/f/n/l/up/u wte/u wte[4,0]/p dwte[4]/m wte[4,0]/h",
    ),
}
MISTAKES = {
    "z": "there is no command 'z'; h lists them",
    "f 3": "f takes nothing after it; got '3'",
    "n x": "expected a number of steps, such as n 3; got 'x'",
    "g 3": "there is no call 3; they are numbered from 0 to 2",
    "g x": "nothing is called 'x'; the pass has 'a', 'b', 'c', 'h1', 'h2'",
    "g": "expected the number of a call, such as g 12, or the name of what it made",
    "g a": "'a' is an input of the pass, which no call made; the calls that use it: 0",
    "g add": "'add' is an op: give the number of a call of it, one of 1",
    "open": "multiply is made of no other ops: read its rule in",
    "up": "nothing is open",
    "p": "expected a name, or a name and an index, such as x[0,3]; got ''",
    "p x[0": "expected a name, or a name and an index, such as x[0,3]; got 'x[0'",
    "p a[3]": "a has shape (); an entry of it needs 0 indices; got (3,)",
    "t c": "call 0 (multiply) sends no gradient to 'c', only to its inputs a, b",
    "m needs": "needs is not a value of the forward pass; move an input, y, or a value by its name",
    "u 2": "no call sends a gradient to 2",
    "b": "this is the first step",
    "p nothing": "nothing is called 'nothing'; the pass has 'a', 'b', 'c', 'h1', 'h2'; here are a, b, needs, y, dy",
}


def transcript(trace: Any, commands: str) -> str:
    """What a Stepper writes, without the numbers of lines in files, and of a GPT without the rules of its fused ops."""
    written: list[str] = []
    Stepper(trace).run(commands.split("/"), written.append, echo=True)
    text = re.sub(r"(\.py):\d+", r"\1:N", "".join(written))
    text = re.sub(r"the rounding of [\d.e-]+", "the rounding of N", text)
    return re.sub(r"(fused\.py:N\n)(   \|.*\n)+", r"\1", text)


@pytest.mark.parametrize("name", WALKS)
def test_a_transcript_is_as_it_was(name: str) -> None:
    make, commands = WALKS[name]
    assert transcript(make(), commands) == (FOLDER / f"{name}.txt").read_text("utf-8")


@pytest.mark.parametrize("command", MISTAKES)
def test_a_command_that_cannot_be_done_says_why_in_one_line(command: str) -> None:
    said = transcript(scalar(), command).splitlines()[-2]
    assert said.startswith(MISTAKES[command])


def test_n_walks_forward_then_backward_and_b_the_same_way_back() -> None:
    stepper = Stepper(scalar())
    ahead = [stepper.shown(), *(stepper.obey("n") for _ in range(5))]
    assert [step.split()[:2] for step in ahead] == [["->", "forward"]] * 3 + [["<-", "backward"]] * 3
    assert [step.split()[2] for step in ahead] == list("012210")
    assert stepper.obey("n") == "this is the last step"
    assert [stepper.obey("b") for _ in range(5)] == ahead[-2::-1]


def test_the_steps_show_the_numbers_of_the_trace() -> None:
    trace = scalar()
    stepper = Stepper(trace, 2)
    assert stepper.obey("p y") == f"y () float64\n{trace.result.array:.4f}"
    assert stepper.obey("p dh1") == f"dh1 () float64\n{trace.value('h1').grad:.4f}"
    assert stepper.obey("p 0") == "0 () float64\n-1."
    stepper.obey("f")
    assert "return dy * (1 - y * y)" in stepper.shown() and "x̄*(1" not in stepper.shown()


def test_n_and_b_take_several_steps() -> None:
    stepper, other = Stepper(scalar()), Stepper(scalar())
    ahead = [other.obey("n") for _ in range(4)]
    assert stepper.obey("n 3") == ahead[2] and stepper.obey("n 1") == ahead[3] and stepper.obey("b 2") == ahead[1]
    stepper.obey("n 99")
    assert stepper.number == 0 and stepper.backward and stepper.obey("n") == "this is the last step"


def test_below_a_rule_stand_the_functions_of_its_file_that_it_calls() -> None:
    stepper = Stepper(gpt(), 3)
    shown = stepper.obey("f")
    called = ["layernorm_backward", "_rows", "_normalise_backward", "_column_sums"]
    assert all(f"   | def {name}(" in shown for name in called)
    assert "xhat, r: computed in the forward; s shows its source" in shown
    assert "def _backward_blocks(" in stepper.obey("g 5")


def test_s_shows_the_forward_that_has_computed_what_a_rule_returns() -> None:
    stepper = Stepper(gpt(), 14)
    assert "dx, dw, dlogits: computed in the forward" in stepper.obey("f")
    assert "p[xp(p).arange(len(chosen)), chosen] -= 1" in stepper.obey("s")


def test_the_gradient_of_a_value_has_the_name_that_it_has_on_a_tensor() -> None:
    stepper = Stepper(gpt(), 14)
    assert stepper.obey("p wte.grad[4,0]") == stepper.obey("p dwte[4,0]").replace("dwte", "wte.grad")
    whole, sent = (stepper.obey(f"p {name}[4,0]").split(" = ")[1] for name in ("w.grad", "dw"))
    assert whole == str(stepper.trace.grads["wte"][4, 0]) != sent  # the head is one of two uses


def test_a_value_without_a_name_goes_by_the_number_of_its_call() -> None:
    stepper = Stepper(ng.trace(lambda a, b: ng.ops.tanh(a * b), 2.0, -0.5))
    assert stepper.obey("p 0.grad").split()[-1] == stepper.obey("p dy").split()[-1] == "0.42"


def test_a_name_in_a_command_means_the_value_of_this_call_that_is_shown_under_it() -> None:
    def f(x):
        x = ng.ops.tanh(x * 2)
        x = x * x
        return x.sum()

    trace = ng.trace(f, np.array([0.1, 0.2]))
    at = [Stepper(trace, number) for number in range(4)]  # of 1, tanh, the input is called x
    assert [at[n].obey("p x[1]").split(" = ")[1][:5] for n in (0, 1, 3)] == ["0.2", "0.4", "0.144"]
    with pytest.raises(GraphError, match="^'x' names a and y here: give one of these$"):
        at[2].obey("p x.grad")
    with pytest.raises(GraphError, match="takes 'x' as a and b: give one of these"):
        at[2].obey("t x[0]")
    assert at[2].obey("m a[0]").startswith("x[0] (the output of 1 tanh) is 0.197")
    assert trace.value("x").label == "x (a leaf)"


def test_each_use_of_a_number_is_shown_with_its_sign() -> None:
    stepper = Stepper(ng.trace(lambda v: (v * 2 - v * 3) * v, 2.0))
    assert sorted(line.split()[0] for line in stepper.obey("u v").splitlines()[1:]) == ["-2", "-6", "4"]


def test_the_text_stands_beside_its_ids() -> None:
    stepper = Stepper(gpt(), tokens=[["the", "cat", "sat", "on", "the"], ["no"]])
    assert "[[4 0 3 2 4]]  text the cat sat on the\n" in stepper.shown()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_the_arrow_up_brings_back_the_last_command() -> None:
    pytest.importorskip("readline")
    import pty

    program = "import nanograd_llm as ng; ng.trace(lambda x: x * x * x, 2.0).step()"
    terminal, child = pty.openpty()
    how = {"stdin": child, "stdout": child, "stderr": child, "env": {**os.environ, "TERM": "xterm"}}
    with subprocess.Popen([sys.executable, "-c", program], **how) as process:
        os.close(child)
        shown = ""
        for keys in ("n 2\n", "\x1b[A\n", "q\n"):
            while not shown.endswith("(step) "):
                shown = shown.replace("\x1b[?2004h", "") + os.read(terminal, 4096).decode()
                shown = shown.replace("\x1b[?2004h", "")
            os.write(terminal, keys.encode())
            before, shown = shown, ""
        assert "<- backward 0 multiply" in before and "no command" not in before
        process.wait()
    os.close(terminal)


def test_c_names_a_wrong_rule_or_says_that_there_is_none() -> None:
    assert Stepper(scalar()).obey("c") == (
        "every rule agrees along two random directions, within the rounding of float64"
    )
    with patch.object(registry["tanh"], "rule", lambda dy, y: dy * (1 - y)):
        trace = scalar()
    assert Stepper(trace).obey("c").splitlines()[1:] == ["2 tanh, to x"]


def test_a_trace_is_stepped_through_by_standard_input(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\nf\n"))
    scalar().step(1)
    out = capsys.readouterr().out
    assert out.startswith("expression: 3 op calls, 3 leaves\nh for help\n-> forward 1 add\n")
    assert "(step) n\n-> forward 2 tanh\n" in out and "(step) f\n<- backward 2 tanh\n" in out
    assert out.endswith("(step) \n")


def test_the_help_names_every_command() -> None:
    known = {line.split()[0] for line in HELP.partition("\nOf ")[0].splitlines()}
    assert known == {*"nbfglsptmuchqo"}


if __name__ == "__main__":
    for name, (make, commands) in WALKS.items():
        (FOLDER / f"{name}.txt").write_text(transcript(make(), commands), "utf-8")


@pytest.mark.parametrize("columns", [42, 80])
def test_on_a_terminal_lines_are_broken_between_words(columns: int, monkeypatch, capsys) -> None:
    trace = gpt()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    trace.step(0, ["n"] * 3)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= columns or " " not in line.strip() for line in lines)
    assert len(lines) > 4
    words = {word for line in lines for word in line.split()}
    monkeypatch.undo()
    trace.step(0, ["n"] * 3)
    assert words == {*capsys.readouterr().out.split()}
