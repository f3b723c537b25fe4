"""A run with LoRA trains adapters only, opens on its own as a merged model, and proves what it claims."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.cli import main as command
from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.files.safetensors import read_safetensors
from nanograd_llm.nn import lora
from nanograd_llm.runs.checkpoints import load_checkpoint, save_checkpoint
from nanograd_llm.runs.opening import open_adapted, open_model
from nanograd_llm.runs.prepare import prepare_run
from nanograd_llm.runs.verifying import verify

CATS, BIRDS = "the cat sat on the mat and the dog sat on the cat. ", "a bird in the tree sang to a fox at the river. "
TINY: Any = {"context_length": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
FAST: Any = {"steps": 12, "batch_size": 4, "workers": 1}


def text(folder: Path, content: str) -> str:
    path = folder / f"{content[:5].strip()}.txt"
    path.write_text(content * 80, encoding="utf-8")
    return str(path)


def trained(out: Path, options: Any) -> Path:
    list(prepare_run(out, options=options).train())
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return trained(folder / "base", {**TINY, **FAST, "file": text(folder, CATS), "vocab_size": 300})


@pytest.fixture(scope="module")
def adapted(base: Path) -> Path:
    """A run with adapters on the base."""
    options = {**FAST, "file": text(base.parent, BIRDS), "init": str(base), "lora_rank": 3, "lora_targets": "qkv,mlp"}
    return trained(base.parent / "adapted", {**options, "learning_rate": 1e-2})


def test_only_the_adapters_of_a_run_are_trained_and_saved_with_moments(base: Path, adapted: Path) -> None:
    before = open_model(base).model().state_dict()
    (path,) = (adapted / "checkpoints").iterdir()
    arrays, _ = load_checkpoint(path)
    assert all(np.array_equal(arrays[name], x) for name, x in before.items())
    moments = {name.removeprefix("adamw.m.") for name in arrays if name.startswith("adamw.m.")}
    assert moments == {name for name in arrays if name.startswith("blocks.") and ".adapter." in name}
    assert len(moments) == 2 * 3
    assert all(np.abs(arrays[name]).max() > 0 for name in moments)


def test_a_run_with_adapters_opens_without_its_base_as_a_merged_model(
    base: Path, adapted: Path, tmp_path: Path
) -> None:
    moved, ids = shutil.copytree(adapted, tmp_path / "moved"), np.arange(8)[None]
    config = (moved / "config.toml").read_text("utf-8")
    (moved / "config.toml").write_text(config.replace(str(base), str(tmp_path / "nowhere")), "utf-8")
    model, (_, beside) = open_model(moved).model(), open_adapted(moved)
    assert not lora.adapted(model)
    assert [name for name, _ in model.named_parameters()] == [name for name in open_model(base).model().state_dict()]
    assert np.allclose(model(ids).data, beside(ids).data, rtol=0, atol=1e-6)
    assert not np.allclose(model(ids).data, open_model(base).model()(ids).data, rtol=0, atol=1e-3)


def test_the_adapter_in_the_form_of_peft_is_beside_the_checkpoint(base: Path, adapted: Path) -> None:
    ids = np.arange(8)[None]
    model = ng.load_lora(open_model(base).model(), adapted / "adapter")
    assert np.array_equal(model(ids).data, open_adapted(adapted)[1](ids).data)


def test_a_run_with_adapters_can_be_trained_further_and_made_again(adapted: Path, tmp_path: Path) -> None:
    further = prepare_run(tmp_path / "further", options={**FAST, "file": text(tmp_path, CATS), "init": str(adapted)})
    assert not lora.adapted(further.task.model)
    again = prepare_run(tmp_path / "again", file=adapted / "config.toml")
    list(again.train())
    (first,), (second,) = ((run / "checkpoints").iterdir() for run in (adapted, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(("width", "rate"), [(192, 10 * 2e-4), (16, 6e-3)])  # of 16, ten times would be 0.024
def test_adapters_learn_at_ten_times_the_rate_of_all_weights_but_at_most_at_one_that_spoils_nothing(
    width: int, rate: float, tmp_path: Path
) -> None:
    options = {**FAST, "file": text(tmp_path, BIRDS)}
    list(prepare_run(tmp_path / "base", options={**options, "n_embd": width, "n_layer": 1, "steps": 1}).train())
    options |= {"init": str(tmp_path / "base")}
    whole = prepare_run(tmp_path / "whole", options=options).task.training
    with_adapters = prepare_run(tmp_path / "lora", options={**options, "lora_rank": 2}).task.training
    assert with_adapters.learning_rate == pytest.approx(rate)
    assert with_adapters == dataclasses.replace(whole, learning_rate=with_adapters.learning_rate)


def test_a_fresh_head_is_trained_beside_the_adapters(base: Path, tmp_path: Path) -> None:
    options = {**FAST, "task": "masked-words", "file": text(tmp_path, BIRDS), "init": str(base), "lora_rank": 2}
    run = prepare_run(tmp_path / "run", options=options)
    parts = {name.partition(".")[0] for name, x in run.task.model.named_parameters() if x.requires_grad}
    assert parts == {"blocks", "head", "wtype"}
    list(run.train())
    assert not lora.adapted(open_model(tmp_path / "run").model())
    with pytest.raises(ConfigError, match="is a GPT, which is no part of this BERT"):
        verify(tmp_path / "run")


def test_a_run_says_at_its_start_why_its_adapters_have_no_form_of_peft(base: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "x.csv").write_text("text,label\n" + "".join(f"the {i} cat,{'ab'[i % 2]}\n" for i in range(30)))
    command_line = ["train", str(tmp_path / "x.csv"), "--task", "classification", "--init", str(base), "--workers", "1"]
    assert command([*command_line, "--lora-rank", "2", "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    said, _, _ = capsys.readouterr().out.partition("training")
    assert "no folder adapter: PEFT's form has adapters of a GPT" in " ".join(said.split())
    assert not (tmp_path / "run" / "adapter").exists()
    assert command(["convert", str(tmp_path / "run"), "--to", "peft", "--out", str(tmp_path / "peft")]) == 2
    assert "got a Classifier on a GPT with the pooling mean" in capsys.readouterr().err


def test_verify_proves_that_adapters_off_are_the_base_and_merged_ones_the_same(adapted: Path, capsys: Any) -> None:
    found = verify(adapted)
    assert found.passed and found.differing == 0
    model = open_model(adapted).model()
    assert found.numbers == model.parameter_count() + model(np.zeros((1, 16), np.int64)).size
    assert 0 < found.merged_off < found.limit < found.effect / 100
    assert command(["info", "--verify", str(adapted)]) == 0
    out = capsys.readouterr().out
    assert ", 0 differ in a bit from those of" in out and "\nverified: " in out


def test_verify_allows_the_rounding_that_the_model_has_and_no_more(
    adapted: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    copy = shutil.copytree(adapted, tmp_path / "copy")
    (path,) = (copy / "checkpoints").iterdir()
    arrays, metadata = load_checkpoint(path)
    for name in arrays:
        if name.startswith("blocks.") and name.endswith("adapter.B"):  # large numbers that nearly cancel
            A, B = np.array(arrays[name[:-1] + "A"]), np.array(arrays[name])
            A[:, 1], B[1] = A[:, 0], -200 - B[0]
            arrays[name[:-1] + "A"], arrays[name] = A, B + np.array([[200], [0], [0]], np.float32)
    save_checkpoint(path, arrays, metadata)
    found = verify(copy)
    assert found.passed and found.limit < found.effect / 100
    merge = lora.merge

    def merged_wrongly(model: Any) -> Any:
        merge(model).blocks[0].mlp.down.weight.data[...] *= np.float32(1.1)
        return model

    monkeypatch.setattr(lora, "merge", merged_wrongly)
    capsys.readouterr()
    assert command(["info", "--verify", str(copy)]) == 1
    assert "\nNOT verified: merged, its results differ by more than rounding" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["a frozen weight has moved", "the base is another one"])
def test_verify_finds_a_base_that_is_not_the_same(fault: str, base: Path, adapted: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapted, tmp_path / "copy")
    if fault == "the base is another one":
        config = (copy / "config.toml").read_text("utf-8")
        other = prepare_run(tmp_path / "other", file=base / "config.toml", options={"seed": 1})
        list(other.train())
        (copy / "config.toml").write_text(config.replace(str(base), str(tmp_path / "other")), "utf-8")
    else:
        (path,) = (copy / "checkpoints").iterdir()
        arrays, metadata = load_checkpoint(path)
        arrays["wpe"][0, 0] = np.nextafter(arrays["wpe"][0, 0], np.float32(9))
        save_checkpoint(path, arrays, metadata)
    found = verify(copy)
    assert not found.passed and found.differing > 0
    assert command(["info", "--verify", str(copy)]) == 1


def test_convert_gives_merged_weights_or_the_adapter_alone(adapted: Path, tmp_path: Path) -> None:
    ids = np.arange(8)[None]
    assert command(["convert", str(adapted), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    assert np.array_equal(ng.load_gpt2(tmp_path / "hf")(ids).data, open_model(adapted).model()(ids).data)
    assert command(["convert", str(adapted), "--to", "peft", "--out", str(tmp_path / "peft")]) == 0
    folders = tmp_path / "peft", adapted / "adapter"
    written, kept = (read_safetensors(folder / "adapter_model.safetensors") for folder in folders)
    assert {name: x.tobytes() for name, x in written.items()} == {name: x.tobytes() for name, x in kept.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 2}, "lora_rank trains adapters beside the weights of a model; say which one with init"),
        ({"lora_alpha": 2.0, "init": True}, "lora_alpha is for adapters; give lora_rank as well"),
        ({"lora_rank": 0, "init": True}, "rank must be an integer of at least 1"),
        ({"lora_rank": 2, "lora_alpha": 0.0, "init": True}, "alpha is 0"),
        ({"lora_rank": 9999, "init": True}, r"^lora_rank is 9999, and no matrix of the targets has one above (\d+); "),
        (
            {"lora_rank": 9999, "init": True, "task": "classification", "file": None},
            "^lora_rank is 9999, and no matrix",
        ),
        ({"lora_rank": 2, "lora_targets": "dwn", "init": True}, "unknown 'dwn', did you mean 'down'"),
        (
            {"lora_rank": 2, "lora_targets": "foo", "init": True},
            "unknown 'foo', allowed are blocks, attention, qkv, out, mlp, up, down, blocks.0$",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_leave_nothing(
    options: Any, message: str, base: Path, tmp_path: Path
) -> None:
    options = {**options, "init": str(base)} if "init" in options else options
    with pytest.raises(ConfigError, match=message):
        prepare_run(tmp_path / "run", options={**FAST, "file": text(tmp_path, BIRDS), **options})
    assert not (tmp_path / "run").exists()


def test_a_run_without_adapters_has_none_to_give_or_verify(base: Path) -> None:
    for use in (open_adapted, verify):
        with pytest.raises(ConfigError, match="has no adapters; give a run that was trained with --lora-rank"):
            use(base)


def test_adapters_whose_base_is_not_named_are_given_but_not_verified(
    adapted: Path, tmp_path: Path, capsys: Any
) -> None:
    copy = shutil.copytree(adapted, tmp_path / "copy")
    config = (copy / "config.toml").read_text("utf-8")
    (copy / "config.toml").write_text(re.sub("^init = .*$", "", config, flags=re.MULTILINE), "utf-8")
    assert command(["info", "--verify", str(copy)]) == 3
    assert "config.toml [run]: has no init" in " ".join(capsys.readouterr().err.split())
    assert command(["convert", str(copy), "--to", "peft", "--out", str(tmp_path / "peft")]) == 0
    assert '"base_model_name_or_path": null' in (tmp_path / "peft" / "adapter_config.json").read_text("utf-8")


def test_damaged_settings_of_adapters_are_named(adapted: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapted, tmp_path / "copy")
    config = (copy / "config.toml").read_text("utf-8")
    (copy / "config.toml").write_text(config.replace("rank = 3", "rank = 0"), "utf-8")
    with pytest.raises(BadFileError, match=r"config.toml \[lora\]: rank must be an integer of at least 1"):
        open_model(copy).model()
    (copy / "config.toml").write_text(config.replace("rank = 3", "rank = 3\nrang = 3"), "utf-8")
    with pytest.raises(BadFileError, match=r"config.toml \[lora\]: .*unknown 'rang', did you mean 'rank'"):
        open_model(copy).model()
    (copy / "config.toml").write_text(config.replace("rank = 3", "rank = 4"), "utf-8")
    with pytest.raises(BadFileError, match="does not fit the sizes in config.toml"):
        open_model(copy).model()
