"""Composites from a local STAC API, compared with the exact truth of the synthetic city."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import shapely
from rasterio.windows import Window

from terraseg.acquire.config import AcquireConfig
from terraseg.acquire.imagery.catalogues import CATALOGUES
from terraseg.api.acquire import download
from terraseg.contracts.imagery.processing import Processing, processing_of
from terraseg.contracts.scene import find_scenes, open_scene
from terraseg.core.bands import band_indices
from terraseg.errors import CatalogueError, ConfigError, OutputError, SceneError
from terraseg.sample.city.make import City, make_city
from terraseg.sample.servers import StacServer, stac_server

SIZE = 192
BANDS = ["B02", "B04", "B8A", "B12"]


@dataclass(frozen=True)
class Site:
    """A served city and its AOI."""

    city: City
    folder: Path
    aoi: Path
    server: StacServer

    def config(self, **changes: Any) -> AcquireConfig:
        settings = {
            "catalogue": {"name": "earth-search", "url": self.server.url},
            "periods": {"all": {"start": "2020-01-01", "end": "2024-01-01"}},
            "bands": BANDS,
            "max_cloud_cover": 100,
            "resampling": "nearest",
            "block": 96,
            "retries": 2,
            "backoff": 0.01,
            "timeout": 5,
        }
        return AcquireConfig.model_validate({**settings, **changes})

    def truth(self, path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The city's reflectance in the bands and on the grid of a scene."""
        scene = open_scene(path)
        with rasterio.open(self.city.reflectance) as source:
            window = source.window(*scene.geobox.boundingbox).round_offsets().round_lengths()
            indices = band_indices(scene.bands, source.descriptions, where="truth")
            return source.read([index + 1 for index in indices], window=window).astype(np.float32)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> tuple[City, Path]:
    folder = tmp_path_factory.mktemp("city")
    return make_city(folder, size=SIZE, dates=5, cloud=0.3), folder


@pytest.fixture
def site(city: tuple[City, Path], tmp_path: Path) -> Iterator[Site]:
    made, folder = city
    box = shapely.box(*made.geobox.boundingbox)
    aoi = tmp_path / "town.geojson"
    gpd.GeoDataFrame(geometry=[box.buffer(-2)], crs=str(made.geobox.crs)).to_crs(4326).to_file(aoi)
    with stac_server(folder) as server:
        yield Site(made, folder, aoi, server)


def _pixels(path: Path) -> np.ndarray[Any, np.dtype[np.uint16]]:
    with rasterio.open(path) as source:
        return source.read()


def test_median_of_unlike_baselines_meets_the_truth(site: Site, tmp_path: Path) -> None:
    (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=site.config())
    scene = open_scene(path)
    assert path.name == "town.tif"
    assert scene.bands == tuple(BANDS)
    assert scene.geobox == site.city.geobox
    pixels = _pixels(path)
    observed = pixels[0] > 0
    assert observed.mean() > 0.9
    assert (pixels[:, observed] >= 1).all()
    assert (pixels[:, ~observed] == 0).all()
    error = np.abs(pixels.astype(np.float32) - site.truth(path))[:, observed].mean(axis=1)
    assert (error <= 10).all()


def test_provenance_lists_sources_and_rules(site: Site, tmp_path: Path) -> None:
    (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=site.config())
    item = open_scene(path).item
    pystac.Item.from_dict(item)
    properties = item["properties"]
    offsets = {
        source["id"]: (source["processing_baseline"], source["offset"]) for source in properties["terraseg:sources"]
    }
    assert offsets == {
        "S2A_31SEA_20200705_0_L2A": ("02.14", 0),
        "S2A_31SEA_20200715_0_L2A": ("02.14", 0),
        "S2A_31SEA_20220710_0_L2A": ("04.00", -1000),
        "S2A_31SEA_20220720_0_L2A": ("04.00", -1000),
        "S2A_31SEA_20230715_0_L2A": ("05.09", 0),
    }
    assert processing_of(properties) == Processing(resampling="nearest", level="L2A", offset="removed")
    assert properties["terraseg:composite_rule"] == "median"
    assert "3, 8, 9, 10, 11" in properties["terraseg:mask_rule"]
    assert properties["terraseg:nodata_share"] == pytest.approx((_pixels(path)[0] == 0).mean(), abs=1e-6)
    assert properties["terraseg:attribution"] == "contains modified Copernicus Sentinel data 2020, 2022, 2023"
    assert len(item["links"]) == 5


def test_the_size_of_blocks_changes_no_pixel(site: Site, tmp_path: Path) -> None:
    few = site.config(block=SIZE, resampling="bilinear")
    (whole,) = download(aoi=site.aoi, output=tmp_path / "whole", config=few)
    (blocks,) = download(aoi=site.aoi, output=tmp_path / "blocks", config=few.model_copy(update={"block": 64}))
    assert np.array_equal(_pixels(whole), _pixels(blocks))


def test_least_cloudy_takes_whole_observations(site: Site, tmp_path: Path) -> None:
    (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(composite="least-cloudy"))
    pixels = _pixels(path)
    observed = pixels[0] > 0
    assert np.abs(pixels.astype(np.float32) - site.truth(path))[:, observed].mean() <= 15
    assert open_scene(path).item["properties"]["terraseg:composite_rule"] == "least-cloudy"


def test_a_wider_mask_leaves_fewer_pixels(site: Site, tmp_path: Path) -> None:
    shares = []
    for dilation in (0, 8):
        config = site.config(mask={"dilation": dilation}, scenes_per_tile=1)
        (path,) = download(aoi=site.aoi, output=tmp_path / str(dilation), config=config)
        shares.append(open_scene(path).item["properties"]["terraseg:nodata_share"])
    assert shares[0] < shares[1]


def test_bright_roofs_called_cloud_can_be_kept(site: Site, tmp_path: Path) -> None:
    folder = _lie(site.folder, "none", {}, tmp_path / "roofs")
    for path in folder.glob("*/SCL.tif"):
        with rasterio.open(path) as source:
            profile, values = source.profile, source.read()
        values[:, 40:44, 45:52] = 9  # over the border of two blocks
        path.unlink()  # a hard link
        with rasterio.open(path, "w", **{**profile, "driver": "GTiff"}) as target:
            target.write(values)
    roof = (slice(80, 88), slice(90, 104))
    with stac_server(folder) as server:
        catalogue = {"name": "earth-search", "url": server.url}
        (masked,) = download(aoi=site.aoi, output=tmp_path / "masked", config=site.config(catalogue=catalogue))
        kept = []
        for block in (64, SIZE):
            config = site.config(catalogue=catalogue, mask={"persistence": 0.75}, block=block)
            kept += download(aoi=site.aoi, output=tmp_path / str(block), config=config)
    assert (_pixels(masked)[0][roof] == 0).all()
    pixels = _pixels(kept[0])
    assert (pixels[0][roof] > 0).all()
    assert np.array_equal(pixels, _pixels(kept[1]))
    assert "persist" in open_scene(kept[0]).item["properties"]["terraseg:mask_rule"]
    observed = pixels[0] > 0  # no cloud was kept as well
    assert (np.abs(pixels.astype(np.float32) - site.truth(kept[0]))[:, observed].mean(axis=1) <= 10).all()


def test_without_a_mask_the_classification_is_not_read(site: Site, tmp_path: Path) -> None:
    (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(mask={"classes": []}))
    assert open_scene(path).item["properties"]["terraseg:nodata_share"] == 0
    assert not any("SCL" in request for request in site.server.requests)


def test_each_period_makes_a_frame(site: Site, tmp_path: Path) -> None:
    periods = {
        "before": {"start": "2020-07-01", "end": "2020-07-31"},
        "after": {"start": "2022-07-01", "end": "2022-07-31"},
    }
    paths = download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(periods=periods))
    assert [path.name for path in paths] == ["town_before.tif", "town_after.tif"]
    first, second = (open_scene(path) for path in paths)
    assert first.geobox == second.geobox
    assert {source["offset"] for source in second.item["properties"]["terraseg:sources"]} == {-1000}


def test_search_filters_by_cloud_dates_and_exclusion(site: Site, tmp_path: Path) -> None:
    config = site.config(
        exclude=["S2A_31SEA_20200705_0_L2A"], periods={"a": {"start": "2020-07-05", "end": "2020-07-15"}}
    )
    (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=config)
    (source,) = open_scene(path).item["properties"]["terraseg:sources"]
    assert source["id"] == "S2A_31SEA_20200715_0_L2A"
    with pytest.raises(CatalogueError, match="at most 5 % clouds"):
        download(aoi=site.aoi, output=tmp_path / "none", config=site.config(max_cloud_cover=5))


def test_a_custom_catalogue_needs_only_its_asset_map(site: Site, tmp_path: Path) -> None:
    custom = {
        "name": "custom",
        "url": site.server.url,
        "collection": "sentinel-2-l2a",
        "assets": {"B02": "blue", "SCL": "scl"},
    }
    (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(catalogue=custom, bands=["B02"]))
    assert open_scene(path).bands == ("B02",)
    mended = {**custom, "assets": {"B02": "red", "SCL": "scl"}}
    with pytest.raises(OutputError, match=r"town\.tif was made from other scenes"):
        download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(catalogue=mended, bands=["B02"]))
    with pytest.raises(ConfigError, match="no asset for B03"):
        download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(catalogue=custom, bands=["B03"]))


def test_an_existing_scene_is_kept_or_an_error(site: Site, tmp_path: Path) -> None:
    (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=site.config())
    before = path.stat().st_mtime_ns
    reads = sum("data" in request for request in site.server.requests)
    download(aoi=site.aoi, output=tmp_path / "raw", config=site.config())
    assert path.stat().st_mtime_ns == before
    assert sum("data" in request for request in site.server.requests) == reads
    with pytest.raises(OutputError, match=r"town\.tif was made from other scenes"):
        download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(composite="least-cloudy"))


def _lie(folder: Path, start: str, properties: dict[str, Any], target: Path) -> Path:
    """A copy of the catalogue in which one item has other properties; the rasters are hard links."""
    for path in folder.glob("S2A*/*"):
        copy = target / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".json":
            copy.hardlink_to(path)
            continue
        item = json.loads(path.read_text(encoding="utf-8"))
        if item["id"].startswith(start):
            item["properties"].update(properties)
        copy.write_text(json.dumps(item), encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("start", "properties", "says"),
    [
        ("S2A_31SEA_20220710", {"earthsearch:boa_offset_applied": True}, "still to add"),
        ("S2A_31SEA_20230715", {"earthsearch:boa_offset_applied": False}, "added twice"),
        ("S2A_31SEA_20200705", {"s2:processing_baseline": "05.00"}, "added twice"),
    ],
)
def test_a_wrong_flag_is_detected(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture, start: str, properties: dict[str, Any], says: str
) -> None:
    folder = _lie(site.folder, start, properties, tmp_path / "lying")
    with stac_server(folder) as server:
        catalogue = {"name": "earth-search", "url": server.url}
        with pytest.raises(SceneError, match=says) as caught:
            download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(catalogue=catalogue))
        assert start in str(caught.value)
        assert not (tmp_path / "raw" / "town.tif").exists()
        warn = site.config(catalogue=catalogue, offset_check="warn")
        reads = len(server.requests)
        with caplog.at_level(logging.WARNING):
            (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=warn)
    assert says in caplog.text
    assert processing_of(open_scene(path).item["properties"]).offset is None
    assert not any("data" in request for request in server.requests[reads:]), "finished blocks were read again"


def test_a_wrong_flag_is_detected_on_bright_land(site: Site, tmp_path: Path) -> None:
    folder = _lie(site.folder, "S2A_31SEA_20230715", {"earthsearch:boa_offset_applied": False}, tmp_path / "desert")
    for path in folder.glob("*/B*.tif"):
        with rasterio.open(path) as source:
            profile, values = source.profile, source.read()
        path.unlink()  # a hard link
        with rasterio.open(path, "w", **{**profile, "driver": "GTiff"}) as target:
            target.write(values + np.uint16(1300))
    with stac_server(folder) as server:
        catalogue = {"name": "earth-search", "url": server.url}
        with pytest.raises(SceneError, match="S2A_31SEA_20230715") as caught:
            download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(catalogue=catalogue))
        assert "S2A_31SEA_2022" not in str(caught.value)
        config = site.config(catalogue=catalogue, exclude=["S2A_31SEA_20230715_0_L2A"])
        (path,) = download(aoi=site.aoi, output=tmp_path / "right", config=config)
    sources = open_scene(path).item["properties"]["terraseg:sources"]
    assert [source["offset_check"] for source in sources] == ["other scenes"] * 4


def test_pages_of_one_item_are_all_read(site: Site, tmp_path: Path) -> None:
    with stac_server(site.folder, page_size=1) as server:
        catalogue = {"name": "earth-search", "url": server.url}
        (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(catalogue=catalogue))
    assert len(open_scene(path).item["properties"]["terraseg:sources"]) == 5
    assert server.requests.count("POST /search") == 5


def _cut(path: Path, target: Path, suffix: str, columns: tuple[int, int], **properties: Any) -> None:
    """A copy of an item with some of its columns and other properties."""
    item = json.loads(path.read_text(encoding="utf-8"))
    left, right = columns
    home = target / (item["id"] + suffix)
    home.mkdir(parents=True)
    item["id"] += suffix
    item["properties"].update(properties)
    for raster in path.parent.glob("*.tif"):
        with rasterio.open(raster) as source:
            factor = round(source.res[0] / 10)
            window = Window(left // factor, 0, (right - left) // factor, source.height)
            profile = {**source.profile, "width": window.width, "transform": source.window_transform(window)}
            with rasterio.open(home / raster.name, "w", **{**profile, "driver": "GTiff"}) as cut:
                cut.write(source.read(window=window))
    for asset in item["assets"].values():
        for key in ("proj:shape", "proj:transform"):
            asset.pop(key, None)
    (home / "item.json").write_text(json.dumps(item), encoding="utf-8")


def _cut_in_two(folder: Path, start: str, target: Path) -> Path:
    """A copy of the catalogue in which one scene is two tiles that overlap, as Sentinel-2 passes are cut."""
    for path in folder.glob("S2A*/*.json"):
        if path.stem.startswith(start):
            _cut(path, target, "_west", (0, 120), **{"grid:code": "_west"})
            _cut(path, target, "_east", (80, SIZE), **{"grid:code": "_east"})
        else:
            _cut(path, target, "", (0, SIZE), **{"grid:code": ""})
    return target


def test_slivers_of_another_orbit_do_not_displace_whole_scenes(site: Site, tmp_path: Path) -> None:
    folder = _lie(site.folder, "none", {}, tmp_path / "slivers")
    for number, path in enumerate(site.folder.glob("S2A*/*.json")):
        day = {"datetime": f"2023-08-0{number + 1}T10:46:21Z", "eo:cloud_cover": 0}
        _cut(path, folder, "_sliver", (0, 6), **day)
    with stac_server(folder) as server:
        config = site.config(catalogue={"name": "earth-search", "url": server.url}, scenes_per_tile=4)
        (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=config)
    properties = open_scene(path).item["properties"]
    assert not [source["id"] for source in properties["terraseg:sources"] if "sliver" in source["id"]]
    assert properties["terraseg:nodata_share"] < 0.2
    clear = [source["clear_cover"] for source in properties["terraseg:sources"]]
    assert clear == sorted(clear, reverse=True)
    assert 0.4 < clear[-1] <= clear[0] < 0.9


def test_a_scene_of_unknown_cloud_cover_is_ranked_by_what_it_shows(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = "S2A_31SEA_20220710"
    folder = _lie(site.folder, start, {"eo:cloud_cover": None}, tmp_path / "unknown")
    with stac_server(folder) as server:
        config = site.config(catalogue={"name": "earth-search", "url": server.url}, max_cloud_cover=40)
        with caplog.at_level(logging.WARNING):
            (path,) = download(aoi=site.aoi, output=tmp_path / "clear", config=config)
        sources = open_scene(path).item["properties"]["terraseg:sources"]
        (unknown,) = [source for source in sources if source["id"].startswith(start)]
        assert unknown["cloud_cover"] is None
        assert unknown["clear_cover"] > 0.4
        assert "1 of 5 scenes have no eo:cloud_cover" in caplog.text
        scl = next(folder.glob(f"{start}*/SCL.tif"))
        with rasterio.open(scl) as source:
            profile, values = source.profile, source.read()
        scl.unlink()  # a hard link
        with rasterio.open(scl, "w", **{**profile, "driver": "GTiff"}) as target:
            target.write(np.full_like(values, 9))
    with stac_server(folder) as server:  # at another address, because GDAL still caches the old classification
        config = site.config(catalogue={"name": "earth-search", "url": server.url}, scenes_per_tile=4)
        (path,) = download(aoi=site.aoi, output=tmp_path / "cloudy", config=config)
    sources = open_scene(path).item["properties"]["terraseg:sources"]
    assert len(sources) == 4
    assert not [source for source in sources if source["id"].startswith(start)]


def test_an_item_that_lacks_metadata_can_be_excluded(site: Site, tmp_path: Path) -> None:
    start = "S2A_31SEA_20220710"
    changes = {"s2:processing_baseline": None, "s2:product_uri": None}
    folder = _lie(site.folder, start, changes, tmp_path / "poor")
    with stac_server(folder) as server:
        catalogue = {"name": "earth-search", "url": server.url}
        with pytest.raises(CatalogueError, match=start):
            download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(catalogue=catalogue))
        config = site.config(catalogue=catalogue, exclude=[f"{start}_0_L2A"])
        (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=config)
    assert len(open_scene(path).item["properties"]["terraseg:sources"]) == 4


def test_the_item_and_a_raster_count_the_clear_observations(site: Site, tmp_path: Path) -> None:
    (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=site.config(mask={"dilation": 0}))
    item = pystac.Item.from_file(path.with_suffix(".json"))
    with rasterio.open(item.assets["observations"].get_absolute_href()) as source:
        counts = source.read(1)
    hidden = np.sum([(sky.opacity > 0) | sky.shadow for sky in site.city.skies], axis=0)[: SIZE // 2, : SIZE // 2]
    assert np.array_equal(counts, (5 - hidden).repeat(2, axis=0).repeat(2, axis=1))
    assert np.array_equal(counts == 0, _pixels(path)[0] == 0)
    shares = {times: pytest.approx((counts == int(times)).mean(), abs=1e-6) for times in map(str, np.unique(counts))}
    assert item.properties["terraseg:observations"] == shares
    assert [scene.path for scene in find_scenes(path.parent)] == [path]


@pytest.mark.parametrize("classes", [[0, 1, 3, 8, 9, 10, 11], []])
@pytest.mark.parametrize("composite", ["median", "least-cloudy"])
def test_tiles_of_one_pass_count_as_one_observation(
    site: Site, tmp_path: Path, classes: list[int], composite: str
) -> None:
    changes = {"mask": {"classes": classes, "dilation": 0}, "composite": composite}
    (whole,) = download(aoi=site.aoi, output=tmp_path / "whole", config=site.config(**changes))
    folder = _cut_in_two(site.folder, "S2A_31SEA_20220710", tmp_path / "cut")
    with stac_server(folder) as server:
        catalogue = {"name": "earth-search", "url": server.url}
        config = site.config(catalogue=catalogue, **changes)
        (halves,) = download(aoi=site.aoi, output=tmp_path / "halves", config=config)
    assert len(open_scene(halves).item["properties"]["terraseg:sources"]) == 6
    assert np.array_equal(_pixels(whole), _pixels(halves))


def test_a_grid_between_20_m_pixels_gets_the_same_mask(site: Site, tmp_path: Path) -> None:
    (whole,) = download(aoi=site.aoi, output=tmp_path / "whole", config=site.config())
    left, bottom, right, top = site.city.geobox.boundingbox
    box = shapely.box(left + 10, bottom + 10, right - 30, top - 10)
    aoi = tmp_path / "odd.geojson"
    gpd.GeoDataFrame(geometry=[box.buffer(-2)], crs=str(site.city.geobox.crs)).to_crs(4326).to_file(aoi)
    (odd,) = download(aoi=aoi, output=tmp_path / "odd", config=site.config(block=65))
    assert np.array_equal(_pixels(odd), _pixels(whole)[:, 1:-1, 1:-3])


@pytest.mark.parametrize("denied", [False, True])
def test_cdse_is_read_over_s3_with_keys_from_the_environment(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: bool
) -> None:
    folder = tmp_path / "cdse"
    for path in site.folder.glob("S2A*/*"):
        copy = folder / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".json":
            copy.hardlink_to(path)
            continue
        item = json.loads(path.read_text(encoding="utf-8"))
        del item["properties"]["earthsearch:boa_offset_applied"]
        # Without the flag the rule uses the baseline alone; the date whose offset was applied is excluded below.
        item["assets"] = {
            "B02_10m": {"href": f"s3://data/{path.parent.name}/B02.tif", "type": "image/jp2"},
            "SCL_20m": {"href": f"s3://data/{path.parent.name}/SCL.tif", "type": "image/jp2"},
        }
        copy.write_text(json.dumps(item), encoding="utf-8")
    with stac_server(folder) as server:
        host = server.url.removeprefix("http://")
        endpoint = {"AWS_S3_ENDPOINT": host, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "NO"}
        local = dataclasses.replace(CATALOGUES["cdse"], url=server.url, gdal=endpoint)
        monkeypatch.setitem(CATALOGUES, "cdse", local)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
        limit = 8 if denied else 3  # below 4 the choice reads the classification too
        config = site.config(
            catalogue={"name": "cdse"}, bands=["B02"], exclude=["S2A_31SEA_20230715_0_L2A"], scenes_per_tile=limit
        )
        server.faults.denied = denied
        if denied:
            with pytest.raises(CatalogueError, match="check the credentials"):
                download(aoi=site.aoi, output=tmp_path / "raw", config=config)
            return
        (path,) = download(aoi=site.aoi, output=tmp_path / "raw", config=config)
    pixels = _pixels(path)
    observed = pixels[0] > 0
    assert np.abs(pixels.astype(np.float32) - site.truth(path))[:, observed].mean() <= 10
