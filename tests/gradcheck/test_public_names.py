"""`from nanograd_llm.gradcheck import *` needs nothing beyond the package itself."""

from __future__ import annotations

import subprocess
import sys


def test_all_names_can_be_imported_without_hypothesis() -> None:
    source = "import sys; sys.modules['hypothesis'] = None; from nanograd_llm.gradcheck import *; check_op, gradcheck"
    subprocess.run([sys.executable, "-c", source], check=True)
