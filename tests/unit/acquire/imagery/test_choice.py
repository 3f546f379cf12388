"""The choice of scenes without a classification: by footprint and cloud cover."""

import datetime as dt

import shapely
from odc.geo.geobox import GeoBox

from terraseg.acquire.config import AcquireConfig
from terraseg.acquire.imagery.catalogues import SourceScene
from terraseg.acquire.imagery.choice import choose_scenes

_GEOBOX = GeoBox.from_bbox((500000, 4000000, 510000, 4010000), crs="EPSG:32631", resolution=10, tight=True)
_WEST, _SOUTH, _EAST, _NORTH = _GEOBOX.extent.to_crs("EPSG:4326").boundingbox


def _scene(
    name: str, *, cloud: float | None, first: float = 0.0, last: float = 1.0, tile: str = "31SEA"
) -> SourceScene:
    """A scene over a part of the area, from west (0) to east (1)."""
    width = _EAST - _WEST
    return SourceScene(
        id=name,
        time=dt.datetime(2023, 7, 1, 10, tzinfo=dt.UTC),
        tile=tile,
        platform="sentinel-2a",
        cloud_cover=cloud,
        baseline="05.09",
        offset=0,
        footprint=shapely.box(_WEST + first * width, _SOUTH, _WEST + last * width, _NORTH),
        hrefs={},
        link=None,
    )


def _chosen(scenes: list[SourceScene], limit: int) -> list[str]:
    config = AcquireConfig.model_validate(
        {
            "periods": {"all": {"start": "2023-01-01", "end": "2023-12-31"}},
            "mask": {"classes": []},
            "scenes_per_tile": limit,
        }
    )
    return [scene.id for scene in choose_scenes(scenes, geobox=_GEOBOX, config=config)]


def test_slivers_do_not_displace_whole_scenes() -> None:
    slivers = [_scene(f"sliver{i}", cloud=0, last=0.03) for i in range(6)]
    whole = [_scene(f"whole{i}", cloud=5 + i) for i in range(6)]
    assert _chosen([*slivers, *whole], 6) == [scene.id for scene in whole]


def test_a_scene_that_fills_a_gap_is_chosen() -> None:
    west = [_scene(f"west{i}", cloud=0, last=0.8) for i in range(6)]
    assert _chosen([*west, _scene("east", cloud=40, first=0.7)], 4) == ["west0", "west1", "west2", "east"]


def test_each_tile_has_its_own_limit() -> None:
    scenes = [_scene(f"scene{i}", cloud=10 * i, tile="31SEA" if i % 2 else "31SDA") for i in range(5)]
    assert _chosen(scenes, 2) == ["scene0", "scene1", "scene2", "scene3"]
    assert _chosen(scenes, 1) == ["scene0", "scene1"]


def test_unknown_cloud_cover_comes_last() -> None:
    scenes = [_scene("cloudy", cloud=90), _scene("unknown", cloud=None)]
    assert _chosen(scenes, 1) == ["cloudy"]
    assert _chosen(scenes, 2) == ["cloudy", "unknown"]
