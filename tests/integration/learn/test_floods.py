"""docs/floods.md by its commands: Sen1Floods11 in its public layout, a training, both tests, and a map of water."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pyogrio
import pytest
import rasterio
from rasterio.windows import Window

from helpers.experiments import CONFIGS, terratorch
from helpers.factories import write_geotiff
from helpers.floods import make_sen1floods11
from helpers.paths import ROOT
from terraseg.cli import main
from terraseg.contracts.bundle import open_bundle
from terraseg.contracts.product import Product
from terraseg.contracts.result import read_metrics
from terraseg.core.bands import BANDS, PRITHVI_BANDS

_CONFIG = CONFIGS / "floods_baseline_unet.yaml"
_CHIPS = "v1.1/data/flood_events/HandLabeled"
_SMALL = (
    "--model.init_args.model_args.backbone=timm_resnet18",
    "--model.init_args.model_args.decoder_channels=[32, 16, 16, 8, 8]",
    "--model.init_args.weights=random",
)
_TWO_STEPS = ("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null")


def _made(root: Path, _: pytest.FixtureRequest) -> Path:
    return make_sen1floods11(root) / _CHIPS / "S2Hand/Spain_7370579_S2Hand.tif"


def _real(root: Path, request: pytest.FixtureRequest) -> Path:
    """The real chip, whole as the scene to map and cut into 16 chips in the layout of the data set."""
    chip, lines = request.getfixturevalue("shared_data") / "sen1floods11_chip/Spain_7370579_S2Hand.tif", []
    for kind in ("S2Hand", "LabelHand"):
        with rasterio.open(chip.with_name(f"Spain_7370579_{kind}.tif")) as source:
            for row in range(4):
                for column in range(4):
                    window = Window(column * 128, row * 128, 128, 128)
                    name = f"Spain_{row}{column}"
                    write_geotiff(
                        root / _CHIPS / kind / f"{name}_{kind}.tif", source.read(window=window),
                        source.window_transform(window), crs="EPSG:4326",
                    )  # fmt: skip
                    lines.append(f"{name}_S1Hand.tif,{name}_LabelHand.tif\n")
    lists = root / "v1.1/splits/flood_handlabeled"
    lists.mkdir(parents=True)
    ends = {"train": (0, 8), "valid": (8, 12), "test": (12, 14), "bolivia": (14, 16)}
    for split, (start, end) in ends.items():
        (lists / f"flood_{split}_data.csv").write_text("".join(lines[start:end]))
    return chip


@pytest.mark.parametrize("source", [_made, _real])
def test_from_the_public_layout_to_scores_and_a_map_of_water(
    source: Callable[[Path, pytest.FixtureRequest], Path], tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the stock command sets another one
    monkeypatch.chdir(tmp_path)
    image = source(Path("data/sen1floods11"), request)
    given = ["data", "import", "--images", "data/sen1floods11", "--tile-size", "32"]
    assert main([*given, "--output", "data/floods"]) == 0
    assert main([*given, "--split-files", "train", "valid", "bolivia", "--output", "data/floods_bolivia"]) == 0
    assert main(["check", str(_CONFIG), "--no-model"]) == 0

    terratorch("fit", "-c", str(_CONFIG), *_SMALL, *_TWO_STEPS)
    bundle = open_bundle("outputs/floods_baseline_unet/bundle")
    assert (bundle.info.bands, bundle.info.processing.level) == (PRITHVI_BANDS, "L1C")
    capsys.readouterr()
    best = "outputs/floods_baseline_unet/checkpoints/best.ckpt"
    terratorch("test", "-c", str(_CONFIG), *_SMALL, "--ckpt_path", best)
    said = capsys.readouterr().out
    assert all(f"test/{name}" in said for name in ("iou_water", "iou_background", "miou", "macc"))

    for dataset in ("floods", "floods_bolivia"):
        scored = ["--bundle", str(bundle.root), "--ground-truth", f"data/{dataset}", "--output", f"results/{dataset}"]
        assert main(["evaluate", *scored]) == 0
        assert "not water" in capsys.readouterr().out
        result = read_metrics(f"results/{dataset}/floods_baseline_unet.json")
        assert result.class_name == "water"
        assert result.figures["miou"].value is not None
        assert result.figures["macc"].value is not None

    facts = ["--bands", ",".join(band.name for band in BANDS), "--unit", "reflectance_1e-4", "--date", "2019-09-18"]
    assert main(["data", "scene", str(image), *facts, "--attribution", "test", "--output", "data/raw"]) == 0
    assert main(["predict", "--bundle", str(bundle.root), "--input", "data/raw", "--output", "maps"]) == 0
    (scene,) = Path("data/raw").glob("*.json")
    scene.write_text(scene.read_text().replace("L1C", "L2A"))
    capsys.readouterr()
    assert main(["predict", "--bundle", str(bundle.root), "--input", "data/raw", "--output", "wrong"]) == 2
    assert "level L2A, the model was trained on L1C" in " ".join(capsys.readouterr().err.split())
    assert not list(Path("wrong").rglob("*.tif"))
    (item,) = Path("maps").rglob("item.json")
    assert json.loads(item.read_text())["properties"]["terraseg:class"] == "water"
    product = Product(item.parent)
    assert {path.stem for path in item.parent.iterdir()} == {"probability", "mask", "water", "item"}
    assert product.geopackage.name == "water.gpkg"
    assert "area_m2" in pyogrio.read_info(product.geopackage)["fields"]


def test_the_page_trains_and_scores_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller encoder from random weights and two steps; nothing else of the code changes."""
    monkeypatch.chdir(tmp_path)
    make_sen1floods11(Path("data/sen1floods11"))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/floods.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    smaller = {
        "timm_resnet50": "timm_resnet18", "[256, 128, 64, 32, 16]": "[32, 16, 16, 8, 8]", '"hub"': '"random"',
        "batch_size=8": "batch_size=2", "max_epochs=50": 'max_steps=2, accelerator="cpu"',
    }  # fmt: skip
    for before, after in smaller.items():
        assert code.count(before) == 1
        code = code.replace(before, after)
    exec(code, {})  # noqa: S102
    result = read_metrics("results/floods/floods_python.json")
    assert (result.class_name, result.split) == ("water", "test")
