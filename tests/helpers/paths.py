"""Where the repository and its experiments lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TESTS = ROOT / "tests"
