"""Settings refuse values out of range, of any number type, and suggest the name that was meant."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.errors import ConfigError, NanogradError
from nanograd_llm.gradcheck import check_op, gradcheck, mutants
from nanograd_llm.settings import (
    MAX_SEED,
    Settings,
    check_keys,
    check_settings,
    nearest,
    require_choice,
    require_int,
    require_number,
    require_seed,
    setting,
    shown,
    unique_keys,
)
from nanograd_llm.tasks import TextConfig


class Oven(Settings):
    """Settings of every kind."""

    trays: int = setting("Trays in it.", low=1)
    heat: float = setting("Of the highest.", default=0.5, high=1, below=True)
    fan: bool = setting("Blow.", default=False)
    mode: str = setting("What heats.", default="top", choices=["top", "bottom"])
    minutes: float | None = setting("Until it ends; None for never.", default=None, low=0.1)
    label: str | None = setting("On its door.", default=None)
    seed: int = setting("Of its crumbs.", default=0, high=MAX_SEED)
    shelves: int = setting("Shelves in it.", default=2, low=2, why="a top and a bottom")


def test_an_error_names_the_class_of_a_model_and_does_not_print_it() -> None:
    assert shown(ng.nn.Linear(2, 3)) == "Linear"
    assert shown([1, 2]) == "[1, 2]" and shown("x" * 999) == f"'{'x' * 97}…'"


def test_settings_behind_the_marker_of_dataclasses_are_given_by_name_only() -> None:
    class Grill(Oven):
        _: dataclasses.KW_ONLY
        racks: int | None = setting("Racks in it.", default=None, low=1)

    assert Grill.setting_types == {**Oven.setting_types, "racks": (int, True)}
    assert Grill(1, racks=2).racks == 2
    with pytest.raises(TypeError):
        Grill(1, 0.5, False, "top", None, None, 0, 2, 2)  # type: ignore[misc]


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(7)])
def test_integers_of_python_and_numpy_are_integers(value: object) -> None:
    require_int("steps", value, 3)


@pytest.mark.parametrize("value", [2, np.int64(2), True, np.True_, 3.0, np.float64(3), "3", None])
def test_a_value_that_is_too_small_or_not_an_integer_is_refused_by_name(value: object) -> None:
    with pytest.raises(ConfigError, match=r"steps must be an integer of at least 3; got "):
        require_int("steps", value, 3)


@pytest.mark.parametrize(("name", "near"), [("GPT2", "gpt2"), ("nanoo", "Nano"), ("NANO", "Nano"), ("zzz", "")])
def test_the_nearest_name_is_found_in_any_case(name: str, near: str) -> None:
    assert nearest(name, ["gpt2", "Nano"]) == near


def test_a_name_is_also_found_by_its_initials() -> None:
    assert nearest("lr", ["steps", "learning_rate"]) == "learning_rate"
    assert nearest("wd", ["wide-data", "weight_decay"]) == ""  # which of the two?


@pytest.mark.parametrize(
    ("name", "names", "near"),
    [
        ("text", ["texts", "prompt", "label"], "texts"),
        ("width", ["n_embd", "widths"], "widths"),
        ("labels", ["labels_of_rows", "label"], "label"),
        ("width", ["n_embd", "n_head"], "n_embd"),
    ],
)
def test_a_name_that_is_nearly_the_same_goes_before_what_other_programs_call_so(name, names, near) -> None:
    assert nearest(name, names) == near


def test_a_choice_in_capitals_is_refused_with_the_name_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="preset must be one of nano, gpt2; got 'GPT2'; did you mean 'gpt2'"):
        require_choice("preset", "GPT2", ["nano", "gpt2"])
    with pytest.raises(ConfigError, match="got None$"):
        require_choice("preset", None, ["nano", "gpt2"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: gradcheck(3, np.ones(1)), "a function to check is an op, a closure, a Module, ...; got 3"),
        (lambda: mutants(3), "op must be an op; got 3"),
        (lambda: check_op(np.exp), "op must be an op; got <ufunc 'exp'>"),
        (lambda: ng.text.BPETokenizer.train(None), "text must be a str; got None"),
        (lambda: ng.text.CharTokenizer.train(b"ab"), "text must be a str; got b'ab'"),
        (lambda: ng.GPT({}), "config must be a GPTConfig; got {}"),
        (lambda: ng.training.Trainer(3), "model must be a Module; got 3"),
        (lambda: ng.training.Trainer(ng.nn.Linear(1, 1), {}), "config must be a TrainConfig; got {}"),
        (lambda: ng.save_gpt2(3, "nowhere"), "model must be a GPT; got 3"),
        (lambda: ng.load_gpt2(3), "source must be a path or a name; got 3"),
        (lambda: setting("Numbers.", low="1"), "the bound low must be a number, such as low=1; got '1'"),
        (lambda: setting("Numbers.", high=[3]), "the bound high must be a number, such as high=1; got [3]"),
        (lambda: ng.nn.Linear(-3, 2), "n_in must be an integer of at least 1; got -3"),
        (lambda: ng.nn.Linear(3, 2.0), "n_out must be an integer of at least 1; got 2.0"),
        (lambda: ng.nn.Embedding(3, 0), "size must be an integer of at least 1; got 0"),
        (lambda: ng.nn.LayerNorm(None), "size must be an integer of at least 1; got None"),
    ],
)
def test_an_argument_of_another_kind_is_refused_in_one_line(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(NanogradError) as caught:
        call()
    assert str(caught.value) == said


def test_an_unknown_key_is_refused_with_its_nearest_match() -> None:
    allowed = ["learning_rate", "steps"]
    check_keys({"steps": 1}, allowed, "config.toml [train]")
    with pytest.raises(ConfigError) as caught:
        check_keys({"learning_rat": 1, "steps": 2, "zzz": 3}, allowed, "config.toml [train]")
    assert str(caught.value) == (
        "config.toml [train]: unknown 'learning_rat', did you mean 'learning_rate'?; "
        "unknown 'zzz', allowed are learning_rate, steps"
    )


def test_a_key_that_repeats_is_refused_by_name() -> None:
    assert unique_keys([("b", 1), ("a", 2)]) == {"b": 1, "a": 2}
    with pytest.raises(ConfigError, match="duplicate key 'a'"):
        unique_keys([("a", 1), ("b", 2), ("a", 1), ("b", 3)])


@pytest.mark.parametrize("value", [2**31, 10**22, np.int64(2**40)])
def test_a_size_beyond_every_array_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ConfigError, match="^n_embd must be an integer of at most 2,147,483,647; got"):
        require_int("n_embd", value, 1)


def test_a_seed_has_64_bits() -> None:
    require_seed(2**64 - 1)
    with pytest.raises(ConfigError, match="^seed must be an integer of at most"):
        require_seed(2**64)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.int64(1), 1, 0.5])
def test_numbers_of_numpy_are_numbers(value: Any) -> None:
    require_number("learning_rate", value, 0)


@pytest.mark.parametrize("value", [10**400, float("inf"), np.float32("nan"), True, "1", 1j])
def test_a_value_that_is_not_a_finite_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ConfigError, match="^learning_rate must be a finite number"):
        require_number("learning_rate", value, 0)


def test_settings_within_their_bounds_are_taken_as_they_are_also_numpys() -> None:
    oven = Oven(np.int64(2), np.float32(0), True, "bottom", 3, "hot", MAX_SEED)
    assert oven.trays == 2 and oven.minutes == 3 and oven.label == "hot"
    assert Oven(1) == Oven(trays=1, minutes=None)
    assert Oven(1, 0.5) != Oven(1, 0.25)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trays": 0}, "trays must be an integer of at least 1; got 0"),
        ({"shelves": 1}, "shelves must be an integer of at least 2 (a top and a bottom); got 1"),
        ({"trays": None}, "trays must be an integer of at least 1; got None"),
        ({"trays": 2**31}, "trays must be an integer of at most 2,147,483,647; got 2147483648"),
        ({"trays": 10**5000}, "trays must be an integer of at most 2,147,483,647; got int too large to show"),
        ({"heat": 1}, "heat must be a finite number with 0 ≤ heat < 1; got 1"),
        ({"heat": -0.5}, "heat must be a finite number with 0 ≤ heat < 1; got -0.5"),
        ({"fan": 1}, "fan must be True or False; got 1"),
        ({"mode": "botom"}, "mode must be one of top, bottom; got 'botom'; did you mean 'bottom'?"),
        ({"minutes": True}, "minutes must be a finite number with 0.1 ≤ minutes; got True"),
        ({"label": 3}, "label must be a string; got 3"),
        ({"seed": 2**64}, "seed must be an integer of at most 18,446,744,073,709,551,615; got 18446744073709551616"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_with_field_value_and_what_is_allowed(change: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Oven(**{"trays": 1} | change)
    assert str(caught.value) == said
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(Oven(1), **change)
    assert str(caught.value) == said
    with pytest.raises(ConfigError) as caught:
        check_settings(Oven, change, "oven.toml")
    assert str(caught.value) == f"oven.toml: {said}"


def test_a_part_of_the_settings_can_be_checked_and_an_unknown_one_is_refused() -> None:
    check_settings(Oven, {"fan": True})
    with pytest.raises(ConfigError, match=r"oven.toml: unknown 'tray', did you mean 'trays'\?"):
        check_settings(Oven, {"tray": 3}, "oven.toml")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ng.training.TrainConfig(lr=1), "TrainConfig: unknown 'lr', did you mean 'learning_rate'?"),
        (lambda: ng.GPTConfig(n_layre=3), "GPTConfig: unknown 'n_layre', did you mean 'n_layer'?"),
        (lambda: dataclasses.replace(Oven(1), tray=2), "Oven: unknown 'tray', did you mean 'trays'?"),
    ],
)
def test_an_unknown_setting_is_refused_with_its_nearest_match(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == said


def test_a_training_of_steps_and_minutes_is_refused() -> None:
    with pytest.raises(ConfigError, match="steps and minutes are both given"):
        ng.training.TrainConfig(steps=100, minutes=1)


def test_settings_are_frozen_dataclasses_that_can_be_compared_hashed_and_pickled() -> None:
    sampling = ng.inference.Sampling(top_k=3)
    assert dataclasses.is_dataclass(sampling)
    assert pickle.loads(pickle.dumps(sampling)) == sampling
    assert hash(sampling) == hash(ng.inference.Sampling(top_k=3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampling.top_k = 4  # type: ignore[misc]
    with pytest.raises(TypeError, match="trays"):
        Oven()  # type: ignore[call-arg]


KINDS = [ng.GPTConfig, ng.training.TrainConfig, TextConfig, ng.inference.Sampling]


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_its_help_in_a_sentence(kind: type[Settings]) -> None:
    helps = [field.metadata["help"] for field in dataclasses.fields(kind)]
    assert all(help[-1] == "." and len(help) > 5 for help in helps)


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        ("int", 3, r"Mine.size is declared without setting\(\); write NAME: TYPE = setting"),
        ("list", [], r"Mine: mutable default .* for field size is not allowed; write"),
        ("Unknown", setting("Numbers.", default=3), "Mine: name 'Unknown' is not defined; write"),
        (None, setting("Numbers.", default=3), "Mine: 'size' is a field but has no type annotation; write"),
        (list[int], setting("Numbers.", default=None), r"Mine.size has the type list\[int\]; expected bool, int"),
        (int | str, setting("Numbers.", default=3), "Mine.size has the type int | str; expected bool, int"),
    ],
)
def test_a_field_that_cannot_be_a_setting_is_refused_where_its_class_is_declared(hint, value, said) -> None:
    with pytest.raises(ConfigError, match=said):
        type("Mine", (Settings,), {"__annotations__": {} if hint is None else {"size": hint}, "size": value})
