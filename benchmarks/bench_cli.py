"""Bars of the command line and the import: they answer at once, as a multiple of an empty Python.

::

    python benchmarks/bench_cli.py

Each command runs several times, in turn with ``python -c pass``; the medians count. Prints a table; the last line is
one JSON object with a key a bar.
"""

import json
import statistics
import subprocess
import sys
import time

ROUNDS = 15

COMMANDS = {
    "empty": ["-c", "pass"],
    "import_terraseg": ["-c", "import terraseg"],
    "terraseg_help": ["-m", "terraseg.cli", "--help"],
    "terraseg_predict_help": ["-m", "terraseg.cli", "predict", "--help"],
}
GOALS = {"import_terraseg": 5.0, "terraseg_help": 12.0, "terraseg_predict_help": 15.0}


def main() -> None:
    """Time all commands, and print what was measured."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, words in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(each) for name, each in times.items()}
    bars = {}
    for name, median in medians.items():
        ratio = median / medians["empty"]
        print(f"{name:<24}{median:8.3f} s{ratio:8.1f} x empty")
        if name in GOALS:
            goal = GOALS[name]
            bars[f"{name}_over_empty_python"] = {"value": round(ratio, 1), "goal": goal, "ok": ratio <= goal}
    print(json.dumps(bars))


if __name__ == "__main__":
    main()
