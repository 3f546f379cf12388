"""What `terraseg predict --input` may name besides scenes: VRTs and STAC items on disk."""

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from helpers.convolution import ConvBundle
from helpers.factories import ATTRIBUTION, make_info, make_scene
from helpers.predictors import NumpyPredictor, from_neighbours
from terraseg.acquire.config import AcquireConfig
from terraseg.acquire.imagery.catalogues import source_scene
from terraseg.acquire.imagery.composite import write_composite
from terraseg.cli import main
from terraseg.contracts.imagery.processing import Processing, Resampling, processing_of
from terraseg.contracts.product import Product, find_products
from terraseg.contracts.scene import Scene, open_scene, scene_writer
from terraseg.core.bands import PRITHVI_BANDS, UNIT
from terraseg.errors import SceneError
from terraseg.mapping.inputs.scenes import scenes_at
from terraseg.mapping.inputs.vrt import BandFile, raster_identity, sources, write_band_vrt
from terraseg.mapping.runtimes import export as export_module
from terraseg.mapping.scene import predict_scene

OPTIONS: dict[str, Any] = {"crop": 32, "overlap": 8, "batch_size": 3, "threshold": 0.5}
AFFINE = Affine(10, 0, 500_000, 0, -10, 4_000_000)


@contextmanager
def open_inputs(given: str | Path, **options: Any) -> Iterator[list[Scene]]:
    with tempfile.TemporaryDirectory() as folder:
        yield scenes_at(given, Path(folder), **options)


def pixels_of(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read()


def mapped(scene: Scene, output: Path) -> Product:
    return predict_scene(scene, NumpyPredictor(from_neighbours), output, **OPTIONS)


def assert_same_map(left: Product, right: Product) -> None:
    np.testing.assert_array_equal(pixels_of(left.probability), pixels_of(right.probability))
    np.testing.assert_array_equal(pixels_of(left.mask), pixels_of(right.mask))


def mosaic(path: Path, parts: list[Path], *, bands: int = 6, crs: str = "EPSG:32631", extra: str = "") -> Path:
    """What gdalbuildvrt makes of scenes beside each other: neither unit nor names of bands."""
    left, columns, rows = 0, [], 0
    for part in parts:
        with rasterio.open(part) as source:
            columns.append((part, left, source.width, source.height))
            left, rows = left + source.width, source.height
    text = f'<VRTDataset rasterXSize="{left}" rasterYSize="{rows}"><SRS>{crs}</SRS>'
    text += f"<GeoTransform>{', '.join(map(str, AFFINE.to_gdal()))}</GeoTransform>"
    for band in range(1, bands + 1):
        text += f'<VRTRasterBand dataType="UInt16" band="{band}"><NoDataValue>0</NoDataValue>'
        for part, offset, width, height in columns:
            name = os.path.relpath(part, path.parent)
            text += (
                f'<ComplexSource><SourceFilename relativeToVRT="1">{name}</SourceFilename>'
                f"<SourceBand>{band}</SourceBand>"
                f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
                f'<DstRect xOff="{offset}" yOff="0" xSize="{width}" ySize="{height}"/><NODATA>0</NODATA>{extra}'
                "</ComplexSource>"
            )
        text += "</VRTRasterBand>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "</VRTDataset>")
    return path


def halves(folder: Path, scene: Scene, **changes: Any) -> list[Path]:
    """A scene cut in two, the right one of another date and credit."""
    paths = []
    with rasterio.open(scene.path) as source:
        for k, name in enumerate(("left", "right")):
            window = Window(source.width // 2 * k, 0, source.width // 2, source.height)
            box = GeoBox((source.height, source.width // 2), source.window_transform(window), str(source.crs))
            facts = {"datetime": f"2026-0{k + 1}-01T00:00:00Z", "terraseg:attribution": f"{ATTRIBUTION}; half {k}"}
            paths.append(folder / f"{name}.tif")
            kept = {"geobox": box, "bands": scene.bands, "item": {"properties": facts}} | (changes if k else {})
            with scene_writer(paths[-1], **kept) as target:
                target.write(source.read(window=window))
    return paths


def test_a_vrt_over_scenes_is_one_scene(tmp_path: Path) -> None:
    whole = make_scene(tmp_path / "whole", (150, 200))
    vrt = mosaic(tmp_path / "vrt" / "scene.vrt", halves(tmp_path / "halves", whole))
    with open_inputs(vrt) as (scene,):
        assert (scene.name, scene.bands, scene.geobox) == ("scene", whole.bands, whole.geobox)
        assert scene.attribution == f"{ATTRIBUTION}; half 0; half 1"
        properties = scene.item["properties"]
        assert (properties["start_datetime"], properties["end_datetime"]) == (
            "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z",
        )  # fmt: skip
        product = mapped(scene, tmp_path / "out")
    assert_same_map(product, mapped(whole, tmp_path / "expected"))
    link = json.loads(product.item.read_text())["links"][0]["href"]
    assert (product.root / link).resolve() == vrt


def test_the_copy_of_a_vrt_is_the_same_at_each_run_and_another_when_a_source_is(tmp_path: Path) -> None:
    parts = halves(tmp_path / "halves", make_scene(tmp_path / "whole", (64, 80)))
    vrt = mosaic(tmp_path / "scene.vrt", parts)
    identities = []
    for _ in range(2):
        with open_inputs(vrt) as (scene,):
            identities.append(raster_identity(scene.path))
            assert sources(scene.path) == [str(part) for part in parts]
    assert identities[0] == identities[1]
    os.utime(parts[1], ns=(1, 1))
    with open_inputs(vrt) as (scene,):
        assert raster_identity(scene.path) != identities[0]


def test_a_finished_map_of_a_vrt_is_left_alone_until_a_source_changes(tmp_path: Path) -> None:
    parts = halves(tmp_path / "halves", make_scene(tmp_path / "whole", (64, 80)))
    vrt = mosaic(tmp_path / "scene.vrt", parts)
    predictor, calls = NumpyPredictor(from_neighbours), []
    for _ in range(3):
        with open_inputs(vrt) as (scene,):
            predict_scene(scene, predictor, tmp_path / "out", **OPTIONS)
        calls.append(predictor.windows)
        if len(calls) == 2:
            os.utime(parts[0], ns=(1, 1))
    assert calls[0] == calls[1] < calls[2]


def test_bands_that_a_vrt_swaps_keep_their_names(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (40, 50))
    text = mosaic(tmp_path / "scene.vrt", [scene.path]).read_text()
    swapped = text.replace("<SourceBand>1<", "<SourceBand>x<").replace("<SourceBand>3<", "<SourceBand>1<")
    (tmp_path / "scene.vrt").write_text(swapped.replace("<SourceBand>x<", "<SourceBand>3<"))
    with open_inputs(tmp_path / "scene.vrt") as (found,):
        assert found.bands == ("B04", "B03", "B02", *PRITHVI_BANDS[3:])
        assert_same_map(mapped(found, tmp_path / "out"), mapped(scene, tmp_path / "expected"))


@pytest.mark.parametrize(
    ("changes", "extra", "line"),
    [
        ({"bands": ("B03", "B02", "B04", "B8A", "B11", "B12")}, "", "mixes the bands B02, B03"),
        ({}, "<ScaleRatio>2</ScaleRatio>", "has unit undeclared"),
        ({"geobox": GeoBox((64, 40), AFFINE, "EPSG:32632")}, "", "has CRS EPSG:32631, but its source"),
        ({"item": {"properties": {}}}, "", "terraseg:attribution"),
    ],
)
def test_a_vrt_that_would_lie_is_refused(tmp_path: Path, changes: dict[str, Any], extra: str, line: str) -> None:
    parts = halves(tmp_path / "halves", make_scene(tmp_path / "whole", (64, 80)), **changes)
    with pytest.raises(SceneError, match=line), open_inputs(mosaic(tmp_path / "scene.vrt", parts, extra=extra)):
        pass


def test_a_vrt_without_its_source_is_one_line(tmp_path: Path) -> None:
    parts = halves(tmp_path / "halves", make_scene(tmp_path / "whole", (64, 80)))
    vrt = mosaic(tmp_path / "scene.vrt", parts)
    parts[1].unlink()
    with pytest.raises(SceneError, match=r"reads .*right\.tif, which can't be read"), open_inputs(vrt):
        pass
    (tmp_path / "text.vrt").write_text("no XML")
    with pytest.raises(SceneError, match="can't be read"), open_inputs(tmp_path / "text.vrt"):
        pass


# --- STAC items ---


def band_files(folder: Path, pixels: dict[str, np.ndarray], *, tag: bool = False) -> None:
    """A GeoTIFF each band, those of 20 m on their own grid, as catalogues have them."""
    folder.mkdir(parents=True)
    for key, values in pixels.items():
        gsd = 10 if values.shape == max(each.shape for each in pixels.values()) else 20
        with rasterio.open(
            folder / f"{key}.tif", "w", driver="GTiff", dtype="uint16", count=1, height=values.shape[0],
            width=values.shape[1], crs="EPSG:32631", transform=Affine(gsd, 0, 500_000, 0, -gsd, 4_000_000), nodata=0,
        ) as target:  # fmt: skip
            target.write(values, 1)
            if tag:
                target.update_tags(UNIT=UNIT)


KEYS = {"B02": "blue", "B03": "green", "B04": "red", "B8A": "nir08", "B11": "swir16", "B12": "swir22"}


def catalogue_item(folder: Path, *, offset: int, keys: dict[str, str] = KEYS, **properties: Any) -> Path:
    """An item like Earth Search's: DN that hold ``-offset``, 20 m bands, a declared offset, a preview."""
    rng = np.random.default_rng(0)
    sizes = {name: (80, 120) if name in ("B02", "B03", "B04") else (40, 60) for name in keys}
    pixels = {key: rng.integers(300, 4000, sizes[name]) - offset for name, key in keys.items()}
    for values in pixels.values():
        values[3:9, 3:9] = -offset - 5 if offset else 1  # below zero once the offset is removed
        values[20:24, 20:24] = 0
    band_files(folder, {key: values.astype(np.uint16) for key, values in pixels.items()})
    assets = {
        key: {"href": f"./{key}.tif", "type": "image/tiff", "raster:bands": [{"scale": 1e-4, "offset": -0.1}]}
        for key in keys.values()
    }
    assets["visual"] = {"href": "./TCI.tif", "type": "image/tiff", "eo:bands": [{"name": "red"}, {"name": "green"}]}
    facts = {"datetime": "2023-08-15T10:00:00Z", "platform": "sentinel-2a", **properties}
    item = {"type": "Feature", "id": "S2A_31SEA/0", "properties": facts, "assets": assets, "links": []}
    path = folder / "item.json"
    path.write_text(json.dumps(item))
    return path


@pytest.mark.parametrize(
    ("offset", "properties"),
    [
        (-1000, {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": False}),
        (0, {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}),
        (0, {"s2:processing_baseline": "02.14"}),
    ],
)
def test_an_item_of_band_files_is_a_scene_of_reflectance(
    tmp_path: Path, offset: int, properties: dict[str, Any]
) -> None:
    path = catalogue_item(tmp_path / "item", offset=offset, **properties)
    with open_inputs(path) as (scene,):
        assert (scene.name, scene.bands, scene.geobox.shape) == ("S2A_31SEA_0", tuple(KEYS), (80, 120))
        assert scene.attribution == "contains modified Copernicus Sentinel data 2023"
        found = pixels_of(scene.path)
        product = mapped(scene, tmp_path / "out")
    for name, band in zip(KEYS, found, strict=True):
        raw = pixels_of(path.parent / f"{KEYS[name]}.tif")[0].astype(int)
        expected = np.where(raw == 0, 0, np.maximum(raw + offset, 1))
        if raw.shape != (80, 120):
            expected = expected.repeat(2, axis=0).repeat(2, axis=1)
        np.testing.assert_array_equal(band, expected)
    assert np.all(pixels_of(product.mask)[0][found.min(axis=0) == 0] == 255)
    link = json.loads(product.item.read_text())["links"][0]["href"]
    assert (product.root / link).resolve() == path


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_window_of_a_coarser_band_does_not_depend_on_where_it_begins(data: st.DataObject) -> None:
    rows, columns, factor = data.draw(st.integers(1, 12)), 9, data.draw(st.sampled_from([2, 3, 6]))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rng = np.random.default_rng(0)
        for name, repeat in (("fine", factor), ("coarse", 1)):
            grid = Affine(60 / repeat, 0, 500_000, 0, -60 / repeat, 4_000_000)
            box = GeoBox((rows * repeat, columns * repeat), grid, "EPSG:32631")
            with scene_writer(root / f"{name}.tif", geobox=box, bands=["B02"], item={}) as target:
                target.write(rng.integers(1, 9999, (1, *box.shape)).astype(np.uint16))
        files = [BandFile(b, str(root / f"{name}.tif"), 1, -1000) for b, name in (("B02", "fine"), ("B01", "coarse"))]
        write_band_vrt(root / "x.vrt", files, resampling=data.draw(st.sampled_from(get_args(Resampling))))
        whole = pixels_of(root / "x.vrt")
        top = data.draw(st.integers(0, rows * factor - 1))
        left = data.draw(st.integers(0, columns * factor - 1))
        height = data.draw(st.integers(1, rows * factor - top))
        width = data.draw(st.integers(1, columns * factor - left))
        with rasterio.open(root / "x.vrt") as source:
            part = source.read(window=Window(left, top, width, height))
    np.testing.assert_array_equal(part, whole[:, top : top + height, left : left + width])


def downloaded(path: Path, folder: Path, resampling: str) -> Scene:
    """What `download` writes of one item, without masking."""
    ground = shapely.box(2, 35, 4, 37)
    place = {"stac_version": "1.0.0", "bbox": list(ground.bounds), "geometry": shapely.geometry.mapping(ground)}
    item = pystac.Item.from_dict(json.loads(path.read_text()) | place)
    item.set_self_href(str(path))
    scenes = [source_scene(item, assets=KEYS)]
    config = AcquireConfig(
        periods={"august": {"start": "2023-08-01", "end": "2023-08-31"}}, bands=tuple(KEYS), mask={"classes": ()},
        composite="least-cloudy", resampling=resampling, workers=1, block=64,
    )  # fmt: skip
    box = GeoBox((80, 120), AFFINE, "EPSG:32631")
    return open_scene(write_composite(folder / "scene.tif", geobox=box, scenes=scenes, config=config))


@pytest.mark.parametrize("resampling", get_args(Resampling))
def test_the_bands_of_an_item_are_resampled_as_a_download_does(tmp_path: Path, resampling: str) -> None:
    path = catalogue_item(tmp_path / "item", offset=-1000, **{"s2:processing_baseline": "05.09"})
    expected = downloaded(path, tmp_path / "raw", resampling)
    with open_inputs(path, resampling=resampling) as (scene,):
        assert scene.geobox == expected.geobox
        pixels, theirs = pixels_of(scene.path), pixels_of(expected.path)
        identity = raster_identity(scene.path)
    observed = (pixels > 0).all(axis=0)
    assert 0.9 < observed.mean() < 1
    np.testing.assert_array_equal(pixels[:, observed], theirs[:, observed])
    assert not theirs[:, ~observed].any()
    with open_inputs(path, resampling=resampling) as (again,):
        assert raster_identity(again.path) == identity
        facts = processing_of(again.item["properties"])
    assert facts == Processing(resampling=resampling, offset="removed")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda item: item["properties"].pop("datetime"), r"no valid date \(None\)"),
        (lambda item: item["properties"].update(datetime=None), r"no valid date \(None\)"),
        (lambda item: item["properties"].update(datetime="yesterday"), "date"),
        (lambda item: [asset.update(href=None) for asset in item["assets"].values()], "href None"),
        (lambda item: [asset.pop("href") for asset in item["assets"].values()], "href None"),
        (lambda item: [asset.update(bands={"name": "B02"}) for asset in item["assets"].values()], "bands of the asset"),
        (lambda item: [asset.update({"eo:bands": ["B02"]}) for asset in item["assets"].values()], "eo:bands of the"),
        (lambda item: [asset.update({"raster:bands": {"scale": 1}}) for asset in item["assets"].values()], "raster:b"),
    ],
)
def test_an_item_that_lacks_something_is_named_in_one_message(tmp_path, change, facts):
    path = catalogue_item(tmp_path / "item", offset=-1000, **{"s2:processing_baseline": "05.09"})
    item = json.loads(path.read_text())
    change(item)
    path.write_text(json.dumps(item))
    with pytest.raises(SceneError, match=f"{re.escape(str(path))}.*{facts}"), open_inputs(path):
        pass


def test_an_item_says_its_level(tmp_path: Path) -> None:
    names = {"s2:processing_baseline": "02.14", "s2:product_uri": "S2A_MSIL1C_20230815T100000_N0214_R1_T31SEA_2.SAFE"}
    with open_inputs(catalogue_item(tmp_path / "item", offset=0, **names)) as (scene,):
        assert processing_of(scene.item["properties"]).level == "L1C"


BUNDLE = Processing(resampling="bilinear", level="L2A", offset="removed")


@pytest.mark.parametrize(("key", "value"), [("resampling", "nearest"), ("level", "L1C"), ("offset", "present")])
def test_a_scene_that_was_made_in_another_way_than_the_training_raises_an_error(
    tmp_path: Path, key: str, value: str
) -> None:
    scene = make_scene(tmp_path / "raw", (64, 80))
    facts = BUNDLE.model_copy(update={key: value})
    made = replace(scene, item={"properties": {**scene.item["properties"], **facts.as_properties}})
    predictor = NumpyPredictor(from_neighbours, processing=BUNDLE)
    with pytest.raises(SceneError, match=rf"scene\.tif has the {key} {value}, .* {getattr(BUNDLE, key)}"):
        predict_scene(made, predictor, tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(("here", "there"), [(None, BUNDLE), (BUNDLE, Processing()), (BUNDLE, BUNDLE)])
def test_a_fact_that_is_unknown_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, here: Processing | None, there: Processing
) -> None:
    scene = make_scene(tmp_path / "raw", (64, 80))
    made = replace(scene, item={"properties": {**scene.item["properties"], **(here.as_properties if here else {})}})
    with caplog.at_level(logging.WARNING, "terraseg"):
        predict_scene(made, NumpyPredictor(from_neighbours, processing=there), tmp_path / "out", **OPTIONS)
    unknown = "resampling, level, offset unknown for the scene or the model" in caplog.text
    assert unknown == (here != there)


def test_a_vrt_of_scenes_of_two_levels_raises_an_error(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "whole", (64, 80))
    facts = {"terraseg:attribution": ATTRIBUTION, "datetime": "2026-01-01T00:00:00Z"}
    parts = halves(tmp_path / "halves", scene, item={"properties": {**facts, "terraseg:level": "L1C"}})
    left = parts[0].with_suffix(".json")
    left.write_text(json.dumps({"properties": {**facts, "terraseg:level": "L2A"}}))
    with pytest.raises(SceneError, match="level"), open_inputs(mosaic(tmp_path / "scene.vrt", parts)):
        pass
    left.write_text(json.dumps({"properties": {**facts, "terraseg:level": "L1C"}}))
    with open_inputs(mosaic(tmp_path / "scene.vrt", parts)) as (found,):
        assert processing_of(found.item["properties"]) == Processing(level="L1C")


def test_the_item_of_a_scene_is_the_scene(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (64, 80))
    with open_inputs(scene.path.with_suffix(".json")) as (found,):  # without assets
        assert found.path == scene.path
    item = {**scene.item, "assets": {"image": {"href": "./scene.tif", "type": "image/tiff", "roles": ["data"]}}}
    scene.path.with_suffix(".json").write_text(json.dumps(item))
    with open_inputs(scene.path.with_suffix(".json")) as (found,):
        assert (found.name, found.bands, found.attribution) == ("scene", scene.bands, ATTRIBUTION)
        np.testing.assert_array_equal(pixels_of(found.path), pixels_of(scene.path))
        assert_same_map(mapped(found, tmp_path / "out"), mapped(scene, tmp_path / "expected"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"properties": {"earthsearch:boa_offset_applied": True}}, "-1000"),
        ({"properties": {"s2:processing_baseline": None}}, "s2:processing_baseline"),
        ({"properties": {"platform": "landsat-9"}}, "terraseg:attribution"),
        ({"properties": {"datetime": "yesterday"}}, "has a date that can't be read"),
        (
            {"assets": {"preview": {"href": "./a.png", "type": "image/png"}}},
            "has 0 assets .*preview",
        ),
        ({"assets": {"blue": {"href": "s3://bucket/blue.tif"}}}, "s3://bucket/blue.tif"),
        ({"assets": {"blue": {"href": "./lost.tif"}}}, r"reads .*lost\.tif, which can't be read"),
        ({"assets": {"blue": {"href": "./blue.tif", "raster:bands": [{"scale": 1.0}]}}}, "blue has the scale 1.0"),
        ({"type": "FeatureCollection"}, "is not a STAC item"),
        ({"assets": ["B02.tif"]}, "has invalid assets"),
        ({"assets": {"B02": "B02.tif"}}, "has invalid assets"),
    ],
)
def test_an_item_that_can_not_be_mapped_is_one_line(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    path = catalogue_item(tmp_path / "item", offset=-1000, **{"s2:processing_baseline": "05.09"})
    item = json.loads(path.read_text())
    for key, value in change.items():
        item[key] = {**item[key], **value} if key == "properties" else value
    path.write_text(json.dumps(item))
    with pytest.raises(SceneError, match=line) as raised, open_inputs(path):
        pass
    assert "\n" not in str(raised.value)


def test_bands_on_other_ground_are_refused(tmp_path: Path) -> None:
    path = catalogue_item(tmp_path / "item", offset=0, **{"s2:processing_baseline": "02.14"})
    with rasterio.open(path.parent / "red.tif", "r+") as target:
        target.transform = Affine(10, 0, 500_010, 0, -10, 4_000_000)
    with pytest.raises(SceneError, match=r"red\.tif .*10 m apart"), open_inputs(path):
        pass


def test_a_scene_that_changes_while_it_is_read_gives_no_map(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (150, 70))

    def touches(pixels: np.ndarray) -> np.ndarray:
        os.utime(scene.path, ns=(1, 1))
        return from_neighbours(pixels)

    with pytest.raises(SceneError, match="has changed while it was read"):
        predict_scene(scene, NumpyPredictor(touches), tmp_path / "out", **OPTIONS)
    assert not list((tmp_path / "out" / "scene").glob("[!.]*"))
    assert open_scene(scene.path).bands == scene.bands


def test_an_export_is_compared_on_inputs_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "open_bundle", lambda root: ConvBundle(root, make_info()))
    monkeypatch.setattr("terraseg.mapping.runtimes.measure._SECONDS", 0.0)
    make_scene(tmp_path / "raw", (64, 80), name="a")
    vrt = mosaic(tmp_path / "b.vrt", halves(tmp_path / "halves", make_scene(tmp_path / "whole", (64, 80))))
    item = catalogue_item(tmp_path / "item", offset=0, **{"s2:processing_baseline": "02.14"})
    inputs = [str(tmp_path / "raw"), str(vrt), str(item)]
    words = ["--bundle", str(tmp_path / "bundle"), "--chips", "6", "--input", *inputs]
    assert main(["export", *words]) == 0
    record = json.loads((tmp_path / "bundle/runtimes/parity.json").read_text())
    assert record["scenes"] == ["a", "b", "S2A_31SEA_0"]


def test_a_manifest_may_name_inputs_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", lambda root: ConvBundle(root, make_info()))
    make_scene(tmp_path / "raw", (64, 80), name="a")
    mosaic(tmp_path / "b.vrt", halves(tmp_path / "halves", make_scene(tmp_path / "whole", (64, 80))))
    item = catalogue_item(tmp_path / "item", offset=0, **{"s2:processing_baseline": "02.14"})
    (tmp_path / "all.txt").write_text("raw/a.tif\nb.vrt\nitem/item.json\n")
    arguments = ["--bundle", str(tmp_path), "--manifest", str(tmp_path / "all.txt"), "--output", str(tmp_path / "out")]
    assert main(["predict", *arguments, "--device", "cpu"]) == 0
    names = [product.root.name for product in find_products(tmp_path / "out")]
    assert names == ["S2A_31SEA_0", "a", "b"]
    assert item.is_file()


@pytest.mark.parametrize("suffix", [".tif", ".TIF", ".tiff"])
def test_the_item_of_a_scene_finds_it_whatever_its_suffix(tmp_path, suffix):
    path = make_scene(tmp_path).path
    path.rename(path.with_suffix(suffix))
    with open_inputs(path.with_suffix(".json")) as (scene,):
        assert scene.path == path.with_suffix(suffix)
