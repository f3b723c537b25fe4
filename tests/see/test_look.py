"""What `look`, `plot` and `train --watch` show are the model's own numbers."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from passes import METRICS, small_gpt

import nanograd_llm as ng
from nanograd_llm.errors import ConfigError
from nanograd_llm.see.look import look, text_of, visible
from nanograd_llm.see.pictures import look_page, series, training_page
from nanograd_llm.see.watch import activations, update_ratios, watching

WORDS = ["on", "a", "sat", "cat", "the"]
IDS = np.array([4, 3, 2, 0, 4, 1])


@pytest.fixture(scope="module")
def model() -> Any:
    return small_gpt(n_layer=2)[0]


@pytest.fixture(scope="module")
def result(model) -> Any:
    return look(model, IDS)


def test_the_mean_surprise_is_the_loss_in_bits(model, result) -> None:
    loss = model.loss(IDS[None, :-1], IDS[None, 1:]).item()
    assert result.bits.mean() == pytest.approx(loss / np.log(2), rel=1e-6)


def test_the_last_depth_of_the_logit_lens_is_what_the_model_says(model, result) -> None:
    p = ng.ops.softmax(model(IDS[None, :-1]).data)[0]
    names, best, chance = zip(*result.lens)
    assert names == ("embedding", "after block 0", "after block 1")
    assert best[-1].tolist() == p.argmax(-1).tolist()
    np.testing.assert_allclose(chance[-1], p.max(-1), rtol=1e-5)


def test_the_gradient_lens_names_the_token_whose_logit_rises_most_against_the_cotangent(model, result) -> None:
    trace = ng.trace(model.loss, IDS[None, :-1], IDS[None, 1:])
    last = trace.value("blocks.1").grad[0]
    place, tokens = result.gradient_lens[-1]
    assert place == "after mlp 1"
    for position, token in enumerate(tokens):
        rises = [-(last[position] @ row) for row in model.wte.data]
        assert token == int(np.argmax(rises))
    assert [name for name, _, _ in result.flow] == [
        "into block 0", "after attention 0", "after mlp 0", "after attention 1", "after mlp 1",
    ]  # fmt: skip
    assert result.flow[-1][1] == pytest.approx(np.linalg.norm(last), rel=1e-6)
    np.testing.assert_allclose(result.flow[-1][2], np.linalg.norm(last, axis=-1), rtol=1e-6)


def test_the_shares_of_the_table_s_uses_add_up_to_one(result) -> None:
    assert [use.name for use in result.uses] == ["head (linear_cross_entropy)", "lookup (embedding)"]
    assert sum(use.share for use in result.uses) == pytest.approx(1, abs=1e-6)
    assert [use.rows for use in result.uses] == [5, 4] and result.table_rows == 5


def test_a_model_is_looked_at_without_dropout_and_stays_as_it_was() -> None:
    model = small_gpt(dropout=0.5)[0]
    before = look(model, IDS).bits
    assert model.training and model.dropout.training
    assert before.tolist() == look(model, IDS).bits.tolist()
    assert all(p.grad is None for p in model.parameters())


def test_a_model_whose_token_table_is_frozen_is_refused_with_a_remedy() -> None:
    adapted, frozen = (small_gpt()[0] for _ in range(2))
    ng.nn.lora.add(adapted, rank=2)
    frozen.wte.requires_grad = False
    for model in (adapted, frozen):
        with pytest.raises(ConfigError, match=r"wte is frozen.*lora\.merge.*unfreeze"):
            look(model, IDS)
    ng.nn.lora.merge(adapted).unfreeze()
    assert look(adapted, IDS).uses


def test_a_text_that_does_not_fit_is_refused(model) -> None:
    for ids in (IDS[:1], np.zeros(7, int)):
        with pytest.raises(ConfigError, match="tokens?; this model can be looked at on 2 to 6"):
            look(model, ids)


def test_the_text_and_the_page_show_each_token_and_escape_it(result) -> None:
    text = text_of(result, lambda i: WORDS[i])
    assert [line.split()[0] for line in text.splitlines()[3:8]] == ["cat", "sat", "on", "the", "a"]
    assert max(map(len, text_of(result, lambda i: WORDS[i], 60).splitlines())) <= 60
    page = look_page(result, "a <title>", lambda i: "<b>" + WORDS[i])
    assert "<b>" not in page and "&lt;b&gt;cat" in page and "a &lt;title&gt;" in page and "script" not in page
    assert page.count('aria-label="head ') == 4


def test_bytes_that_are_no_text_and_control_characters_are_made_visible() -> None:
    assert [visible(piece) for piece in (b" a", b"\n\n", b"\x00", b"\xff", "é".encode())] == [
        "␣a", "⏎⏎", r"\x00", r"\xff", "é",
    ]  # fmt: skip


def test_curves_are_of_the_steps_of_a_run_against_steps_items_and_time() -> None:
    scored = [*METRICS, {"step": 8, "held_out": 1.0}]
    assert series(scored, "step", "loss").tolist() == [[s, 3 / s] for s in range(1, 9)]
    assert series(scored, "seconds", "gradient_norm")[-1].tolist() == [16, 2]
    assert len(series([{**METRICS[0], "step": s} for s in range(5000)], "step", "loss")) == 200
    page = training_page({"one": METRICS, "<two>": scored, "none": []}, {"one": []})
    assert page.count('class="line"') == 3 + 2 * 5 and "&lt;two&gt;" in page and "<two>" not in page
    assert re.search(r"loss, by step, from 0.375 to 3\b", page)


def test_watching_passes_every_event_on_and_writes_after_every_nth_step() -> None:
    model, tokens, targets = small_gpt()

    def events() -> Any:
        for step in range(1, 7):
            model.wte.data *= np.float32(1.01)
            yield SimpleNamespace(step=step, learning_rate=0.1)
            yield f"after {step}"

    batches, written = [], []

    def batch(steps_done: int) -> Any:
        batches.append(steps_done)
        return tokens, targets

    seen = list(watching(events(), model, batch, 3, written.append))
    assert batches == [2, 5]  # the batches of steps 3 and 6
    assert len(seen) == 12 and [record["step"] for record in written] == [3, 6]
    assert written[1]["update"] == {"wte": pytest.approx(0.01, rel=1e-3)}
    (found,) = written[0]["activations"].items()
    assert found[0] == "blocks.0.mlp gelu" and sum(found[1]["counts"]) == 5 * 32
    page = training_page({"run": METRICS}, {"run": written})
    assert "update ÷ weight" in page and "blocks.0.mlp gelu: mean" in page


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_left_to_the_trainer_to_report(bad: float) -> None:
    model, tokens, targets = small_gpt()
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    model.wpe.data[0] = bad
    model.wte.data *= np.float32(1.5)
    assert activations(model, (tokens, targets)) == {}
    assert update_ratios(model, before) == {"wte": 0.5}


def test_the_flat_share_is_that_of_inputs_where_the_slope_is_almost_nothing() -> None:
    class Layer(ng.nn.Module):
        def __init__(self) -> None:
            self.scale = ng.Parameter(np.array([1.0]))

        def loss(self, x: Any) -> Any:
            return ng.ops.relu(x * self.scale).sum()

    layer = Layer()
    (found,) = activations(layer, (np.array([-1.0, -2.0, 3.0, -4.0]),)).values()
    assert (found["flat"], found["low"], found["high"], found["mean"]) == (0.75, -4, 3, -1)
    before = {"scale": layer.scale.data.copy()}
    assert update_ratios(layer, before) == {}
    layer.scale.data += 0.5
    assert update_ratios(layer, before) == {"scale": 0.5}
