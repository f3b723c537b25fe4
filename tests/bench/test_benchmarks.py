"""Every benchmark runs, here at sizes of a second, and reports each figure that has a target."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import pytest

from nanograd_llm.bench import TARGETS, Figure, Note, OpTime, compare, decode, embed, lora, memory, run, scaling, start
from nanograd_llm.bench.compare import Task, forward_task, step_task
from nanograd_llm.bench.figures import Target
from nanograd_llm.bench.workloads import GPT2_FORWARD, GPT2_STEP, MID, TOY, Workload, training_step
from nanograd_llm.errors import ConfigError, NanogradError
from nanograd_llm.models.gpt import GPTConfig

CONFIG = GPTConfig(vocab_size=65, context_length=8, n_layer=1, n_head=2, n_embd=8)


def tiny(name: str, batch_size: int = 2, length: int = 8) -> Workload:
    return Workload(name, CONFIG, batch_size, length, rounds=1, burst=1)


PAIR = next(iter(scaling.PAIRS))
SMALL = {
    "toy": functools.partial(compare.step, tiny("toy")),
    "mid": functools.partial(compare.step, tiny("mid", 3)),
    "gpt2": functools.partial(compare.gpt2, forward=tiny("gpt2", 1), step=tiny("gpt2", 1, 4)),
    "decode": functools.partial(decode.bench, nano=CONFIG, gpt2=CONFIG, count=3, sgemv_bytes=2**12),
    "embed": functools.partial(
        embed.bench, config=dataclasses.replace(embed.MINILM, n_layer=1, n_head=1, n_embd=4, n_inner=4), count=3
    ),
    "lora": functools.partial(lora.bench, workload=tiny("lora"), count=3),
    "memory": functools.partial(memory.bench, workloads=[tiny("toy"), tiny("mid"), tiny("gpt2", 1)]),
    "scaling": functools.partial(scaling.bench, pairs={PAIR: (tiny("scaling", 1), tiny("scaling"))}),
    "start": functools.partial(
        start.bench,
        train=["--n-layer", "1", "--n-embd", "8", "--context-length", "8"],
        gpt2=GPTConfig(vocab_size=300, context_length=8, n_layer=1, n_head=2, n_embd=8),
    ),
}
LARGE = ("1 × 1,024", "1 × 512")  # the batch sizes in the names of measures


def measures(reports):
    return {(report.workload, report.measure) for report in reports if isinstance(report, Figure)}


def wanted(name: str, against: bool):
    """The targets that a benchmark can measure with or without PyTorch, by their names at small sizes."""
    places = [place for place in TARGETS if place[0] == name and (against or "PyTorch" not in place[1])]
    places = [place for place in places if against or "transformers" not in place[1]]
    if name == "scaling":  # one pair is enough; the others differ only in their sizes
        places = [place for place in places if PAIR in place[1]]
    small = [measure.replace(LARGE[0], "1 × 8").replace(LARGE[1], "1 × 4") for _, measure in places]
    return {(name, measure) for measure in small}


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_reports_its_targets(name):
    if name in ("memory", "lora") and not memory.can_measure():
        pytest.skip("needs Linux's /proc")
    reports = list(SMALL[name](False, 1))
    assert wanted(name, against=False) <= measures(reports)
    assert all(math.isfinite(report.value) and report.value > 0 for report in reports if isinstance(report, Figure))
    assert {report.workload for report in reports} == {name}


@pytest.mark.parity
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_against_pytorch_reports_every_target(name):
    pytest.importorskip("peft" if name == "lora" else "transformers")
    assert wanted(name, against=True) <= measures(SMALL[name](True, 1))


def test_every_task_has_a_target_under_its_name():
    tasks = [
        step_task(TOY),
        step_task(MID),
        forward_task(GPT2_FORWARD, f"forward {LARGE[0]}"),
        step_task(GPT2_STEP, f"step {LARGE[1]}"),
    ]
    assert {(task.workload.name, f"{task.name} ÷ best of {task.kind}") for task in tasks} <= set(TARGETS)
    assert {("scaling", f"growth, {name} ÷ floor's") for name in scaling.PAIRS} <= set(TARGETS)
    assert (compare._size(GPT2_FORWARD), compare._size(GPT2_STEP)) == LARGE


def test_the_ratio_is_to_the_fastest_rival_and_the_profile_comes_last():
    workload = tiny("toy")
    rivals = {name: functools.partial(training_step, workload) for name in ("eager", "compiled")}
    reports = list(compare.compare(Task("step", workload, rivals, "PyTorch"), True, 1))
    value = {report.measure: report.value for report in reports if isinstance(report, Figure)}
    assert value["step ÷ best of PyTorch"] == pytest.approx(
        value["step"] / min(value["step, eager"], value["step, compiled"])
    )
    assert value["step ÷ floor"] == pytest.approx(100 / value["step, the floor's share of it"])
    kinds = [isinstance(report, OpTime) for report in reports]
    assert kinds == sorted(kinds) and any(kinds)


@pytest.mark.parametrize(
    ("bound", "value", "is_met"), [("≤", 0.79, True), ("≤", 0.81, False), ("≥", 0.81, True), ("≥", 0.79, False)]
)
def test_a_target_is_met_up_to_or_from_its_limit(bound, value, is_met):
    assert Target(bound, 0.8).is_met(value) is is_met


def test_a_record_has_its_fields_and_its_target():
    figure = Figure("toy", "step ÷ floor", 1.25, "ratio")
    fields = {"workload": "toy", "measure": "step ÷ floor", "value": 1.25, "unit": "ratio"}
    assert json.loads(json.dumps(figure.record())) == {**fields, "target": "≤ 1.35", "met": True}
    assert set(Figure("toy", "step", 30.0, "ms").record()) == set(fields)
    assert set(OpTime("toy", "gelu", 4, 0.1, 0.2).record()) == {"workload", "op", "calls", "seconds", "share"}
    assert Note("toy", "why").record() == {"workload": "toy", "note": "why"}


def test_a_missing_package_is_reported_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed: torch; pip install torch"):
        run(["toy"], against=True)
    with pytest.raises(ConfigError, match="torch, transformers"):
        run(["toy", "decode"], against=True)


def test_a_command_that_ends_before_its_first_output_is_an_error():
    with pytest.raises(NanogradError, match="train ended too early: nanograd-llm: --n-layer must be an integer"):
        start.seconds_until(["train", "--n-layer", "0"], lambda said: False)


def test_the_made_up_tokenizer_has_the_size_wanted_and_encodes_any_text():
    tokenizer = start.made_up_tokenizer(1000)
    assert tokenizer.vocab_size == 1000
    assert tokenizer.decode(tokenizer.encode("The naïve 漢字")) == "The naïve 漢字"
