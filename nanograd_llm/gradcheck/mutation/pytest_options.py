"""The options of the pytest plugin. The plugin itself is loaded only if they are given, so pytest starts as fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gradient mutants", "a score for tests of gradients, by nanograd_llm")
    group.addoption(
        "--gradient-mutants",
        nargs="?",
        const="own",
        metavar="OPS",
        help="plant typical mistakes, one at a time, in the rules of ops and in functions under @backward_rule, and "
        "list those that the tests do not notice; OPS is 'own' (declared outside nanograd_llm, the default), 'all', or "
        "NAME,NAME",
    )
    group.addoption(
        "--gradient-mutants-sharp",
        action="store_true",
        help="also plant gradients that are 1 + 1e-9 times what they should be, which only exact checks notice",
    )
    group.addoption(
        "--gradient-mutants-min",
        type=float,
        metavar="PERCENT",
        help="fail if the tests notice fewer than this share of the mistakes (default: 0)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--gradient-mutants") is not None:
        from nanograd_llm.gradcheck.mutation.pytest_plugin import GradientMutants

        config.pluginmanager.register(GradientMutants(config), "gradient-mutants")
        return
    for option in ("--gradient-mutants-sharp", "--gradient-mutants-min"):
        given = config.getoption(option)
        if given is not None and given is not False:
            from pytest import UsageError

            raise UsageError(f"{option} does nothing without --gradient-mutants; add that, or remove this option")
