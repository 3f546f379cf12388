"""The places of the city benchmark: from exports in degrees to scenes, labels and one dataset for each held-out city.

Each city that trains gives the western three quarters of its labelled ground to train and the rest to val, with a gap
of one chip between them. Threshold, calibration and the best checkpoint are chosen on val. The held-out metropolis is
the test, all of it.
"""

from pathlib import Path

import geopandas as gpd
import shapely

import terraseg
from terraseg import ImageOptions, PrepareConfig
from terraseg.contracts.dataset import ChipDataset

METROPOLES = {"pisa": ("pisa",), "nantes": ("nantes",), "paris": ("paris", "bercy", "saclay_w")}
"""What is held out at once, and its places."""

PLACES = tuple(place for places in METROPOLES.values() for place in places)
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
CHIP_M = 320
"""Side of a chip on the ground."""

BLOCK_CHIPS = 2
"""Side of a block, the unit of the intervals, in chips."""

_CREDIT = "contains modified Copernicus Sentinel data 2015-2018"
_TRAIN = 0.75
_UNKNOWN_DAYS = {"saclay_w": ("2016-06-30", "2017-06-30")}
"""The date of these images is not known; only their order matters here."""


def scenes(source: Path, work: Path, *, dates: int) -> Path:
    """Folder with the first ``dates`` images of each place as scenes of 10 m.

    Args:
        source: the folder with a folder for each place.
        work: folder of the benchmark.
        dates: 1 or 2.
    """
    folder = work / f"scenes_{dates}"
    for place in PLACES:
        for date in range(1, dates + 1):
            (image,) = (source / place).glob(f"{place}_t{date}_*_L1C_13b.tif")
            day = image.stem.removeprefix(f"{place}_t{date}_").split("_")[0]
            given = f"{day[:4]}-{day[4:6]}-{day[6:]}" if day.isdigit() else _UNKNOWN_DAYS[place][date - 1]
            options = ImageOptions(
                bands=BANDS, unit="reflectance_1e-4", date=given, level="L1C", gsd=10, attribution=_CREDIT,
                offset_check="warn",
            )  # fmt: skip
            terraseg.import_scene(image, output=folder, name=f"{place}_t{date}", options=options)
    return folder


def labels(source: Path, work: Path) -> Path:
    """Folder with the footprints of all places."""
    for place in PLACES:
        file = source / place / f"{place}_buildings.gpkg"
        terraseg.labels(
            input=f"{file}:buildings", coverage=f"{file}:coverage", attribution="see SOURCE.txt of the data",
            output=work / "labels", config="configs/data_config.yaml",
        )  # fmt: skip
    return work / "labels"


def dataset(source: Path, work: Path, *, held_out: str, gsd: float, dates: int) -> ChipDataset:
    """The dataset whose test is one metropolis.

    Args:
        source, work: see `scenes`.
        held_out: a key of `METROPOLES`.
        gsd: pixel size of the chips in metres.
        dates: per chip.
    """
    regions = work / f"{held_out}.gpkg"
    if not regions.is_file():
        _regions(source, held_out).to_file(regions)
    side = round(CHIP_M / gsd)
    others = [place for place in PLACES if place not in METROPOLES[held_out]]
    split = {
        "kind": "polygons", "path": str(regions), "column": "name", "block_chips": BLOCK_CHIPS,
        "assign": {
            "train": [f"{place} west" for place in others],
            "val": [f"{place} east" for place in others],
            "test": METROPOLES[held_out],
        },
    }  # fmt: skip
    config = PrepareConfig.model_validate(
        {
            "bands": BANDS, "frames": dates, "gsd": gsd, "tile_size": side, "train_stride": side // 2, "split": split,
            "label_rule": {"kind": "coverage", "threshold": 0.5},
        }
    )  # fmt: skip
    output = work / "data" / f"{held_out}_{gsd:g}_{dates}"
    return terraseg.preprocess(
        input=scenes(source, work, dates=dates), labels=labels(source, work), output=output, config=config
    )


def _regions(source: Path, held_out: str) -> gpd.GeoDataFrame:
    """Polygons of the split with the column ``name``."""
    names, shapes = list(METROPOLES[held_out]), [_box(source, place) for place in METROPOLES[held_out]]
    for place in set(PLACES) - set(METROPOLES[held_out]):
        west, south, east, north = _box(source, place).bounds
        cut = west + _TRAIN * (east - west)
        names += [f"{place} west", f"{place} east"]
        shapes += [shapely.box(west, south, cut, north), shapely.box(cut, south, east, north)]
    return gpd.GeoDataFrame({"name": names}, geometry=shapes, crs=4326)


def _box(source: Path, place: str) -> shapely.Polygon:
    """The box around the completely mapped ground of a place, in degrees."""
    table = gpd.read_file(source / place / f"{place}_buildings.gpkg", layer="coverage").to_crs(4326)
    return shapely.box(*table.total_bounds)
