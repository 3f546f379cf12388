"""Experiments by the stock `terratorch` command, in this process: the import costs 15 s."""

import sys
from pathlib import Path

import numpy as np
import rasterio
from terratorch.__main__ import main

from helpers.paths import CONFIGS
from terraseg.contracts.bundle import Bundle, open_bundle


def terratorch(*arguments: str) -> None:
    """Run one command of it on the CPU."""
    before = sys.argv
    sys.argv = ["terratorch", *arguments, "--trainer.accelerator=cpu"]
    try:
        main()
    finally:
        sys.argv = before


def fit_test_and_predict(name: str, *changes: str, scenes: str = "raw") -> Bundle:
    """Two steps from random weights, a test, and a map of scene.tif, in a folder with data/processed and ``scenes``.

    Args:
        name: of the experiment.
        changes: what is smaller than in its config.
        scenes: folder of scene.tif, and of the other dates of its place where the model takes several.

    Returns:
        What the training leaves.
    """
    config = ("-c", str(CONFIGS / f"{name}.yaml"), "--data.init_args.batch_size=4", *changes)
    outputs = Path("outputs") / name
    terratorch(
        "fit", *config, "--model.init_args.weights=random", "--trainer.max_steps=2", "--trainer.val_check_interval=2",
        "--trainer.check_val_every_n_epoch=null", "--trainer.limit_val_batches=2",
    )  # fmt: skip
    best = ("--ckpt_path", str(outputs / "checkpoints/best.ckpt"))
    terratorch("test", *config, *best, "--trainer.limit_test_batches=2")
    terratorch(
        "predict", *config, *best, "--predict_output_dir", f"pred/{name}", "--data.init_args.predict_data_root", scenes
    )
    with rasterio.open(f"pred/{name}/scene_pred.tif") as mask, rasterio.open(f"{scenes}/scene.tif") as image:
        assert (mask.shape, mask.transform) == (image.shape, image.transform)
        assert set(np.unique(mask.read(1))) <= {0, 1}
    return open_bundle(outputs / "bundle")
