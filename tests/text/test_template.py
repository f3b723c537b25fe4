"""Templates of prompts: what is filled in where, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.text.template import TEMPLATES, Template, template_beside


def test_a_question_without_material_leaves_out_the_paragraph_of_the_input() -> None:
    alpaca = Template.of("alpaca")
    assert alpaca.fill("Sort.", "3 1").endswith("### Instruction:\nSort.\n\n### Input:\n3 1\n\n### Response:\n")
    assert alpaca.fill("Sort.").endswith("### Instruction:\nSort.\n\n### Response:\n")
    assert Template.of("plain").fill("Sort.") == "Sort.\n\n"


def test_a_slot_within_a_question_is_ordinary_text() -> None:
    assert Template.of("plain").fill("What is {input}?", "{instruction}") == "What is {input}?\n\n{instruction}\n\n"


def test_a_template_is_a_name_or_a_text_with_new_lines() -> None:
    assert Template.of("alpaca").text == TEMPLATES["alpaca"]
    assert Template.of(r"Q: {instruction}\nA: ").fill("Why?") == "Q: Why?\nA: "


@pytest.mark.parametrize("text", ["", "alpacca", "Q: {question}", "{input}", "{instruction} {instruction}"])
def test_a_template_without_its_slots_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="it needs {instruction} once .* or give the name of one: plain, alpaca"):
        Template.of(text)


def test_an_input_without_a_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no {input}, but this question has one: '3 1'"):
        Template.of("{instruction}: ").fill("Sort.", "3 1")


def test_a_saved_template_is_found_beside_the_model(tmp_path: Path) -> None:
    assert template_beside(tmp_path) is None
    Template("é {instruction}\n\n", turns=3).save(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert template_beside(path) == Template("é {instruction}\n\n", turns=3)
    for content, message in (('[template]\ntext = "no slots"', "template is 'no slots'"), ("", "template is ''")):
        (tmp_path / "template.toml").write_text(content, "utf-8")
        with pytest.raises(BadFileError, match=rf"template\.toml: {message}"):
            template_beside(tmp_path)
