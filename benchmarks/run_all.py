"""Run every benchmarks/bench_<room>.py and keep docs/benchmarks.md.

A benchmark prints a table, then as its last line one JSON object with a key a bar:
{"value": ..., "goal": ..., "ok": ...}. Values are ratios against a peer or a limit named by the key, in one run.
"""

import datetime as dt
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from processor import instruction_sets

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main() -> int:
    """Run all; exit code 1 if a benchmark broke. A bar that is not met is shown, and is no failure of the run."""
    sections, broken = [], 0
    for script in sorted((ROOT / "benchmarks").glob("bench_*.py")):
        print(f"== {script.name}", flush=True)
        done = subprocess.run([sys.executable, script], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
        if done.returncode:
            broken += 1
            continue
        sections.append(_section(script, json.loads(done.stdout.strip().splitlines()[-1])))
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{_machine()}\n\n{''.join(sections)}{END}{after}", encoding="utf-8")
    return 1 if broken else 0


def _section(script: Path, bars: dict[str, dict[str, Any]]) -> str:
    rows = "".join(
        f"| {name.replace('_', ' ')} | {bar['value']} | {bar['goal']} | {'yes' if bar['ok'] else '**no**'} |\n"
        for name, bar in bars.items()
    )
    return f"### {script.stem.removeprefix('bench_')}\n\n| bar | measured | goal | met |\n|---|---|---|---|\n{rows}\n"


def _machine() -> str:
    return (
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {os.cpu_count()} CPU cores ({platform.machine()}; "
        f"{', '.join(instruction_sets()) or 'without AVX2'}), {platform.system()}, "
        f"Python {platform.python_version()}, no GPU unless a bar names one."
    )


if __name__ == "__main__":
    sys.exit(main())
