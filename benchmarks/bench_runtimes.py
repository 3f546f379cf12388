"""Bar of the runtimes: how much faster than eager PyTorch a bundle runs on a CPU within parity.

::

    python benchmarks/bench_runtimes.py                  the demo's Prithvi tiny and UperNet on the demo's scene
    python benchmarks/bench_runtimes.py --bundle B --input SCENE

Trained weights and real pixels, because parity on others means nothing: `make demo` comes first. All runtimes are timed
in one run, normalisation and log-odds included. Prints a table; the last line is one JSON object with a key a bar.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from processor import goal_here
from rich.console import Console

from terraseg.mapping.runtimes.export import export
from terraseg.mapping.runtimes.parity import parity_table

GOALS = {"AMX": 3.0, "AVX2": 1.2}
"""Exported over eager, by the processor's instruction set. Only AMX multiplies 8-bit and bfloat16 matrices so fast."""


def main() -> None:
    """Export a copy of the bundle, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("outputs/demo_prithvi_tiny/bundle"))
    parser.add_argument("--input", type=Path, default=Path("data/demo/raw"))
    parser.add_argument("--chips", type=int, default=64)
    options = parser.parse_args()
    if not options.bundle.is_dir():
        parser.error(f"no bundle at {options.bundle}: run `make demo`, or name one with --bundle")
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(options.bundle, Path(folder) / "bundle")
        record = export(bundle=copy, input=options.input, chips=options.chips)
    Console().print(parity_table(record))
    eager = record.runtimes["torch"].images_per_s
    speedups = {
        name: parity.images_per_s / eager
        for name, parity in record.runtimes.items()
        if name.startswith(("onnx", "openvino")) and parity.passed
    }
    best = max(speedups.values(), default=0.0)
    goal, instructions = goal_here(GOALS)
    bar = {"value": round(best, 2), "goal": f">= {goal:g} with {instructions}", "ok": best >= goal}
    print(json.dumps({"exported_images_per_s_over_eager_fp32": bar}))


if __name__ == "__main__":
    main()
