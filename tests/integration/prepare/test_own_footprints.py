"""Own footprints that cover a part of the scene: Nantes, a GeoPackage with the layers buildings and coverage."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.warp
import yaml
from odc.geo.geobox import GeoBox

from terraseg.cli import main
from terraseg.contracts.dataset import IGNORE, SPLITS, open_dataset
from terraseg.contracts.footprints import read_footprints
from terraseg.contracts.scene import scene_writer

_BANDS = ("B02", "B03", "B04", "B8A", "B11", "B12")


@pytest.fixture(scope="module")
def nantes(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scene of Nantes in UTM, raw/nantes.tif, and its footprints, osm/nantes_buildings.parquet."""
    root, source = tmp_path_factory.mktemp("nantes"), shared_data / "s2_cities" / "nantes"
    with rasterio.open(source / "nantes_t1_20150821_L1C_13b.tif") as image:
        box = GeoBox.from_bbox(image.bounds, crs=4326, shape=image.shape)
        grid = GeoBox.from_bbox(box.extent.to_crs(32630).boundingbox, resolution=10)
        pixels = np.zeros((len(_BANDS), *grid.shape), np.uint16)
        for name, band in zip(_BANDS, pixels, strict=True):
            index = image.descriptions.index(name) + 1
            rasterio.warp.reproject(
                image.read(index), band, src_transform=image.transform, src_crs=image.crs, dst_transform=grid.affine,
                dst_crs=str(grid.crs),
            )  # fmt: skip
    item = {"id": "nantes", "properties": {"datetime": "2015-08-21T00:00:00Z", "terraseg:attribution": "ESA"}}
    with scene_writer(root / "raw" / "nantes.tif", geobox=grid, bands=_BANDS, item=item) as target:
        target.write(pixels)
    file = source / "nantes_buildings.gpkg"
    given = ["--input", f"{file}:buildings", "--coverage", f"{file}:coverage", "--attribution", "IGN"]
    with contextlib.chdir(root):  # an own file needs no config
        assert main(["data", "labels", *given, "--output", "osm"]) == 0
    return root


@pytest.mark.parametrize("kind", ["columns", "rows", "blocks"])
def test_splits_share_out_the_covered_ground(nantes: Path, tmp_path: Path, kind: str) -> None:
    prepare = {"bands": list(_BANDS), "tile_size": 16, "split": {"kind": kind, "block_chips": 2}}
    config = tmp_path / "data.yaml"
    config.write_text(yaml.safe_dump({"prepare": prepare}))
    made = tmp_path / "set"
    given = ["--input", str(nantes / "raw"), "--labels", str(nantes / "osm"), "--config", str(config)]
    assert main(["data", "preprocess", *given, "--output", str(made)]) == 0
    dataset = open_dataset(made)
    ground = dataset.audit["labelled_ground"]["nantes"]
    assert ground["km2"] == pytest.approx(8.8, abs=0.2)
    assert ground["share"] == pytest.approx(8.8 / 32, abs=0.05)
    known = {}
    for split in SPLITS:
        known[split] = 0
        for tile in dataset.split(split)["tile"]:
            with rasterio.open(dataset.mask(split, tile)) as source:
                known[split] += int((source.read(1) != IGNORE).sum())
    # The gaps are taken from train first, then from val.
    assert known["train"] > known["val"] > 0.05 * sum(known.values())
    assert known["test"] > 0.15 * sum(known.values())
    assert 0 < dataset.audit["ground_in_gaps_share"] < 0.7


def test_ground_outside_the_coverage_is_unknown_not_background(nantes: Path) -> None:
    frame, source = read_footprints(nantes / "osm" / "nantes_buildings.parquet")
    assert 12_000 < len(frame) < 13_000  # of 15,951; the others lie outside the coverage
    assert source.model_dump(include={"source", "licence", "extract_date", "attribution"}) == {
        "source": "IGN", "licence": "not stated", "extract_date": "not stated", "attribution": "IGN",
    }  # fmt: skip
    assert source.extent.startswith("POLYGON ((")


def test_missing_facts_and_areas_are_named(nantes: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shared_data / "s2_cities" / "nantes" / "nantes_buildings.gpkg"

    def says(*given: str) -> str:
        assert main(["data", "labels", "--output", str(nantes / "none"), *given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "--attribution" in says("--input", f"{file}:buildings")
    assert "--coverage" in says("--input", f"{file}:buildings", "--attribution", "IGN")
    both = ["--attribution", "IGN", "--coverage", f"{file}:coverage"]
    assert "buildings, coverage" in says("--input", str(file), *both)
    assert "--input" in says(*both)
    assert "extract_date" in says("--input", f"{file}:buildings", *both, "--extract-date", "May")
    assert "don't overlap" in says("--input", f"{file}:buildings", *both, "--aoi", "configs/algiers_aoi.geojson")
