"""The programs of bench/ import each other by name, as when they are run by their path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "bench"))
