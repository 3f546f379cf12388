"""Bars of whole-scene prediction against what it is measured by: TerraTorch's own command, and the bare model.

::

    conv      A 1 x 1 convolution over six bands, as an encoder-decoder of TerraTorch, on a COG of 5490 x 5490 px:
              `terraseg predict` against `terratorch predict` with SemanticSegmentationTask and tiled inference, both
              with the same weights, windows of 224 px that overlap by 56, and batches of 16. Each is its command's own
              entry point in a process of its own, from the arguments to the last file: ours reads a bundle, TerraTorch
              a checkpoint; ours writes probability, mask (COGs with overviews), polygons and item, TerraTorch one
              class map. Imports and first calls don't count: each process has mapped a scene of 512 px before.
    prithvi   The demo's Prithvi-EO 2.0 tiny with UperNet, random weights, single precision: `predict_scene`, files and
              polygons included, against nothing but the model on the same windows in the same batches. The model is
              run in both ways that there are, all cores an operation and a core a batch, and the faster one counts.
              Where a bundle with an exported model is at hand (--bundle), its fastest runtime is a row without a bar.
    prithvi   On a GPU, where there is one: Prithvi-EO 1.0 100M with UperNet in bfloat16, random weights; the forward's
    _v1_100   share of `predict_scene`, and the ground that is mapped in a second.

About 4 minutes on two cores. In turns, as others may use the machine: our side of conv comes before and after
TerraTorch's, and prithvi's ratio is the median of those of the rounds. Prints a table; the last line is one JSON object
with a key a bar.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import yaml
from bench_map import AS_THE_COMMAND, BATCH, MEANS, STDS, bundle_info, make_scene, pointwise
from processor import goal_here
from rasterio.windows import Window
from torch import nn

from terraseg.api.mapping import predict
from terraseg.contracts.bundle import Bundle, open_bundle, write_bundle
from terraseg.contracts.scene import Scene
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.core.machine.memory import peak_memory, reuse_freed_memory
from terraseg.core.windows import WindowAxis
from terraseg.learn.models.load import weights_of
from terraseg.mapping.runtimes.choose import open_predictor
from terraseg.mapping.runtimes.pytorch import BundlePredictor
from terraseg.mapping.scene import predict_scene
from terraseg.mapping.windows.blend import even_batches

ROOT = Path(__file__).parents[1]
FASTER_GOALS = {"AMX": 4.0, "AVX2": 3.0}
"""Speed over TerraTorch's, by the processor's instruction set."""

CROP, OVERLAP = 224, 56
WARM = 512
"""Side of the scene that each process maps before it is timed."""
PIXEL_KM = 0.01

FACTORY = "EncoderDecoderFactory"
CONV = {"backbone": "BareBands", "decoder": "IdentityDecoder", "num_classes": 2}


def main() -> None:
    """Measure both, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=5490, help="side of the scene of conv; 0: without it")
    parser.add_argument("--prithvi-side", type=int, default=3080, help="side of the scene of prithvi; 0: without it")
    parser.add_argument("--gpu-side", type=int, default=5490, help="side of the scene on the GPU")
    parser.add_argument("--rounds", type=int, default=5, help="of prithvi")
    parser.add_argument("--bundle", type=Path, default=ROOT / "outputs/demo_prithvi_tiny/bundle")
    parser.add_argument("--command", choices=COMMANDS, help=argparse.SUPPRESS)  # of the measured child process
    parser.add_argument("--scenes", type=Path, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--models", action="store_true", help=argparse.SUPPRESS)  # the child for all but conv
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.command:
            print(json.dumps(_run_command(options.command, options.scenes, folder)))
            return
        if options.models:
            print(json.dumps(_model_bars(folder, options)))
            return
        bars = _conv_bars(folder, options.side) if options.side else {}
        models = [sys.executable, __file__, *sys.argv[1:], "--models"]
        done = subprocess.run(models, stdout=subprocess.PIPE, text=True, check=True, env=AS_THE_COMMAND)
        *table, line = done.stdout.splitlines()
        print("\n".join(table))
        bars |= json.loads(line)
    print(f"{'bar':40} {'value':>8} {'goal':>8}")
    for key, bar in bars.items():
        print(f"{key:40} {bar['value']:>8} {bar['goal']:>8} {'' if bar['ok'] else 'MISSED'}")
    print(json.dumps(bars))


# conv


def _conv_bars(folder: Path, side: int) -> dict[str, dict[str, Any]]:
    scenes = [str(make_scene(folder / f"{size}", size).path) for size in (WARM, side)]
    told: dict[str, list[dict[str, float]]] = {name: [] for name in COMMANDS}
    for name in ("terraseg", "terratorch", "terraseg"):
        child = [sys.executable, __file__, "--command", name, "--scenes", *scenes]
        environment = AS_THE_COMMAND if name == "terraseg" else None
        done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        told[name].append(json.loads(done.stdout.splitlines()[-1]))
    if len({round(run["class_share"], 4) for runs in told.values() for run in runs}) > 1:
        raise SystemExit("the two commands' maps differ: they did not run the same model")
    typical = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in told.items()
    }
    print(f"{'conv':24} {'s':>8} {'peak MB':>8}   {side} px, {typical['terraseg']['class_share']:.1%} of the class")
    for name, run in typical.items():
        print(f"  {name:22} {run['seconds']:>8.1f} {run['peak_mb']:>8.0f}   {run['warm_seconds']:.1f} s for {WARM} px")
    ratio = typical["terratorch"]["seconds"] / typical["terraseg"]["seconds"]
    goal, instructions = goal_here(FASTER_GOALS)
    bar = _bar(ratio, goal, at_least=True)
    return {"conv_times_faster_than_terratorch": bar | {"goal": f"{bar['goal']} with {instructions}"}}


def _run_command(name: str, scenes: list[Path], folder: Path) -> dict[str, float]:
    """Map the small scene and the large one by one command's own entry point."""
    _register_bare_bands()
    command, seconds = COMMANDS[name](folder), []
    for scene in scenes:
        begin = time.perf_counter()
        written = command(scene, folder / f"maps of {scene.stem}")
        seconds.append(time.perf_counter() - begin)
    with rasterio.open(written) as source:
        share = float((source.read(1) == 1).mean())
    return {"warm_seconds": seconds[0], "seconds": seconds[1], "peak_mb": peak_memory() / 2**20, "class_share": share}


def _terraseg(folder: Path) -> Callable[[Path, Path], Path]:
    """`terraseg predict --bundle`; returns a function of scene and output that gives the mask's path."""
    from terraseg.learn.models.build import build_model

    model = build_model(FACTORY, CONV)
    model.head.head[-1].load_state_dict(pointwise().state_dict())
    info = bundle_info("conv", CROP, model_factory=FACTORY, **CONV)
    bundle = write_bundle(folder / "bundle", info=info, weights=weights_of(model), config="").root

    def command(scene: Path, output: Path) -> Path:
        (product,) = predict(bundle=bundle, input=scene, output=output, overlap=OVERLAP, batch_size=BATCH, device="cpu")
        return product.mask

    return command


def _terratorch(folder: Path) -> Callable[[Path, Path], Path]:
    """`terratorch predict -c --ckpt_path --predict_output_dir`; returns the like of `_terraseg`."""
    from lightning.pytorch import Trainer
    from terratorch.__main__ import main as terratorch
    from terratorch.tasks import SemanticSegmentationTask

    tiles = {"crop": CROP, "stride": CROP - OVERLAP, "batch_size": BATCH}
    arguments = {
        "model_factory": FACTORY, "model_args": {**CONV, "backbone_pretrained": False}, "loss": "ce",
        "ignore_index": -1, "tiled_inference_parameters": tiles,
    }  # fmt: skip
    task = SemanticSegmentationTask(**deepcopy(arguments))  # it changes what it gets
    task.model.head.head[-1].load_state_dict(pointwise().state_dict())
    task.hparams.clear()  # else they, not the config, would be the model section of the command
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(folder / "conv.ckpt")
    chips = {f"{split}_data_root": str(folder) for split in ("train", "val", "test")}
    config = {
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False,
                    "default_root_dir": str(folder)},
        "model": {"class_path": "terratorch.tasks.SemanticSegmentationTask", "init_args": arguments},
        "data": {
            "class_path": "GenericNonGeoSegmentationDataModule",
            "init_args": {"batch_size": 1, "num_workers": 0, "num_classes": 2, **chips, "img_grep": "*.tif",
                          "label_grep": "*.tif", "means": list(MEANS), "stds": list(STDS), "no_data_replace": 0,
                          "check_stackability": False},  # it would read the scene once more
        },
    }  # fmt: skip
    (folder / "conv.yaml").write_text(yaml.safe_dump(config))

    def command(scene: Path, output: Path) -> Path:
        sys.argv = [
            "terratorch", "predict", "-c", str(folder / "conv.yaml"), "--ckpt_path", str(folder / "conv.ckpt"),
            "--predict_output_dir", str(output), "--data.init_args.predict_data_root", str(scene.parent),
        ]  # fmt: skip
        terratorch()
        (written,) = output.glob("*.tif")
        return written

    return command


COMMANDS = {"terraseg": _terraseg, "terratorch": _terratorch}


def _register_bare_bands() -> None:
    from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY

    @TERRATORCH_BACKBONE_REGISTRY.register
    class BareBands(nn.Module):
        """A backbone that hands on its input: with TerraTorch's head over it, a 1 x 1 convolution."""

        def __init__(self, *, pretrained: bool) -> None:
            super().__init__()
            self.out_channels = [len(PRITHVI_BANDS)]
            assert not pretrained

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [image]


# prithvi


def _model_bars(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    reuse_freed_memory()  # as `terraseg predict` does
    bars: dict[str, dict[str, Any]] = {}
    if options.prithvi_side:
        bars |= _prithvi_bars(folder, options.prithvi_side, rounds=options.rounds, bundle=options.bundle)
    if torch.cuda.is_available():
        bars |= _gpu_bars(folder, options.gpu_side, rounds=options.rounds)
    return bars


def _prithvi_bars(folder: Path, side: int, *, rounds: int, bundle: Path) -> dict[str, dict[str, Any]]:
    random = _random_bundle(folder / "tiny", ROOT / "configs/demo_prithvi_tiny.yaml")
    predictor = open_predictor(random, runtime="torch", device="cpu", crop=CROP)
    times, _ = _against_forward(folder, "torch", predictor, side=side, crop=CROP, rounds=rounds)
    bars = {"prithvi_tiny_end_to_end_over_forward": _bar(times, 1.1)}
    if (bundle / "runtimes").is_dir():
        exported = open_bundle(bundle)
        crop = exported.info.tile_size
        fastest = open_predictor(exported, runtime="auto", device="cpu", crop=crop)
        _against_forward(folder, fastest.provenance["runtime"], fastest, side=side, crop=crop, rounds=rounds)
    return bars


def _gpu_bars(folder: Path, side: int, *, rounds: int, device: str = "cuda") -> dict[str, dict[str, Any]]:
    random = _random_bundle(folder / "v1_100", ROOT / "configs/prithvi_upernet.yaml")
    predictor = open_predictor(random, runtime="torch-bf16", device=device, crop=CROP)
    times, seconds = _against_forward(folder, "prithvi_v1_100, bf16", predictor, side=side, crop=CROP, rounds=rounds)
    card = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"  {'km2 a second':22} {(side * PIXEL_KM) ** 2 / seconds:>8.1f}   {card}")
    return {f"prithvi_v1_100_bf16_forward_share_{card.replace(' ', '_')}": _bar(1 / times, 0.9, at_least=True)}


def _random_bundle(root: Path, config: Path) -> Bundle:
    from terraseg.learn.models.build import build_model

    section = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["init_args"]
    factory, arguments = section["model_factory"], section["model_args"]
    torch.manual_seed(0)
    model = build_model(factory, arguments)
    return write_bundle(
        root,
        info=bundle_info("prithvi", CROP, model_factory=factory, **arguments),
        weights=weights_of(model),
        config="",
    )


def _against_forward(
    folder: Path, name: str, predictor: BundlePredictor, *, side: int, crop: int, rounds: int
) -> tuple[float, float]:
    """End-to-end time over that of the model alone, and end-to-end seconds, medians of all rounds; prints them."""
    scene = make_scene(folder / "raw", side)
    options = {"crop": crop, "overlap": crop // 4, "batch_size": BATCH, "threshold": _rare(predictor, scene, crop)}
    windows = range(len(WindowAxis(side, crop, crop // 4).offsets))
    inputs = np.random.default_rng(0).standard_normal((BATCH, len(PRITHVI_BANDS), crop, crop), np.float32)

    def forward(windows: int) -> torch.Tensor:
        with torch.inference_mode():
            return predictor._forward(inputs[:windows])

    def one_after_the_other() -> None:
        for batch in even_batches(windows, BATCH) * len(windows):
            forward(len(batch))

    def a_core_a_batch() -> None:
        batches = even_batches(windows, max(BATCH // predictor.workers, 1)) * len(windows)
        with ThreadPoolExecutor(predictor.workers, initializer=predictor.enter_worker) as pool:
            deque(pool.map(forward, map(len, batches)), maxlen=0)

    def end_to_end() -> None:
        predict_scene(scene, predictor, Path(tempfile.mkdtemp(dir=folder)), progress=False, **options)

    ways = (end_to_end, a_core_a_batch, one_after_the_other)
    forward(BATCH)
    seconds: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            begin = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[way.__name__].append(time.perf_counter() - begin)
    ratios = [whole / min(alone) for whole, *alone in zip(*seconds.values(), strict=True)]
    print(f"{name:24} {'s':>8}   {side} px, {len(windows) ** 2} windows of {crop} px")
    for way, held in seconds.items():
        print(f"  {way.replace('_', ' '):22} {statistics.median(held):>8.1f}")
    print(f"  {'end to end / alone':22}   {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    return statistics.median(ratios), statistics.median(seconds[end_to_end.__name__])


def _rare(predictor: BundlePredictor, scene: Scene, crop: int) -> float:
    """A threshold that a twentieth of the pixels reach: random weights know none."""
    with rasterio.open(scene.path) as source:
        odds = predictor(source.read(window=Window(0, 0, crop, crop))[None])
    return float(1 / (1 + np.exp(-np.quantile(odds, 0.95))))


def _bar(value: float, goal: float, *, at_least: bool = False) -> dict[str, Any]:
    ok = value >= goal if at_least else value <= goal
    return {"value": round(value, 3), "goal": f"{'>=' if at_least else '<='} {goal:g}", "ok": ok}


if __name__ == "__main__":
    main()
