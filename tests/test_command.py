"""The front door of the command, `nanograd_llm_command`: what it is before the package is loaded."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nanograd_llm

PACKAGE_HOME = Path(nanograd_llm.__path__[0]).parent
ENTRY = "nanograd_llm_command"

# As the script that pip makes, but for Ctrl-C at the moment when a module is about to be imported.
INTERRUPTED = f"""
import os, signal, sys

signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[1] == "ignored" else signal.default_int_handler)
at = sys.argv[2]
del sys.argv[1:3]

def interrupt(event, arguments):
    if event == "import" and arguments[0] == at:
        print("interrupted", flush=True)
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(interrupt)
from {ENTRY} import main
sys.exit(main())
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_HOME)}
    return subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, env=environment)


def test_it_is_what_the_console_script_starts() -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    assert config["options.entry_points"]["console_scripts"].strip() == f"nanograd-llm = {ENTRY}:main"


def test_importing_it_loads_nothing_heavy() -> None:
    done = run(f"import sys, {ENTRY}; print({{'numpy', 'nanograd_llm', 'typing'}} & set(sys.modules))")
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.skipif(os.name == "nt", reason="os.kill ends a process there at once")
@pytest.mark.parametrize(
    "module",
    [
        *("nanograd_llm", "numpy", "numpy.linalg", "nanograd_llm.engine", "nanograd_llm.training", "nanograd_llm.cli"),
        *("cyclopts", "nanograd_llm.cli.train", "rich.console", "nanograd_llm.sources"),
    ],
)
def test_ctrl_c_while_it_loads_is_one_line_and_code_130(module: str, tmp_path: Path) -> None:
    done = run(INTERRUPTED, "default", module, "info", str(tmp_path))
    assert (done.returncode, done.stderr) == (130, "nanograd-llm: stopped\n")
    assert done.stdout.strip() == "interrupted"


def test_ctrl_c_that_whoever_started_it_ignores_stays_ignored(tmp_path: Path) -> None:
    done = run(INTERRUPTED, "ignored", "numpy", "--version")
    assert (done.returncode, done.stdout) == (0, f"interrupted\n{nanograd_llm.__version__}\n")
