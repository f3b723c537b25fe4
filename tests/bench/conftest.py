"""A contender's process imports what makes its step by name, so `makers` must be found from there too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
