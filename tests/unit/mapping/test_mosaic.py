"""Mosaics of predicted scenes: the latest or the surest pixel, nothing resampled, nothing invented."""

import json
import tempfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pystac
import pytest
import rasterio
import rasterio.features
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pystac.extensions.projection import ProjectionExtension
from rio_cogeo.cogeo import cog_validate

from helpers.predictors import NumpyPredictor, from_first_band
from terraseg.contracts.product import Product
from terraseg.contracts.scene import Scene, open_scene, scene_writer
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.errors import ConfigError, SceneError
from terraseg.mapping import mosaic as mosaic_module
from terraseg.mapping.mosaic import Rule, mosaic_products
from terraseg.mapping.scene import predict_scene

OPTIONS: dict[str, Any] = {"crop": 16, "overlap": 4, "batch_size": 8, "threshold": 0.4}


def make(
    folder: Path,
    name: str,
    pixels: npt.NDArray[np.uint16],
    *,
    date: str = "2026-01-01T00:00:00Z",
    row: int = 0,
    column: int = 0,
    crs: str = "EPSG:32631",
    shift: float = 0.0,
    gsd: float = 10.0,
    **properties: Any,
) -> tuple[Scene, Product]:
    """A scene ``row`` and ``column`` pixels from a common corner and its product: probability = DN / 250."""
    corner = rasterio.Affine(gsd, 0, 500_000 + 10 * column + shift, 0, -gsd, 4_000_000 - 10 * row)
    facts = {"datetime": date, "terraseg:attribution": f"imagery; {name}", **properties}
    path = folder / "raw" / f"{name}.tif"
    item = {"properties": facts}
    with scene_writer(path, geobox=GeoBox(pixels.shape, corner, crs), bands=PRITHVI_BANDS, item=item) as target:
        target.write(np.broadcast_to(pixels, (6, *pixels.shape)))
    scene = open_scene(path)
    return scene, predict_scene(scene, predictor(), folder / "out", **OPTIONS, progress=False)


def predictor() -> NumpyPredictor:
    return NumpyPredictor(from_first_band, means=(100.0,) * 6)


def combined(folder: Path, mapped: list[tuple[Scene, Product]], rule: Rule) -> list[Product]:
    places = [((scene,), product) for scene, product in mapped]
    return mosaic_products(places, predictor(), folder / "out", rule=rule, threshold=OPTIONS["threshold"], simplify_m=0)


def read(path: Path) -> npt.NDArray[np.uint8]:
    with rasterio.open(path) as source:
        pixels: npt.NDArray[np.uint8] = source.read(1)
    return pixels


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[int, int, int, int, int, int]]:
    """Seed, day, row, column, height and width of some scenes."""
    numbers = st.tuples(*(st.integers(*ends) for ends in ((0, 99), (1, 3), (0, 25), (0, 25), (2, 30), (2, 30))))
    return draw(st.lists(numbers, min_size=1, max_size=4))


@settings(max_examples=8, deadline=None)
@example([(0, 1, 0, 0, 6, 28)], "date")  # a probability just below the threshold is rounded to it in its raster
@given(layouts(), st.sampled_from(["date", "confidence"]))
def test_each_pixel_is_that_of_the_scene_that_the_rule_names(
    layout: list[tuple[int, int, int, int, int, int]], rule: Rule
) -> None:
    bottom = max(row + height for _, _, row, _, height, _ in layout)
    right = max(column + width for _, _, _, column, _, width in layout)
    stack, masks = np.full((2, len(layout), bottom, right), 255)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(mosaic_module, "_STRIP_PIXELS", 100)  # 16 rows at a time
        mapped = []
        for index, (seed, day, row, column, height, width) in enumerate(layout):
            rng = np.random.default_rng(seed)
            pixels = rng.integers(20, 250, (height, width)) * (rng.random((height, width)) < 0.7)
            pixels[0, 0] = 100
            name, date = f"s{index}", f"2026-01-0{day}T00:00:00Z"
            mapped.append(make(Path(folder), name, pixels.astype(np.uint16), date=date, row=row, column=column))
            here = (index, slice(row, row + height), slice(column, column + width))
            stack[here], masks[here] = read(mapped[-1][1].probability), read(mapped[-1][1].mask)
        (product,) = combined(Path(folder), mapped[::-1], rule)
        probability, mask = read(product.probability), read(product.mask)
    top, left = min(row for _, _, row, *_ in layout), min(column for _, _, _, column, *_ in layout)
    order = sorted(range(len(layout)), key=lambda index: (-layout[index][1], index))
    stack, masks = stack[order, top:, left:], masks[order, top:, left:]
    rank = np.where(stack == 255, -1.0, 1.0 if rule == "date" else np.abs(stack / 250 - OPTIONS["threshold"]))
    rank = rank.astype(np.float32)
    chosen = rank.argmax(axis=0)[None]
    np.testing.assert_array_equal(probability, np.take_along_axis(stack, chosen, axis=0)[0])
    np.testing.assert_array_equal(mask, np.take_along_axis(masks, chosen, axis=0)[0])


def test_a_mosaic_is_a_product_that_names_its_sources(tmp_path: Path) -> None:
    early, late = np.full((40, 40), 200, np.uint16), np.full((40, 40), 50, np.uint16)
    late[:20] = 0  # clouds
    span = {"start_datetime": "2026-03-01T00:00:00Z", "end_datetime": "2026-05-01T00:00:00Z"}
    mapped = [
        make(tmp_path, "early", early),
        make(tmp_path, "late", late, date=None, column=20, **span),
    ]
    (product,) = combined(tmp_path, mapped, "date")
    assert product.root == tmp_path / "out" / "mosaic_32631"
    for path in (product.probability, product.mask):
        assert cog_validate(path, quiet=True)[0]
        with rasterio.open(path) as source:
            assert (source.nodata, source.shape, source.bounds.left) == (255, (40, 60), 500_000)
            assert source.tags()["ATTRIBUTION"] == "imagery; early; late; model of the tests"
            assert source.tags()["SCENES"] == "late, early"
    mask = read(product.mask)
    assert (mask[:, :20] == 1).all()
    assert (mask[:20, 20:40] == 1).all()  # seen by the early scene alone
    assert (mask[20:, 20:] == 0).all()
    assert (mask[:20, 40:] == 255).all()
    item = pystac.Item.from_dict(json.loads(product.item.read_text()))
    sources = [link.href for link in item.links if link.rel == "derived_from"]
    assert sources == ["../late/item.json", "../early/item.json"]
    assert ProjectionExtension.ext(item).code == "EPSG:32631"
    assert list(ProjectionExtension.ext(item).shape) == [40, 60]
    properties = item.properties
    assert properties["start_datetime"] == "2026-01-01T00:00:00Z"
    assert properties["end_datetime"] == "2026-05-01T00:00:00Z"
    assert properties["terraseg:settings"]["mosaic"] == "date"
    item.stac_extensions = []  # their schemas are on the net; the core's come with pystac
    item.validate()
    polygons = gpd.read_parquet(product.polygons)
    with rasterio.open(product.mask) as source:
        back = rasterio.features.rasterize(polygons.geometry, source.shape, transform=source.transform)
    np.testing.assert_array_equal(back == 1, mask == 1)


def test_a_finished_mosaic_is_left_alone_until_a_scene_changes(tmp_path: Path) -> None:
    pixels = np.full((20, 20), 200, np.uint16)
    mapped = [make(tmp_path, "a", pixels), make(tmp_path, "b", pixels, row=10)]
    (product,) = combined(tmp_path, mapped, "confidence")
    before = product.item.stat().st_mtime_ns
    combined(tmp_path, mapped, "confidence")
    assert product.item.stat().st_mtime_ns == before
    mapped[1] = make(tmp_path, "b", pixels // 2, row=10)
    combined(tmp_path, mapped, "confidence")
    assert read(product.probability)[-1, -1] == 100
    combined(tmp_path, mapped, "date")
    assert json.loads(product.item.read_text())["properties"]["terraseg:settings"]["mosaic"] == "date"


def test_scenes_of_another_zone_have_a_mosaic_of_their_own(tmp_path: Path) -> None:
    pixels = np.full((20, 20), 200, np.uint16)
    mapped = [make(tmp_path, "a", pixels, crs="EPSG:32632"), make(tmp_path, "b", pixels)]
    assert [product.root.name for product in combined(tmp_path, mapped, "date")] == ["mosaic_32631", "mosaic_32632"]


@pytest.mark.parametrize("other", [{"shift": 5.0}, {"gsd": 10.5}])
def test_scenes_on_unlike_grids_are_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    pixels = np.full((20, 20), 200, np.uint16)
    mapped = [make(tmp_path, "a", pixels), make(tmp_path, "b", pixels, **other)]
    with pytest.raises(SceneError, match=r"a\.tif.*b\.tif|b\.tif.*a\.tif"):
        combined(tmp_path, mapped, "date")
    assert not (tmp_path / "out" / "mosaic_32631").exists()


def test_a_scene_with_the_mosaics_name_is_refused(tmp_path: Path) -> None:
    mapped = [make(tmp_path, "mosaic_32631", np.full((20, 20), 200, np.uint16))]
    with pytest.raises(ConfigError, match="a scene is named mosaic_32631"):
        combined(tmp_path, mapped, "date")
    assert mapped[0][1].item.is_file()
