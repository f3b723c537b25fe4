"""What `look`, `plot` and `train --watch` show are the model's own numbers."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from passes import METRICS, small_gpt

import nanograd_llm as ng
from nanograd_llm.see.look import look, text_of, visible
from nanograd_llm.see.pictures import look_page, series, training_page
from nanograd_llm.see.watch import activations, update_ratios, watching

WORDS = ["on", "a", "sat", "cat", "the"]
IDS = np.array([4, 3, 2, 0, 4, 1])


@pytest.fixture(scope="module")
def model() -> Any:
    return small_gpt(n_layer=2)[0]


def looked_at(model: Any) -> Any:
    return look(ng.trace(model.loss, IDS[None, :-1], IDS[None, 1:]))


@pytest.fixture(scope="module")
def result(model) -> Any:
    return looked_at(model)


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
    assert [use.name for use in result.uses] == ["head (24 linear_cross_entropy)", "lookup (0 embedding)"]
    assert sum(use.share for use in result.uses) == pytest.approx(1, abs=1e-6)
    assert [use.rows for use in result.uses] == [5, 4] and result.table_rows == 5


def test_the_attention_maps_are_those_that_the_model_shows(model, result) -> None:
    maps = model.look(IDS[None, :-1]).attention_maps
    assert [module for module, _ in result.attention] == ["blocks.0.attention", "blocks.1.attention"]
    for (_, found), expected in zip(result.attention, maps):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_of_an_encoder_decoder_all_attention_is_shown_and_the_lens_is_that_of_the_decoder(rng) -> None:
    sizes = dict(vocab_size=9, context_length=6, n_layer=2, n_head=2, n_embd=8)
    model = ng.EncoderDecoder(ng.EncoderDecoderConfig(**sizes, pad_id=0), seed=0)
    source, target_in, target = np.array([[3, 4, 5, 0]]), np.array([[0, 6, 7]]), np.array([[6, 7, -100]])
    result, seen = look(ng.trace(model.loss, source, target_in, target)), model.look(source, target_in)
    expected = {f"encoder.{i}.attention": seen.encoder_maps[i] for i in range(2)}
    expected |= {f"decoder.{i}.attention": seen.decoder_maps[i][..., :2, :2] for i in range(2)}
    expected |= {f"decoder.{i}.cross_attention": seen.cross_maps[i][..., :2, :] for i in range(2)}
    found = dict(result.attention)
    assert found.keys() == expected.keys()
    for name, maps in expected.items():
        real = 3 if "decoder" not in name else 2  # the rest is padding, or reaches no target
        np.testing.assert_allclose(found[name][..., :real, : maps.shape[-1]], maps[..., :real, :], atol=1e-6)
    assert result.targets.tolist() == [6, 7] and [name for name, *_ in result.lens][0] == "embedding"
    assert result.lens[-1][1].tolist() == seen.logits[0, :2].argmax(-1).tolist()
    assert result.flow[0][0] == "into block 0 of the encoder" and len(result.flow) == 3 + 2 + 4 + 3
    assert len(result.gradient_lens) == 1 + 6 and result.table == "source_table" and len(result.uses) == 3


def test_of_a_post_norm_bert_and_a_classifier_each_depth_says_a_word_or_a_class(rng) -> None:
    sizes = dict(vocab_size=9, context_length=6, n_layer=2, n_head=2, n_embd=8)
    bert = ng.BERT(ng.BERTConfig(**sizes), seed=0)
    tokens, targets = np.array([[1, 2, 3, 4]]), np.array([[-100, 5, -100, 7]])
    result = look(ng.trace(bert.loss, tokens, targets))
    assert result.targets.tolist() == [5, 7] and [name for name, *_ in result.lens][-1] == "after block 1"
    assert result.lens[-1][1].tolist() == bert(tokens).data[0, [1, 3]].argmax(-1).tolist()
    assert result.bits.mean() * np.log(2) == pytest.approx(bert.loss(tokens, targets).item(), rel=1e-6)
    classifier = ng.models.Classifier.on(bert, 3)
    result = look(ng.trace(classifier.loss, tokens, np.array([2])))
    assert result.targets.tolist() == [2] and [len(best) for _, best, _ in result.lens] == [1, 1, 1]
    assert result.lens[-1][1] == classifier(tokens).data.argmax() and result.gradient_lens[0][1].max() < 3
    assert result.missing == []


def test_what_a_model_has_not_is_left_out_with_a_line() -> None:
    adapted, tokens, targets = small_gpt()
    ng.nn.lora.add(adapted, rank=2)
    result = look(ng.trace(adapted.loss, tokens, targets))
    assert result.missing == [
        "What comes into blocks.0 gets no gradient, so flow and lens begin after it.",
        "The token table gets no gradient, so there is nothing to divide among its uses.",
    ]
    assert result.uses == [] and result.flow[0][0] == "after attention 0"
    result = look(ng.trace(lambda x: (x * x).sum(), np.ones(3)))
    assert len(result.missing) == 3 and "there is no surprise" in text_of(result, str)
    assert "there is no surprise" in look_page(result, "a title", str)
    assert result.missing[0] == "No block has parameters that get a gradient, so there is no gradient flow."


def test_of_a_model_that_learns_in_part_what_is_recorded_is_looked_at() -> None:
    whole, tokens, targets = small_gpt(n_layer=2)
    expected = look(ng.trace(whole.loss, tokens, targets))
    whole.freeze()
    whole.blocks[1].unfreeze()
    found = look(ng.trace(whole.loss, tokens, targets))
    assert "What comes into blocks.1 gets no gradient, so flow and lens begin after it." in found.missing
    assert [name for name, *_ in found.lens] == ["after block 1"] and [name for name, *_ in expected.lens][:1] == [
        "embedding"
    ]
    np.testing.assert_array_equal(found.lens[-1][1], expected.lens[-1][1])
    assert [name for name, *_ in found.flow] == ["after attention 1", "after mlp 1"]


def test_the_attention_of_each_of_several_texts_is_shown(model) -> None:
    page = look_page(look(ng.trace(model.loss, *[np.array([[1, 2, 3], [3, 2, 1]])] * 2)), "two texts", str)
    assert "<title>two texts</title>" in page and page.count(", text 2<") == 2


def test_the_text_and_the_page_show_each_token_and_escape_it(result) -> None:
    text = text_of(result, lambda i: WORDS[i])
    assert [line.split()[0] for line in text.splitlines()[3:8]] == ["cat", "sat", "on", "the", "a"]
    assert max(map(len, text_of(result, lambda i: WORDS[i], 60).splitlines())) <= 60
    assert "\nin [ ] where this word is the target\n" in text and "of the whole, in 5 of 5 rows" in text
    assert "of the whole; the shares add up to 100%\n" in text
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
