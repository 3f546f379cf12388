"""docs/landcover.md by its commands: eight classes from GeoTIFFs to scores, a map in colours and a report."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio

from helpers.experiments import terratorch
from helpers.factories import LAND_COVER, make_landcover, write_geotiff
from helpers.paths import ROOT
from terraseg.cli import main
from terraseg.contracts.product import Product
from terraseg.contracts.result import read_metrics
from terraseg.core.palette import class_colours

_SMALL = (
    "--model.init_args.model_args.backbone=timm_resnet18",
    "--model.init_args.model_args.decoder_channels=[32, 16, 16, 8, 8]",
    "--model.init_args.weights=random",
    "--trainer.max_steps=12", "--trainer.val_check_interval=12", "--trainer.check_val_every_n_epoch=null",
)  # fmt: skip


def _run(tile: int) -> None:
    """All commands of the page, with smaller chips, and a smaller encoder from random weights."""
    page = (ROOT / "docs/landcover.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    for line in block.strip().splitlines():
        words = shlex.split(line.replace("--tile-size 128", f"--tile-size {tile}"))
        words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
        if words[0] == "terratorch":
            terratorch(words[1], "-c", *words[3:], *_SMALL)
            continue
        assert main(words[1:]) == 0, line


def test_the_page_from_geotiffs_to_a_map_in_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the stock command sets another one
    monkeypatch.chdir(tmp_path)
    make_landcover(Path("data/landcover"))
    _run(32)

    product = Product(Path("results/landcover/predictions/place"))
    item = json.loads(product.item.read_text())
    assert item["properties"]["terraseg:classes"] == list(LAND_COVER)
    assert set(item["properties"]["terraseg:polygons"]["counts"]) == {"water", "built area"}
    each = []
    for name in LAND_COVER:
        with rasterio.open(product.raster(f"probability_{name.replace(' ', '_')}")) as source:
            each.append(source.read(1))
    with rasterio.open(product.mask) as mask, rasterio.open(product.probability) as probability:
        ids, best = mask.read(1), probability.read(1)
        table = mask.colormap(1)
    assert [table[number][:3] for number in range(8)] == class_colours(LAND_COVER)
    np.testing.assert_array_equal(best, np.max(each, axis=0))
    np.testing.assert_array_equal(np.take_along_axis(np.stack(each), ids[None].astype(int), 0)[0], best)
    np.testing.assert_allclose(np.sum(each, axis=0, dtype=int), 250, atol=4)
    for name in ("water", "built area"):
        assert item["properties"]["terraseg:polygons"]["counts"][name] == len(
            pyogrio.read_dataframe(product.of_class(name).geopackage)
        )
    assert all(name in product.style.read_text() for name in LAND_COVER)

    result = read_metrics("results/landcover/metrics/landcover_unet.json")
    assert result.classes
    confusion = np.array(result.classes.confusion)
    assert confusion.sum() == result.pixels.valid
    hit = np.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    for number, one in enumerate(result.classes.classes):
        assert one.name == LAND_COVER[number]
        assert one.figures["iou"].value == pytest.approx(hit[number] / union[number])
        assert one.pixels == confusion[number].sum()
    assert result.figures["miou"].value == pytest.approx(np.mean((hit / union)[union > 0]))
    assert result.figures["miou"].low is not None
    chips = read_metrics("results/landcover/chips/landcover_unet.json")
    assert chips.classes
    assert np.array(chips.classes.confusion).sum() == confusion.sum()
    report = Path("results/landcover/report.html").read_text()
    assert all(name in report for name in LAND_COVER)

    again = [
        "predict",
        "--bundle",
        "outputs/landcover_unet/bundle",
        "--input",
        "data/landcover/images",
        "--output",
        "maps",
    ]
    for wrong in (["--threshold", "0.5"], ["--logits"], ["--polygons", "lava"], ["--cells", "100"]):
        assert main([*again, *wrong]) == 2
    assert not Path("maps").exists()


def test_real_land_cover_goes_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)
    examples = shared_data / "terramind_examples/examples"
    names = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
    for path in sorted((examples / "LULC").glob("*.tif")):
        with rasterio.open(examples / "S2L2A" / path.name) as image, rasterio.open(path) as mask:
            pixels = np.clip(image.read(), 1, None)
            write_geotiff(
                tmp_path / "given" / path.name, pixels, image.transform, crs=str(image.crs), bands=names,
                unit="reflectance_1e-4",
            )  # fmt: skip
            write_geotiff(Path("data/landcover/masks") / path.name, mask.read(), mask.transform, crs=str(mask.crs))
    for path in sorted(Path("given").glob("*.tif")):
        facts = ["--date", "2020-07-01", "--level", "L2A", "--attribution", "ESA", "--name", path.stem]
        assert (
            main(["data", "scene", str(path), *facts, "--offset-check", "warn", "--output", "data/landcover/images"])
            == 0
        )
    _run(32)
    result = read_metrics("results/landcover/metrics/landcover_unet.json")
    assert result.classes
    assert [one.name for one in result.classes.classes] == list(LAND_COVER)
