"""The tests of this folder may import the scripts beside them: the oracle and the fuzzer."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
