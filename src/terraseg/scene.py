"""Contract 1: a scene in data/raw, ``<scene>.tif`` with its provenance ``<scene>.json`` beside it.

The only place that knows how scenes look on disk. The preparation and the mapping read them with
`open_scene`, the acquisition and the sample write them with `scene_writer`.
"""

import datetime as dt
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio
from odc.geo.geobox import GeoBox
from rasterio.io import DatasetWriter

from terraseg.bands import REFLECTANCE_SCALE, UNIT, band
from terraseg.errors import SceneError
from terraseg.files import write_json
from terraseg.raster import cog_writer

NODATA = 0
"""Digital number of a pixel without an observation: outside of the swath, cloud, shadow."""


ATTRIBUTION = "terraseg:attribution"
"""Property of the STAC item that holds the line of credit."""


@dataclass(frozen=True)
class Scene:
    """A scene on disk; pixels are read window by window with rasterio from ``path``.

    Attributes:
        path: the COG, uint16, nodata 0, reflectance = DN x 1e-4.
        bands: ESA names in file order.
        geobox: its pixel grid, the only truth about it.
        item: the STAC item beside it: sources, offsets, mask rule, composite rule.
    """

    path: Path
    bands: tuple[str, ...]
    geobox: GeoBox
    item: dict[str, Any]

    @property
    def name(self) -> str:
        """File name without suffix, the scene's id everywhere downstream."""
        return self.path.stem

    @property
    def gsd(self) -> float:
        """Pixel size in metres."""
        return float(abs(self.geobox.resolution.x))

    @property
    def day(self) -> dt.date:
        """Its date; of a composite the first of its days.

        Raises:
            SceneError: its provenance has none.
        """
        properties = self.item["properties"]
        try:
            return dt.datetime.fromisoformat(properties.get("datetime") or properties["start_datetime"]).date()
        except (KeyError, ValueError, TypeError) as error:
            raise SceneError(
                f"{self.path.with_suffix('.json')} says no date", expected="datetime or start_datetime, ISO 8601"
            ) from error

    @property
    def attribution(self) -> str:
        """The line that everything made from the scene must carry."""
        return str(self.item["properties"][ATTRIBUTION])


def open_scene(path: str | Path) -> Scene:
    """Read and check what contract 1 promises of a scene, without reading pixels.

    Raises:
        SceneError: missing or unreadable file, no provenance, no CRS, geographic or rotated grid, wrong type,
            nodata, unit or band names.
    """
    path = Path(path)
    if not path.is_file():
        raise SceneError(f"no scene at {path}", fix="run the download first, or correct --input")
    try:
        with rasterio.open(path) as source:
            crs, transform, shape = source.crs, source.transform, source.shape
            dtypes, nodata, names, tags = set(source.dtypes), source.nodata, source.descriptions, source.tags()
    except rasterio.errors.RasterioIOError as error:
        raise SceneError(f"{path} can't be read as a raster ({error})", fix="download it again") from error
    if crs is None:
        raise SceneError(f"{path} has no CRS", expected="a UTM zone", fix="assign it with rio edit-info --crs")
    if not crs.is_projected or transform.b or transform.d or transform.a != -transform.e:
        raise SceneError(f"{path} is not on a north-up metric grid of square pixels ({crs})", expected="a UTM grid")
    if dtypes != {"uint16"} or nodata != NODATA:
        raise SceneError(
            f"{path} has type {', '.join(sorted(dtypes))} and nodata {nodata}", expected=f"uint16 with nodata {NODATA}"
        )
    if tags.get("UNIT") != UNIT:
        raise SceneError(
            f"{path} has unit {tags.get('UNIT', 'undeclared')}",
            expected=f"the tag UNIT={UNIT} (reflectance = DN x {REFLECTANCE_SCALE}, baseline offset removed)",
            fix="download with terraseg, or convert the values and set the tag",
        )
    if not all(names):
        raise SceneError(f"{path} has bands without a description", expected="Sentinel-2 names such as B02")
    provenance = path.with_suffix(".json")
    if not provenance.is_file():
        raise SceneError(f"{path} has no provenance {provenance.name} beside it", fix="download the scene again")
    item = json.loads(provenance.read_text(encoding="utf-8"))
    if ATTRIBUTION not in item.get("properties", {}):
        raise SceneError(
            f"{provenance} credits nobody: it has no property {ATTRIBUTION}", fix="download the scene again"
        )
    return Scene(
        path=path,
        bands=tuple(band(name).name for name in names),
        geobox=GeoBox(shape, transform, str(crs)),
        item=item,
    )


def find_scenes(path: str | Path) -> list[Scene]:
    """The scenes of a folder (sorted by name), or the one scene of a file.

    Raises:
        SceneError: none there, or they differ in bands or CRS: scenes of unlike kinds are refused, not mixed.
    """
    path = Path(path)
    files = sorted(path.glob("[!.]*.tif")) if path.is_dir() else [path]
    if not files:
        raise SceneError(f"no scene (*.tif) in {path}", fix="run the download first, or correct --input")
    scenes = [open_scene(file) for file in files]
    for scene in scenes[1:]:
        if scene.bands != scenes[0].bands or scene.gsd != scenes[0].gsd:
            raise SceneError(
                f"{scene.path.name} has bands {', '.join(scene.bands)} at {scene.gsd:g} m, "
                f"{scenes[0].path.name} has {', '.join(scenes[0].bands)} at {scenes[0].gsd:g} m",
                expected="scenes of one kind",
                fix="keep them in separate folders",
            )
    return scenes


def find_places(path: str | Path, *, frames: int) -> list[tuple[Scene, ...]]:
    """The scenes of a folder by place: those on one pixel grid, the first date first.

    Args:
        path: see `find_scenes`.
        frames: dates of each place; with 1 each scene stands alone, also where others show the same place.

    Raises:
        SceneError: a place has another number of scenes, or two of one day; and see `find_scenes`.
    """
    scenes = find_scenes(path)
    if frames == 1:
        return [(scene,) for scene in scenes]
    by_grid: dict[GeoBox, list[Scene]] = defaultdict(list)
    for scene in scenes:
        by_grid[scene.geobox].append(scene)
    places = [tuple(sorted(group, key=lambda scene: scene.day)) for group in by_grid.values()]
    for place in places:
        days = [str(scene.day) for scene in place]
        if len(place) != frames or len(set(days)) < frames:
            raise SceneError(
                f"on the grid of {place[0].name} there are {len(place)} scenes ({', '.join(days)})",
                expected=f"{frames} of different days, one a frame",
                fix="download as many periods, or correct the number of frames",
            )
    return places


@contextmanager
def scene_writer(
    path: str | Path, *, geobox: GeoBox, bands: Sequence[str], item: dict[str, Any]
) -> Iterator[DatasetWriter]:
    """Yield a raster to write uint16 windows into; scene and provenance appear together when the block ends well.

    Args:
        bands: names in any dialect, in file order.
        item: the STAC item with the provenance; written first, so that a scene never stands without it. It may
            still be changed until the block ends.
    """
    path = Path(path)
    names = [band(name).name for name in bands]
    with cog_writer(
        path,
        geobox=geobox,
        dtype="uint16",
        nodata=NODATA,
        bands=names,
        overviews="average",
        scale=REFLECTANCE_SCALE,
        tags={"UNIT": UNIT},
    ) as target:
        yield target
        write_json(path.with_suffix(".json"), item)
