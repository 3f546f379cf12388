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
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyproj
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.io import DatasetWriter

from terraseg.core.bands import REFLECTANCE_SCALE, UNIT, band
from terraseg.core.files import write_json
from terraseg.core.raster import cog_writer
from terraseg.errors import SceneError

NODATA = 0
"""Digital number of a pixel without an observation: outside of the swath, cloud, shadow."""

_LOOK = 256
"""Side of the decimated look at values that are not as declared, in pixels."""

_TRUE_SCALE = 0.05
"""Share by which a pixel may be another size on the ground than in its CRS; of UTM it is 0.5 % at most."""

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
        return self._day("datetime", "start_datetime")

    @property
    def last_day(self) -> dt.date:
        """The last of its days, of a scene that is no composite its date.

        Raises:
            SceneError: its provenance has none.
        """
        return self._day("end_datetime", "datetime")

    def _day(self, *keys: str) -> dt.date:
        """The day of the first of some properties that is there."""
        properties = self.item["properties"]
        given = next((properties[key] for key in keys if properties.get(key)), None)
        try:
            return dt.datetime.fromisoformat(str(given)).date()
        except ValueError as error:
            raise SceneError(
                f"{self.path.with_suffix('.json')} says no date", expected=f"{' or '.join(keys)}, ISO 8601"
            ) from error

    @property
    def attribution(self) -> str:
        """The line that everything made from the scene must carry."""
        return str(self.item["properties"][ATTRIBUTION])


Place: TypeAlias = tuple[Scene, ...]
"""The scenes of one place, of the same pixel grid and bands, the first date first; the first one names it."""


def open_scene(path: str | Path) -> Scene:
    """Read and check what contract 1 promises of a scene, without reading pixels.

    Raises:
        SceneError: missing or unreadable file, no provenance, no CRS, geographic or rotated grid, pixels of another
            size on the ground than in their CRS, wrong type, nodata, unit or band names.
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
    geobox = GeoBox(shape, transform, str(crs))
    if not is_true_to_scale(geobox):
        width, height = pixel_on_ground(geobox)
        raise SceneError(
            f"{path} has pixels of {transform.a:g} in {crs}, which are {width:.3g} x {height:.3g} m on the ground",
            expected="a CRS in metres and true to scale there, such as that of its UTM zone",
            fix="resample it with gdalwarp -t_srs EPSG:326ZZ -tr 10 10, ZZ the zone",
        )
    if dtypes != {"uint16"} or nodata != NODATA:
        raise SceneError(
            f"{path} has type {', '.join(sorted(dtypes))} and nodata {nodata}, {_what_it_looks_like(path)}",
            expected=f"uint16 DN x {REFLECTANCE_SCALE} = reflectance, with nodata {NODATA}",
            fix="gdal_translate -ot UInt16 -a_nodata 0, of reflectance 0 to 1 with -scale 0 1 0 10000",
        )
    if tags.get("UNIT") != UNIT:
        raise SceneError(
            f"{path} has unit {tags.get('UNIT', 'undeclared')}, {_what_it_looks_like(path)}",
            expected=f"the tag UNIT={UNIT} (reflectance = DN x {REFLECTANCE_SCALE}, baseline offset removed)",
            fix="download with terraseg, or convert the values and set the tag",
        )
    if not all(names):
        raise SceneError(f"{path} has bands without a description", expected="Sentinel-2 names such as B02")
    bands = _band_names(names, path)
    provenance = path.with_suffix(".json")
    if not provenance.is_file():
        raise SceneError(f"{path} has no provenance {provenance.name} beside it", fix="download the scene again")
    try:
        item = json.loads(provenance.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SceneError(f"{provenance} is no JSON ({error})", fix="download the scene again") from error
    if not isinstance(item, dict):
        raise SceneError(f"{provenance} is no JSON object", expected="a STAC item", fix="download the scene again")
    if ATTRIBUTION not in item.get("properties", {}):
        raise SceneError(
            f"{provenance} credits nobody: it has no property {ATTRIBUTION}", fix="download the scene again"
        )
    _check_place(path, geobox, item)
    return Scene(path=path, bands=bands, geobox=geobox, item=item)


def _band_names(names: Sequence[str], path: Path) -> tuple[str, ...]:
    """ESA names; a name that comes twice would leave it to chance which band is meant."""
    try:
        bands = tuple(band(name).name for name in names)
    except SceneError as error:
        raise SceneError(f"{path}: {error.found}", expected=error.expected) from error
    if twice := sorted({name for name in bands if bands.count(name) > 1}):
        raise SceneError(f"{path} has the band {', '.join(twice)} twice", expected="each band once")
    return bands


def _what_it_looks_like(path: Path) -> str:
    """The unit that a raster's values look like, from a decimated look; for a message."""
    try:
        with rasterio.open(path) as source:
            look = source.read(1, out_shape=(min(source.height, _LOOK), min(source.width, _LOOK))).astype(np.float64)
    except rasterio.errors.RasterioIOError:
        return "and its values can't be read"
    known = look[np.isfinite(look) & (look > 0)]
    if known.size == 0:
        return "and no value above 0"
    middle = float(np.median(known))
    kind = "reflectance from 0 to 1" if middle < 2 else "8 bit" if known.max() < 256 else "DN x 1e-4"
    return f"and values around {middle:.3g}, like {kind}"


def pixel_on_ground(geobox: GeoBox) -> tuple[float, float]:
    """Width and height in metres of the pixel in the middle of a grid, measured on the ellipsoid, whatever its CRS."""
    rows, columns = geobox.shape
    to_degrees = pyproj.Transformer.from_crs(str(geobox.crs), 4326, always_xy=True).transform
    corner, right, below = (
        to_degrees(*(geobox.affine @ (columns // 2 + across, rows // 2 + down)))
        for across, down in ((0, 0), (1, 0), (0, 1))
    )
    earth = pyproj.Geod(ellps="WGS84")
    width, height = (earth.inv(*corner, *other)[2] for other in (right, below))
    return float(width), float(height)


def is_true_to_scale(geobox: GeoBox) -> bool:
    """Whether pixels have their size in metres on the ground: not in feet or degrees, nor in Web Mercator."""
    gsd = abs(geobox.resolution.x)
    return all(abs(side / gsd - 1) <= _TRUE_SCALE for side in pixel_on_ground(geobox))


def _check_place(path: Path, geobox: GeoBox, item: dict[str, Any]) -> None:
    """Refuse a raster that lies elsewhere than its item says: a wrong UTM zone moves it by hundreds of kilometres."""
    said = item.get("bbox")
    if said is None:
        return
    if not isinstance(said, list) or len(said) not in (4, 6) or not all(isinstance(edge, int | float) for edge in said):
        raise SceneError(f"{path.with_suffix('.json')} has the bbox {said}", expected="4 or 6 numbers, as of STAC")
    half = len(said) // 2  # with heights there are 6
    said = [*said[:2], *said[half : half + 2]]
    if said[0] > said[2]:  # over the antimeridian
        return
    west, south, east, north = geobox.geographic_extent.boundingbox
    if west > said[2] or east < said[0] or south > said[3] or north < said[1]:
        raise SceneError(
            f"{path} lies at {(west + east) / 2:.2f} E {(south + north) / 2:.2f} N by its CRS {geobox.crs}, "
            f"its item says {(said[0] + said[2]) / 2:.2f} E {(said[1] + said[3]) / 2:.2f} N",
            expected="the UTM zone of its place",
            fix="correct the CRS with rio edit-info --crs, or download the scene again",
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
        _refuse_unlike(scene, scenes[0])
    return scenes


def find_places(path: str | Path, *, frames: int) -> list[Place]:
    """The places of a folder, see `group_places`.

    Args:
        path: see `find_scenes`.
        frames: dates of each place.

    Raises:
        SceneError: what `find_scenes` and `group_places` raise.
    """
    return group_places(find_scenes(path), frames=frames)


def group_places(scenes: Sequence[Scene], *, frames: int) -> list[Place]:
    """Scenes by place: those on one pixel grid, the first date first.

    Args:
        scenes: in any order, at least one.
        frames: dates of each place; with 1 each scene stands alone, also where others show the same place.

    Raises:
        SceneError: a place has another number of scenes, two that share a day, or bands in another order.
    """
    if frames == 1:
        return [(scene,) for scene in scenes]
    by_grid: dict[GeoBox, list[Scene]] = defaultdict(list)
    for scene in scenes:
        by_grid[scene.geobox].append(scene)
    places = [tuple(sorted(group, key=lambda scene: scene.day)) for group in by_grid.values()]
    for place in places:
        first, days = place[0], [_days(scene) for scene in place]
        if len(place) != frames or len({scene.day for scene in place}) < frames:
            raise SceneError(
                f"on the grid of {first.name} there are {len(place)} of {len(scenes)} scenes ({', '.join(days)})",
                expected=f"{frames} of different days, one a frame",
                fix="download as many periods, or correct the number of frames",
            )
        for before, after in pairwise(place):
            if after.day <= before.last_day:
                raise SceneError(
                    f"{before.name} ({_days(before)}) and {after.name} ({_days(after)}) are of the same days",
                    expected="dates of a place that follow each other",
                    fix="download periods that don't overlap",
                )
            _refuse_unlike(after, first)
    return places


def _days(scene: Scene) -> str:
    return str(scene.day) if scene.day == scene.last_day else f"{scene.day} to {scene.last_day}"


def _refuse_unlike(scene: Scene, first: Scene) -> None:
    if scene.bands != first.bands or scene.gsd != first.gsd:
        raise SceneError(
            f"{scene.path.name} has bands {', '.join(scene.bands)} at {scene.gsd:g} m, "
            f"{first.path.name} has {', '.join(first.bands)} at {first.gsd:g} m",
            expected="scenes of one kind",
            fix="keep them in separate folders",
        )


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
