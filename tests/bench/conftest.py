"""A contender's process imports its maker by name, so it must find the module `makers`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
