"""Bars of pretraining, in one run: `python benchmarks/bench_pretrain.py [--side 2048]`.

::

    stream      chips a second that the input pipeline gives from two COGs on the local disk, against the same chips
                cut from a memory-mapped .npy file of the same pixels: ten bands, batches of 64 chips of 64 px and of 32
                chips of 224 px, turned, standardised, in one process, best of the rounds. The first read of every
                region is part of the time; the files are in the cache of the operating system in both cases
    resume      a pretraining that is killed by SIGKILL and resumed against the unbroken one: largest difference of
                the weights

About 3 minutes on two cores. Prints a table; the last line is one JSON object with a key a bar.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from safetensors.numpy import load_file

from terraseg.contracts.scene import scene_writer
from terraseg.learn.pretrain.datamodule import SceneWindows, Windows
from terraseg.learn.pretrain.regions import Region

ROOT = Path(__file__).parents[1]
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
CHIPS = {64: 64, 224: 32}
"""Batch size by the side of a chip."""

GOAL = 0.5
STEPS, SAVED_EVERY = 20, 5


def main() -> None:
    """Make the scenes, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=2048, help="pixels of a scene's side")
    parser.add_argument("--chips", type=int, default=6_000, help="of 64 px in a round; as much ground in larger ones")
    parser.add_argument("--rounds", type=int, default=3, help="in turns, as others may use the machine")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        scenes = Path(folder) / "scenes"
        for seed in range(2):
            _make_scene(scenes / f"scene_{seed}.tif", options.side, seed)
        bars = _stream_bars(scenes, chips=options.chips, rounds=options.rounds) | _resume_bars(scenes, Path(folder))
    print(f"{'bar':44} {'value':>8} {'goal':>8}")
    for name, bar in bars.items():
        print(f"{name:44} {bar['value']:>8} {bar['goal']:>8} {'' if bar['ok'] else 'MISSED'}")
    print(json.dumps(bars))


def _make_scene(path: Path, side: int, seed: int) -> None:
    """A COG of ten bands with structure at several scales and noise, and its pixels as .npy beside the folder."""
    random = np.random.default_rng(seed)
    pixels = np.empty((len(BANDS), side, side), np.uint16)
    for band, target in enumerate(pixels):
        field = np.zeros((side, side), np.float32)
        for cells in (8, 64, 512):
            coarse = random.normal(0, 250, (cells, cells)).astype(np.float32)
            field += cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        noise = random.standard_normal((side, side), dtype=np.float32) * 15
        target[:] = np.clip(field + noise + 1000 + 150 * band, 1, 10_000)
    item = {"type": "Feature", "id": path.stem,
            "properties": {"datetime": "2026-01-01T00:00:00Z", "terraseg:attribution": "synthetic"}}  # fmt: skip
    geobox = GeoBox((side, side), Affine(10, 0, 500_000, 0, -10, 4_000_000), "EPSG:32631")
    with scene_writer(path, geobox=geobox, bands=BANDS, item=item) as writer:
        writer.write(pixels)
    np.save(path.parents[1] / f"{path.stem}.npy", pixels)


# The input pipeline


class _Mapped(Windows):
    """The same chips from memory maps."""

    def __init__(self, data: SceneWindows, folder: Path) -> None:
        super().__init__(data, rank=0)
        self._maps = {file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")}

    def read(self, region: Region) -> npt.NDArray[np.uint16]:
        return self._maps[region.path.stem][:, *region.window.toslices()]


def _stream_bars(scenes: Path, *, chips: int, rounds: int) -> dict[str, dict[str, object]]:
    bars: dict[str, dict[str, object]] = {}
    print(f"{'chips a second':24} {'from COGs':>12} {'from .npy':>12}")
    for side, batch in CHIPS.items():
        data = SceneWindows([str(scenes)], list(BANDS), chip_size=side, batch_size=batch)
        data.setup("fit")
        steps = max(16, chips * 64**2 // (side**2 * batch))
        rates: dict[str, float] = {"COG": 0, "npy": 0}
        for step in (0, 7):
            first, second = Windows(data, rank=0)[step], _Mapped(data, scenes.parent)[step]
            assert all(bool((first[key] == second[key]).all()) for key in first)
        for _ in range(rounds):
            for name in rates:
                windows = Windows(data, rank=0) if name == "COG" else _Mapped(data, scenes.parent)
                start = time.perf_counter()
                for step in range(steps):
                    windows[step]
                rates[name] = max(rates[name], steps * batch / (time.perf_counter() - start))
        print(f"{side:>3} px, batches of {batch:<7} {rates['COG']:>12.0f} {rates['npy']:>12.0f}")
        ratio = rates["COG"] / rates["npy"]
        bars[f"stream_{side}px_vs_memory_map"] = {"value": round(ratio, 2), "goal": f">= {GOAL}", "ok": ratio >= GOAL}
    return bars


# Resume


def _resume_bars(scenes: Path, work: Path) -> dict[str, dict[str, object]]:
    unbroken = _pretrain(scenes, work / "unbroken")
    assert unbroken.wait() == 0
    killed = _pretrain(scenes, work / "killed")
    last = work / "killed/checkpoints/last.ckpt"
    while not last.exists() and killed.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)  # into the steps after it
    was_running = killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    encoder = work / "killed/encoder.safetensors"
    was_running &= not encoder.exists()
    assert _pretrain(scenes, work / "killed", "--ckpt_path", str(last)).wait() == 0
    whole, resumed = (load_file(work / name / "encoder.safetensors") for name in ("unbroken", "killed"))
    difference = max(float(np.abs(whole[key] - resumed[key]).max()) for key in whole)
    ok = was_running and difference == 0
    return {"resume_after_sigkill_weights_differ_by": {"value": difference, "goal": "0", "ok": ok}}


def _pretrain(scenes: Path, output: Path, *options: str) -> "subprocess.Popen[bytes]":
    changes = {
        "data.scenes": f"[{scenes}]", "data.bands": f"[{','.join(BANDS)}]", "data.batch_size": 8,
        "trainer.max_steps": STEPS, "trainer.default_root_dir": output, "trainer.accelerator": "cpu",
        "trainer.callbacks": f"[{{class_path: ModelCheckpoint, init_args: {{dirpath: {output}/checkpoints, "
        f"filename: last, every_n_train_steps: {SAVED_EVERY}, enable_version_counter: false}}}}]",
        "trainer.logger": "false", "trainer.enable_progress_bar": "false", "model.backbone_args": "{drop_path: 0.1}",
    }  # fmt: skip
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "terraseg.cli", "pretrain", "--config", str(ROOT / "configs/pretrain_mae.yaml")]
    return subprocess.Popen([*command, *words, *options], start_new_session=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
