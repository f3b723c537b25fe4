"""`pytest --gradient-mutants`: how many typical mistakes in a backward rule do these tests notice?

First the tests run unchanged, and the plugin records which rules each test runs. Then it plants the mistakes, one at a
time, and runs the tests of that rule again, the quickest first, until one fails: the mistake is noticed. Each time all
fixtures are set up and torn down, those of the session too, so that nothing computed with a wrong gradient is kept.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import NanogradError
from nanograd_llm.gradcheck.mutation.backward_rules import BackwardRule, backward_rules
from nanograd_llm.gradcheck.mutation.mutants import Mutant, mutants
from nanograd_llm.settings import nearest

# With a wrong gradient, a training loop that waits for a smaller loss may never end. So a test has noticed a mistake if
# it takes _TIMES_LONGER as long as without it, plus _MORE_SECONDS.
_TIMES_LONGER = 20
_MORE_SECONDS = 5.0
_LISTED = 5  # the largest number of tests named for an op


@dataclass
class _Score:
    """One op or backward rule. tests: those that run its rule, in the order in which they are tried."""

    op: Op | BackwardRule
    mutants: list[Mutant]
    tests: list[pytest.Item] = field(default_factory=list)
    survivors: list[Mutant] = field(default_factory=list)

    @property
    def noticed(self) -> int:
        return len(self.mutants) - len(self.survivors)


class GradientMutants:
    """The plugin of one session. Raises pytest.UsageError for options that do not go together."""

    def __init__(self, config: pytest.Config):
        self.wanted: str = config.getoption("--gradient-mutants")
        self.with_sharp: bool = config.getoption("--gradient-mutants-sharp")
        self.least: float = config.getoption("--gradient-mutants-min") or 0.0
        self.scores: list[_Score] = []
        self.state = "not scored: the tests did not run to their end"
        self._reached: dict[pytest.Item, set[Op | BackwardRule]] = {}
        self._seconds: dict[pytest.Item, float] = {}
        self._running: pytest.Item | None = None
        self._is_planted = False
        self._has_failed = False
        if not 0 <= self.least <= 100:
            raise pytest.UsageError(f"--gradient-mutants-min is a percentage from 0 to 100; got {self.least:g}")
        if config.getoption("numprocesses", None) or config.getoption("dist", "no") != "no":
            raise pytest.UsageError("--gradient-mutants runs the tests one by one in this process; leave out -n")
        if config.getoption("usepdb"):
            raise pytest.UsageError("--gradient-mutants makes tests fail on purpose; leave out --pdb")
        if self.wanted not in registry and os.path.exists(self.wanted):
            raise pytest.UsageError(
                f"--gradient-mutants takes names of ops, and {self.wanted!r} is a path; write "
                f"--gradient-mutants=own {self.wanted}"
            )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, Any, Any]:
        if session.config.option.collectonly or not session.items:
            return (yield)
        self.scores = [_Score(op, self._mutants_of(op)) for op in self._chosen()]
        if not any(score.mutants or isinstance(score.op, BackwardRule) for score in self.scores):
            names = ", ".join(score.op.name for score in self.scores)
            raise pytest.UsageError(f"there is no mistake to plant: none changes a gradient of {names}")
        with self._noting_who_runs_what():
            result = yield
        for score in self.scores:
            if isinstance(score.op, BackwardRule):
                score.mutants = self._without_sharp(score.op.mutants())
        if session.testsfailed:
            self.state = "not scored: some tests fail without a planted mistake; they must pass first"
            return result
        terminal: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        warnings = list(terminal.stats.get("warnings", ()))
        session.config.option.tbstyle = "native"  # the fastest; it is not shown
        self._try_all(terminal)
        terminal.stats["warnings"] = warnings  # without those of tests that run with a mistake
        self.state = ""
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool:
        self._running, self._has_failed = item, False
        begin = time.perf_counter()
        if self._is_planted:
            with _time_limit(_MORE_SECONDS + _TIMES_LONGER * self._seconds[item]), _without_shrinking(item):
                reports = runtestprotocol(item, log=False, nextitem=None)
        else:
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            reports = runtestprotocol(item, nextitem=None)
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
            self._seconds[item] = time.perf_counter() - begin
        self._has_failed = any(report.failed for report in reports)
        return True

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.OK and not self.state and self._percent() < self.least:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        if not self.scores:
            return
        terminalreporter.section("gradient mutants")
        if self.state:
            terminalreporter.write_line(self.state, red=True)
            return
        width = max(len(score.op.name) for score in self.scores)
        for score in self.scores:
            of = f"{score.op.name.ljust(width)}  {score.noticed} of {len(score.mutants)} mistakes noticed"
            if isinstance(score.op, BackwardRule) and not score.mutants:
                traced = "it was only called where numbers are not known, as inside jax.jit"
                terminalreporter.write_line(f"{of}: {traced if score.op.is_traced else 'no test calls it'}", red=True)
            elif not score.mutants:
                terminalreporter.write_line(f"{of}: none changes its gradient on the inputs drawn for it")
            elif not score.tests:
                terminalreporter.write_line(f"{of}: no test runs its rule", red=True)
            else:
                terminalreporter.write_line(of, red=bool(score.survivors), green=not score.survivors)
                for mutant in score.survivors:
                    terminalreporter.write_line(f"    not noticed: {mutant.description}")
                if score.survivors:
                    names = ", ".join(item.nodeid for item in score.tests[:_LISTED])
                    more = f" and {len(score.tests) - _LISTED} more" if len(score.tests) > _LISTED else ""
                    terminalreporter.write_line(f"    by {names}{more}")
        noticed, total = self._noticed()
        percent = math.floor(self._percent() * 10) / 10  # never 100 if one was not noticed
        line = f"score: {percent:g} % ({noticed} of {total} mistakes noticed)"
        if self._percent() < self.least:
            line += f", below the {self.least:g} % of --gradient-mutants-min"
        terminalreporter.write_line(line, bold=True)

    def _chosen(self) -> list[Op | BackwardRule]:
        """What the option names; by now the tests have imported the modules that declare it."""
        known: list[Op | BackwardRule] = [*registry.values(), *backward_rules.values()]
        if self.wanted == "all":
            return known
        if self.wanted == "own":
            own = [op for op in known if op.__module__.partition(".")[0] != "nanograd_llm"]
            if not own:
                raise pytest.UsageError(
                    "these tests declare no op and no @backward_rule of their own; name ops to plant mistakes in, such "
                    "as --gradient-mutants=softmax,layernorm, or pass --gradient-mutants=all"
                )
            return own
        chosen: list[Op | BackwardRule] = []
        for name in dict.fromkeys(name.strip() for name in self.wanted.split(",")):
            found = [op for op in known if op.name == name]
            if not found:
                near = nearest(name, [*(op.name for op in known), "own", "all"])
                hint = f"; did you mean {near!r}?" if near else ""
                raise pytest.UsageError(f"--gradient-mutants: there is no op or @backward_rule {name!r}{hint}")
            chosen += found
        return chosen

    def _mutants_of(self, op: Op | BackwardRule) -> list[Mutant]:
        if isinstance(op, BackwardRule):
            return []  # they are known when the tests have called it
        try:
            return self._without_sharp(mutants(op))
        except NanogradError as error:
            message = f"--gradient-mutants: {error}; or leave {op.name} out, by naming the others"
            raise pytest.UsageError(message) from None

    def _without_sharp(self, found: list[Mutant]) -> list[Mutant]:
        return [mutant for mutant in found if self.with_sharp or not mutant.sharp]

    @contextlib.contextmanager
    def _noting_who_runs_what(self) -> Iterator[None]:
        rules: dict[Any, Any] = {score.op: score.op.rule for score in self.scores}
        for op, rule in rules.items():
            op.rule = self._noting(op, op.observed if isinstance(op, BackwardRule) else rule)
        try:
            yield
        finally:
            for op, rule in rules.items():
                op.rule = rule
        for score in self.scores:
            tests = [item for item, ops in self._reached.items() if score.op in ops]
            score.tests = sorted(tests, key=self._seconds.__getitem__)

    def _noting(self, op: Op | BackwardRule, rule: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(rule)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if self._running is not None:
                self._reached.setdefault(self._running, set()).add(op)
            return rule(*args, **kwargs)

        return noted

    def _try_all(self, terminal: Any) -> None:
        self.state = "not scored: interrupted before every mistake was tried"
        terminal.write_line(f"\nplanting {self._noticed()[1]} mistakes, one at a time: . noticed, S survived")
        for score in self.scores:
            for mutant in score.mutants:
                is_noticed = self._is_noticed(mutant, score.tests)
                score.survivors += [] if is_noticed else [mutant]
                terminal.write("." if is_noticed else "S", green=is_noticed, red=not is_noticed)

    def _is_noticed(self, mutant: Mutant, tests: list[pytest.Item]) -> bool:
        """Does one of the tests fail? It then moves to the front, as it will probably notice the next mistake too."""
        self._is_planted = True
        try:
            with mutant.planted():
                for place, item in enumerate(tests):
                    item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
                    if self._has_failed:
                        tests.insert(0, tests.pop(place))
                        return True
        finally:
            self._is_planted = False
        return False

    def _noticed(self) -> tuple[int, int]:
        """The number of mistakes noticed, and of all mistakes."""
        return sum(score.noticed for score in self.scores), sum(len(score.mutants) for score in self.scores)

    def _percent(self) -> float:
        noticed, total = self._noticed()
        return 100 * noticed / total if total else 0.0


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Fail the code inside after so many seconds, if the system has interval timers and this is the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        pytest.fail(f"did not end within {seconds:.0f} s", pytrace=False)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again each second, in case something catches the failure
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _without_shrinking(item: pytest.Item) -> Iterator[None]:
    """Keep Hypothesis from shrinking and storing a failing example, whose cause is the planted mistake."""
    test: Any = getattr(item, "obj", None)
    test = getattr(test, "__func__", test)
    settings = getattr(test, "_hypothesis_internal_use_settings", None)
    if settings is None:
        yield
        return
    phases = [phase for phase in settings.phases if phase.name not in ("shrink", "explain")]
    test._hypothesis_internal_use_settings = type(settings)(settings, database=None, phases=phases)
    try:
        yield
    finally:
        test._hypothesis_internal_use_settings = settings
