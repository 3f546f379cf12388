"""Bar of the first minutes: `make .venv/installed` against pip with the same lock, both with empty caches.

::

    python benchmarks/bench_install.py

It downloads the packages twice, several GB each. Prints a table; the last line is one JSON object with a key a bar.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOAL = 1 / 3


def main() -> None:
    """Install twice, and print what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for name in ("Makefile", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "src"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, here / name)
        caches = {"UV_CACHE_DIR": str(here / "uv"), "PIP_CACHE_DIR": str(here / "pip")}
        make = _seconds(here, caches, ["make", f"PYTHON={sys.executable}", ".venv/installed"])
        shutil.rmtree(here / ".venv")
        shutil.rmtree(here / "uv", ignore_errors=True)
        python = here / ".venv" / "bin" / "python"
        pip = _seconds(here, caches, [sys.executable, "-m", "venv", ".venv"])
        pip += _seconds(here, caches, [str(python), "-m", "pip", "install", "--quiet", "-r", "requirements.txt"])
    print(f"{'make .venv/installed':<24}{make:8.0f} s\n{'pip install -r':<24}{pip:8.0f} s")
    value = make / pip
    print(
        json.dumps({"installation_over_pip": {"value": round(value, 2), "goal": round(GOAL, 2), "ok": value <= GOAL}})
    )


def _seconds(folder: Path, caches: dict[str, str], words: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(words, cwd=folder, env={**os.environ, **caches}, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
