"""The whole preparation on random ground: what is promised of a dataset, each from the scene and the footprints alone.

Nothing here goes through the code under test but the readers of the files: masks are checked by GDAL's rasterising of
the whole scene, coverage by intersecting each pixel's square, gaps and statistics by counting pixels.
"""

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from terraseg.contracts.dataset import COVERAGE_UNKNOWN, IGNORE, ChipDataset, pairs_on_disk
from terraseg.contracts.footprints import FootprintSource, write_footprints
from terraseg.contracts.scene import NODATA, scene_writer
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.errors import SplitError
from terraseg.prepare.config import PrepareConfig, SplitRule
from terraseg.prepare.labels.rules import LabelRule
from terraseg.prepare.preprocess import preprocess

GSD = 10


@dataclass(frozen=True)
class Ground:
    """Pixels (bands, rows, columns) of a scene, and footprints in its CRS, of which some overlap and some reach out."""

    pixels: np.ndarray
    transform: Affine
    footprints: np.ndarray


def make_ground(shape: tuple[int, int], *, seed: int, holes: int) -> Ground:
    random = np.random.default_rng(seed)
    rows, columns = shape
    pixels = random.integers(1, 10_000, (len(PRITHVI_BANDS), *shape)).astype(np.uint16)
    for _ in range(holes):  # in one band or in all
        row, column = random.integers(0, rows), random.integers(0, columns)
        bands = slice(None) if random.random() < 0.5 else random.integers(0, len(PRITHVI_BANDS))
        pixels[bands, row : row + 25, column : column + 25] = NODATA
    transform = Affine(GSD, 0, 500_000, 0, -GSD, 4_000_000)
    count = rows * columns // 250
    centre = random.uniform(-50, GSD * np.array([columns, rows]) + 50, (count, 2)) * (1, -1)
    size, angle = random.uniform(2, 40, (count, 2)), random.uniform(0, np.pi, count)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * size[:, None]
    turn = np.stack([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    return Ground(pixels, transform, shapely.polygons(corners @ turn + centre[:, None] + (transform.c, transform.f)))


def write_ground(ground: Ground, folder: Path) -> None:
    geobox = GeoBox(ground.pixels.shape[1:], ground.transform, "EPSG:32631")
    facts = {"datetime": "2026-01-01T00:00:00Z", "terraseg:attribution": "made by the tests"}
    with scene_writer(
        folder / "raw/scene.tif", geobox=geobox, bands=PRITHVI_BANDS, item={"properties": facts}
    ) as target:
        target.write(ground.pixels)
    ids = [str(index) for index in range(len(ground.footprints))]
    frame = gpd.GeoDataFrame({"id": ids, "source": "test"}, geometry=ground.footprints, crs=32631)
    extent = shapely.box(*geobox.extent.boundingbox.bbox).buffer(500)
    source = FootprintSource(
        class_name="building", source="test", extract_date="2026-01-01", licence="CC0-1.0", attribution="tests",
        extent=gpd.GeoSeries([extent], crs=32631).to_crs(4326).iloc[0].wkt,
    )  # fmt: skip
    write_footprints(folder / "osm/test.parquet", frame, source)


rules = st.sampled_from(
    [
        LabelRule(),
        LabelRule(kind="coverage", threshold=0.5),
        LabelRule(kind="coverage", threshold=0.6, ignore_from=0.2),
    ]
)
splits = st.builds(
    SplitRule, kind=st.sampled_from(["blocks", "columns", "rows"]), block_chips=st.integers(1, 3),
    gap_m=st.none() | st.floats(10, 400), seed=st.integers(0, 99),
)  # fmt: skip
configs = st.builds(
    PrepareConfig, bands=st.permutations(PRITHVI_BANDS).map(lambda bands: tuple(bands[:4])),
    tile_size=st.sampled_from([16, 24]), train_stride=st.none() | st.integers(8, 16), label_rule=rules, split=splits,
)  # fmt: skip
grounds = st.builds(
    make_ground, st.tuples(st.integers(150, 230), st.integers(150, 230)), seed=st.integers(0, 10**6),
    holes=st.integers(0, 3),
)  # fmt: skip


@settings(
    max_examples=10,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(grounds, configs)
def test_a_dataset_is_what_scene_and_footprints_say(ground: Ground, config: PrepareConfig) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ground(ground, folder)
        try:
            dataset = preprocess(scenes=folder / "raw", labels=folder / "osm", output=folder / "set", config=config)
        except SplitError:  # too little ground for such blocks and gaps
            assume(False)
        pairs_on_disk(dataset)
        check_chips(dataset, ground, config)
        check_gaps(dataset, config)
        check_statistics(dataset, ground, config)


def check_chips(dataset: ChipDataset, ground: Ground, config: PrepareConfig) -> None:
    """Pixels, masks and coverage are those of the scene at the chip's place, which the file itself says, too."""
    expected, share = direct_labels(ground, config.label_rule)
    bands = [PRITHVI_BANDS.index(band) for band in config.bands]
    unknown = (ground.pixels[bands] == NODATA).any(axis=0)
    expected = np.where(unknown, IGNORE, expected)
    for row in dataset.tiles.itertuples():
        window = np.s_[row.row : row.row + config.tile_size, row.column : row.column + config.tile_size]
        with rasterio.open(dataset.image(row.split, row.tile)) as image:
            assert image.transform == ground.transform @ Affine.translation(row.column, row.row)
            assert image.descriptions == config.bands
            np.testing.assert_array_equal(image.read(), ground.pixels[bands][:, *window])
        with rasterio.open(dataset.mask(row.split, row.tile)) as source:
            mask = source.read(1)
        np.testing.assert_array_equal(mask, expected[window])
        with rasterio.open(dataset.coverage(row.split, row.tile)) as source:
            coverage = source.read(1)
        np.testing.assert_array_equal(coverage == COVERAGE_UNKNOWN, unknown[window])
        known = ~unknown[window]
        assert np.abs(coverage[known] - 100 * share[window][known]).max(initial=0) <= 0.5 + 1e-3
        assert row.valid_fraction == pytest.approx((mask != IGNORE).mean())
        assert row.class_fraction == pytest.approx((mask == 1).sum() / (mask != IGNORE).sum())


def direct_labels(ground: Ground, rule: LabelRule) -> tuple[np.ndarray, np.ndarray]:
    """The mask by the rule, as if everything were known, and the share of each pixel that footprints cover."""
    shape = ground.pixels.shape[1:]
    inside = rasterio.features.rasterize(ground.footprints, shape, transform=ground.transform)
    rows, columns = np.indices(shape)
    left, top = ground.transform @ (columns, rows)
    union = shapely.union_all(ground.footprints)
    shapely.prepare(union)
    pixels = shapely.box(left, top - GSD, left + GSD, top)
    share = shapely.contains(union, pixels).astype(float)
    edge = shapely.intersects(union, pixels) & (share == 0)
    share[edge] = shapely.area(shapely.intersection(pixels[edge], union)) / GSD**2
    if rule.threshold is None:
        return inside.astype(np.int8), share
    mask = (share >= rule.threshold).astype(np.int8)
    if rule.ignore_from is not None:
        mask[(share >= rule.ignore_from) & (share < rule.threshold)] = IGNORE
    return mask, share


def check_gaps(dataset: ChipDataset, config: PrepareConfig) -> None:
    """No two chips of unlike splits are nearer than the gap, which is a chip at least."""
    gap = max(config.tile_size * GSD, config.split.gap_m or 0)
    corners = {name: chips[["row", "column"]].to_numpy() for name, chips in dataset.tiles.groupby("split")}
    assert len(corners) == 3
    for one, other in itertools.combinations(corners.values(), 2):
        between = np.maximum(np.abs(one[:, None] - other[None]) - config.tile_size, 0)
        assert GSD * np.hypot(between[..., 0], between[..., 1]).min() >= gap


def check_statistics(dataset: ChipDataset, ground: Ground, config: PrepareConfig) -> None:
    """Each pixel that a chip of train shows counts once, and no other."""
    shown = np.zeros(ground.pixels.shape[1:], bool)
    for row in dataset.split("train").itertuples():
        shown[row.row : row.row + config.tile_size, row.column : row.column + config.tile_size] = True
    pixels = ground.pixels[[PRITHVI_BANDS.index(band) for band in config.bands]][:, shown]
    pixels = pixels[:, (pixels != NODATA).all(axis=0)].astype(np.float64)
    assert dataset.stats.pixels == pixels.shape[1]
    stats = [dataset.stats.bands[band] for band in config.bands]
    np.testing.assert_allclose([band.mean for band in stats], pixels.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose([band.std for band in stats], pixels.std(axis=1), rtol=1e-9)
    np.testing.assert_array_equal([band.percentiles["p50"] for band in stats],
                                  np.quantile(pixels, 0.5, axis=1, method="inverted_cdf"))  # fmt: skip
