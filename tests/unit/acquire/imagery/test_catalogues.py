"""Real items of the catalogues, and the choice of scenes."""

import json
from pathlib import Path

import planetary_computer
import pystac
import pytest
import shapely

from terraseg.acquire.config import CatalogueConfig
from terraseg.acquire.imagery import catalogues
from terraseg.acquire.imagery.catalogues import CATALOGUES, SourceScene, catalogue, source_scene
from terraseg.errors import CatalogueError


def _item(folder: Path, start: str) -> pystac.Item:
    (path,) = (folder / "stac_items").glob(f"{start}*.json")
    return pystac.Item.from_dict(json.loads(path.read_text(encoding="utf-8")))


def test_an_item_of_earth_search(shared_data: Path) -> None:
    scene = source_scene(_item(shared_data, "earthsearch_v1_S2A_12RWT"), assets=CATALOGUES["earth-search"].assets)
    assert (scene.tile, scene.baseline, scene.offset, scene.platform) == ("12RWT", "05.10", 0, "sentinel-2a")
    assert scene.cloud_cover == pytest.approx(1.051041)
    assert scene.hrefs["B8A"].endswith("/B8A.tif")
    assert scene.hrefs["B11"].endswith("/B11.tif")
    assert scene.hrefs["SCL"].endswith("SCL.tif")
    assert len(scene.hrefs) == 13


def test_an_item_of_the_planetary_computer(shared_data: Path) -> None:
    scene = source_scene(_item(shared_data, "pc_S2B"), assets=CATALOGUES["planetary-computer"].assets)
    assert (scene.tile, scene.baseline, scene.offset) == ("47XML", "05.10", -1000)
    assert scene.hrefs["B02"].endswith("_B02_10m.tif")
    assert scene.hrefs["SCL"].endswith("_SCL_20m.tif")


def test_an_item_of_cdse(shared_data: Path) -> None:
    (path,) = (shared_data / "stac_items").glob("cdse*.json")
    excerpt = json.loads(path.read_text(encoding="utf-8"))
    # The excerpt has one asset only; the other required parts of an item are added.
    box = shapely.box(15, 47.6, 16.5, 48.6)
    whole = {
        **excerpt,
        "stac_version": "1.1.0",
        "geometry": shapely.geometry.mapping(box),
        "bbox": list(box.bounds),
        "properties": {"datetime": "2025-03-30T10:00:51Z", "platform": "sentinel-2c", "eo:cloud_cover": 4.2},
    }
    scene = source_scene(pystac.Item.from_dict(whole), assets={"B02": CATALOGUES["cdse"].assets["B02"]})
    assert (scene.tile, scene.baseline, scene.offset) == ("33UWP", "05.11", -1000)
    assert scene.hrefs["B02"].startswith("s3://eodata/")
    assert scene.hrefs["B02"].endswith("_B02_10m.jp2")


def test_a_missing_asset_is_named(shared_data: Path) -> None:
    with pytest.raises(CatalogueError, match=r"S2A_12RWT_20240106_0_L2A lacks red_edge \(B05\)"):
        source_scene(_item(shared_data, "earthsearch_v1_S2A_12RWT"), assets={"B05": "red_edge"})


def test_the_planetary_computers_addresses_can_be_signed(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def token(account: str, container: str, **_: object) -> planetary_computer.sas.SASToken:
        asked.append((account, container))
        return planetary_computer.sas.SASToken.model_validate({"token": "sig=x", "msft:expiry": "2100-01-01T00:00:00Z"})

    monkeypatch.setattr(planetary_computer.sas, "get_token", token)
    scene = source_scene(_item(shared_data, "pc_S2B"), assets={"B02": "B02"})
    assert planetary_computer.sign(scene.hrefs["B02"]) == scene.hrefs["B02"] + "?sig=x"
    assert asked == [("sentinel2l2a01", "sentinel2-l2")]


def test_cdse_without_credentials_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(CatalogueError, match="AWS_ACCESS_KEY_ID are not set"):
        catalogue(CatalogueConfig(name="cdse"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    assert catalogue(CatalogueConfig(name="cdse")).gdal["AWS_S3_ENDPOINT"] == "eodata.dataspace.copernicus.eu"


def _scene(number: int, *, tile: str = "31SEA", day: int = 1, baseline: str = "05.09", cloud: float = 0) -> SourceScene:
    item = pystac.Item(
        id=f"scene{number}",
        geometry=shapely.geometry.mapping(shapely.box(3, 36, 4, 37)),
        bbox=[3, 36, 4, 37],
        datetime=pystac.utils.str_to_datetime(f"2023-07-{day:02}T10:00:00Z"),
        properties={
            "platform": "sentinel-2a",
            "grid:code": f"MGRS-{tile}",
            "s2:processing_baseline": baseline,
            "eo:cloud_cover": cloud,
        },
    )
    item.add_asset("blue", pystac.Asset("B02.tif"))
    return source_scene(item, assets={"B02": "blue"})


def test_a_reprocessed_scene_counts_once() -> None:
    old, new, other = _scene(1, baseline="02.14"), _scene(2, baseline="05.00"), _scene(3, day=2)
    assert {scene.id for scene in catalogues._newest_processing([new, old, other])} == {"scene2", "scene3"}


def test_a_missing_cloud_cover_is_unknown(shared_data: Path) -> None:
    item = _item(shared_data, "pc_S2B")
    del item.properties["eo:cloud_cover"]
    assert source_scene(item, assets={"B02": "B02"}).cloud_cover is None
