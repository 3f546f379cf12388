"""A scene in data/raw: ``<scene>.tif`` with its provenance ``<scene>.json`` next to it.

Only this module knows how scenes are stored. Read them with `open_scene`, write them with `scene_writer`.
"""

import datetime as dt
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.io import DatasetWriter

from terraseg.contracts.imagery.values import DN_FROM, FOREIGN_NODATA
from terraseg.core.bands import REFLECTANCE_SCALE, UNIT, band
from terraseg.core.files import GEOTIFF, files_in, write_json
from terraseg.core.raster import cog_writer
from terraseg.errors import SceneError

NODATA = 0
"""Digital number of a pixel without an observation: outside the swath, cloud, shadow."""

ATTRIBUTION = "terraseg:attribution"
"""Property of the STAC item with the credit line."""

_PREVIEW = 256
"""Side in pixels of the preview that is read when the values are not as declared."""

_ROUNDING = 1e-6
"""Largest rounding error of a grid, in pixels."""

_RESAMPLE = "resample it with rio warp IN OUT --dst-crs EPSG:326ZZ --res 10, where ZZ is the UTM zone"
_THEN = "then copy band names, UNIT and item to OUT"
_SCALE_TOLERANCE = 0.05
"""Largest relative difference between a pixel's size on the ground and in its CRS; in UTM it is at most 0.5 %."""


@dataclass(frozen=True)
class Scene:
    """A scene on disk; pixels are read window by window with rasterio from ``path``.

    Attributes:
        path: the COG: uint16, nodata 0, reflectance = DN x 1e-4.
        bands: ESA names in file order.
        geobox: the pixel grid of the file.
        item: the STAC item next to it: sources, offsets, mask rule, composite rule.
    """

    path: Path
    bands: tuple[str, ...]
    geobox: GeoBox
    item: dict[str, Any]

    @property
    def name(self) -> str:
        """File name without suffix: the scene's id in all later steps."""
        return self.path.stem

    @property
    def gsd(self) -> float:
        """Pixel size in metres."""
        return float(abs(self.geobox.resolution.x))

    @property
    def day(self) -> dt.date:
        """The date of the scene; for a composite its first day.

        Raises:
            SceneError: the provenance has no valid date.
        """
        return self._day("datetime", "start_datetime")

    @property
    def last_day(self) -> dt.date:
        """The last day of a composite; for any other scene its date.

        Raises:
            SceneError: the provenance has no valid date.
        """
        return self._day("end_datetime", "datetime")

    def _day(self, *keys: str) -> dt.date:
        """The day in the first of these properties that is set."""
        properties = self.item["properties"]
        given = next((properties[key] for key in keys if properties.get(key)), None)
        try:
            return dt.datetime.fromisoformat(str(given)).date()
        except ValueError as error:
            raise SceneError(
                f"{self.path.with_suffix('.json')} has no valid date ({given})",
                expected=f"{' or '.join(keys)}, ISO 8601",
            ) from error

    @property
    def attribution(self) -> str:
        """Credit line for everything made from the scene."""
        return str(self.item["properties"][ATTRIBUTION])


Place: TypeAlias = tuple[Scene, ...]
"""Scenes of one place with the same pixel grid and bands, earliest date first. The first scene gives the name."""


def open_scene(path: str | Path) -> Scene:
    """Open a scene and check its metadata. Pixels are not read.

    Raises:
        SceneError: the file is missing or unreadable; it has no provenance, no CRS, or the wrong type, nodata, unit or
            band names; its grid is geographic or rotated, or its pixels are not true to scale.
    """
    path = Path(path)
    if not path.is_file():
        raise SceneError(f"no scene at {path}", fix="run the download first, or correct --input")
    try:
        with rasterio.open(path) as source:
            crs, transform, shape = source.crs, source.transform, source.shape
            dtypes, nodata, names, tags = set(source.dtypes), source.nodata, source.descriptions, source.tags()
            masked = any(MaskFlags.per_dataset in flags for flags in source.mask_flag_enums)
    except rasterio.errors.RasterioIOError as error:
        raise SceneError(f"{path} can't be read as a raster ({error})", fix="download it again") from error
    geobox = _geobox(path, crs, transform, shape)
    if dtypes != {"uint16"} or nodata != NODATA:
        raise SceneError(
            f"{path} has type {', '.join(sorted(dtypes))} and nodata {nodata}, {describe_values(path)}",
            expected=f"uint16 DN x {REFLECTANCE_SCALE} = reflectance, with nodata {NODATA}",
            fix=_conversion(path, dtypes, nodata),
        )
    if masked:
        raise SceneError(
            f"{path} has a mask band, which later steps would not read",
            expected=f"nodata {NODATA} where it masks",
            fix=f'convert it with rio calc "(read 1)" IN OUT --masked --profile nodata=0, {_THEN}',
        )
    if tags.get("UNIT") != UNIT:
        raise SceneError(
            f"{path} has unit {tags.get('UNIT', 'undeclared')}, {describe_values(path)}",
            expected=f"the tag UNIT={UNIT} (reflectance = DN x {REFLECTANCE_SCALE}, baseline offset removed)",
            fix=f"download it with terraseg, or convert the values and add it with rio edit-info --tag UNIT={UNIT}",
        )
    bands = _band_names(names, path)
    item = _provenance(path)
    _check_place(path, geobox, item)
    return Scene(path=path, bands=bands, geobox=geobox, item=item)


def _geobox(path: Path, crs: CRS | None, transform: Affine, shape: tuple[int, int]) -> GeoBox:
    """The pixel grid of a raster: north up, in metres, true to scale."""
    if crs is None:
        raise SceneError(f"{path} has no CRS", expected="a UTM zone", fix="assign it with rio edit-info --crs")
    width, height = math.hypot(transform.a, transform.d), math.hypot(transform.b, transform.e)
    rounded = _without_rounding(transform)
    if not crs.is_projected or rounded is None:
        unit = "degrees" if crs.is_geographic else crs.linear_units
        turned = "" if not transform.b and not transform.d else ", rotated"
        raise SceneError(
            f"{path} is not on a north-up metric grid of square pixels ({crs}, {width:g} x {height:g} {unit}{turned})",
            expected="a UTM grid",
            fix=_RESAMPLE,
        )
    geobox = GeoBox(shape, rounded, str(crs))
    if not is_true_to_scale(geobox):
        width, height = pixel_on_ground(geobox)
        raise SceneError(
            f"{path} has pixels of {transform.a:g} in {crs}, which are {width:.3g} x {height:.3g} m on the ground",
            expected="a CRS in metres that is true to scale, such as the local UTM zone",
            fix=_RESAMPLE,
        )
    return geobox


def scene_grid(crs: CRS | None, transform: Affine, shape: tuple[int, int]) -> GeoBox | None:
    """The pixel grid of a raster if a scene may have it (north up, in metres, true to scale), else None."""
    rounded = _without_rounding(transform)
    if crs is None or not crs.is_projected or rounded is None:
        return None
    geobox = GeoBox(shape, rounded, str(crs))
    return geobox if is_true_to_scale(geobox) else None


def _without_rounding(transform: Affine) -> Affine | None:
    """The transform without rounding errors, so that equal grids are equal; None if it is not north up and square."""
    side = abs(transform.a)
    least = _ROUNDING * side
    if transform.a <= 0 or max(abs(transform.b), abs(transform.d), abs(transform.a + transform.e)) > least:
        return None
    if abs(round(side, 3) - side) <= least:
        side = round(side, 3)
    corner = (round(edge, 3) if abs(round(edge, 3) - edge) <= least else edge for edge in (transform.c, transform.f))
    left, top = corner
    return Affine(side, 0, left, 0, -side, top)


def _conversion(path: Path, dtypes: set[str], nodata: float | None) -> str:
    """How to make DN of 1 to 65535, with 0 for nodata only: values below 0 are observations."""
    if dtypes == {"uint16"} and nodata is None:
        return f"declare it with rio edit-info --nodata {NODATA}"
    look = _preview(path)
    seen = np.zeros(1) if look is None else look[np.isfinite(look)]
    values, known = "(read 1)", f"(!= (read 1) {nodata or 0:.17g})"
    marked = look is not None and (seen.size < look.size or seen.min(initial=0) <= FOREIGN_NODATA)
    if (nodata is None and marked) or math.isnan(nodata or 0):
        known = f"(> (read 1) {FOREIGN_NODATA})"
    if any(dtype.startswith("float") for dtype in dtypes):
        bright = seen[seen > 0]
        scale = 10_000 if bright.size and np.median(bright) < DN_FROM else 1
        values = f"(+ 0.5 (* {scale} (read 1)))"
    return (
        f'convert it with rio calc "(where {known} (clip {values} 1 65535) 0)" IN OUT --dtype uint16 --not-masked '
        f"--profile nodata=0, {_THEN}"
    )


def _provenance(path: Path) -> dict[str, Any]:
    """The STAC item next to a raster."""
    provenance = path.with_suffix(".json")
    if not provenance.is_file():
        raise SceneError(f"{path} has no provenance {provenance.name} next to it", fix="download the scene again")
    try:
        item = json.loads(provenance.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SceneError(f"{provenance} is not JSON ({error})", fix="download the scene again") from error
    if not isinstance(item, dict):
        raise SceneError(f"{provenance} is not a JSON object", expected="a STAC item", fix="download the scene again")
    if ATTRIBUTION not in item.get("properties", {}):
        raise SceneError(f"{provenance} has no credit line (property {ATTRIBUTION})", fix="download the scene again")
    return item


def _band_names(names: Sequence[str], path: Path) -> tuple[str, ...]:
    """ESA names of the bands; each may occur once only."""
    if not all(names):
        raise SceneError(
            f"{path} has bands without a description",
            expected="Sentinel-2 names such as B02",
            fix="name them with rio edit-info --bidx 1 --description B02 and so on",
        )
    try:
        bands = tuple(band(name).name for name in names)
    except SceneError as error:
        raise SceneError(f"{path}: {error.found}", expected=error.expected) from error
    if twice := sorted({name for name in bands if bands.count(name) > 1}):
        raise SceneError(f"{path} has the band {', '.join(twice)} twice", expected="each band once")
    return bands


def describe_values(path: str | Path) -> str:
    """What the values of a raster's first band look like, from a preview, for an error message."""
    values = _preview(path)
    if values is None:
        return "and its values can't be read"
    known = values[np.isfinite(values) & (values > 0)]
    if known.size == 0:
        return "and no value above 0"
    middle = float(np.median(known))
    kind = "reflectance from 0 to 1" if middle < DN_FROM else "8 bit" if known.max() < 256 else "DN x 1e-4"
    return f"and values around {middle:.3g}, like {kind}"


def _preview(path: str | Path) -> npt.NDArray[np.float64] | None:
    try:
        with rasterio.open(path) as source:
            shape = min(source.height, _PREVIEW), min(source.width, _PREVIEW)
            values: npt.NDArray[np.float64] = source.read(1, out_shape=shape).astype(np.float64)
    except rasterio.errors.RasterioIOError:
        return None
    return values


def pixel_on_ground(geobox: GeoBox) -> tuple[float, float]:
    """Width and height in metres of the middle pixel of a grid in any CRS, measured on the ellipsoid."""
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
    """Whether the pixel size of the CRS is the size on the ground in metres: not so in feet, degrees, Web Mercator."""
    gsd = abs(geobox.resolution.x)
    return all(abs(side / gsd - 1) <= _SCALE_TOLERANCE for side in pixel_on_ground(geobox))


def _check_place(path: Path, geobox: GeoBox, item: dict[str, Any]) -> None:
    """Check that a raster overlaps the bbox of its item: a wrong UTM zone moves it by hundreds of kilometres."""
    bbox = item.get("bbox")
    if bbox is None:
        return
    if not isinstance(bbox, list) or len(bbox) not in (4, 6) or not all(isinstance(edge, int | float) for edge in bbox):
        raise SceneError(f"{path.with_suffix('.json')} has the bbox {bbox}", expected="4 or 6 numbers, as in STAC")
    half = len(bbox) // 2  # 6 numbers include heights
    bbox = [*bbox[:2], *bbox[half : half + 2]]
    if bbox[0] > bbox[2]:  # over the antimeridian
        return
    west, south, east, north = geobox.geographic_extent.boundingbox
    if west > bbox[2] or east < bbox[0] or south > bbox[3] or north < bbox[1]:
        raise SceneError(
            f"{path} lies at {(west + east) / 2:.2f} E {(south + north) / 2:.2f} N in its CRS {geobox.crs}, "
            f"but its item says {(bbox[0] + bbox[2]) / 2:.2f} E {(bbox[1] + bbox[3]) / 2:.2f} N",
            expected="the UTM zone of its location",
            fix="correct the CRS with rio edit-info --crs, or download the scene again",
        )


def find_scenes(path: str | Path) -> list[Scene]:
    """Open the scenes of a folder, sorted by name, or the one scene of a file.

    Raises:
        SceneError: there are none, two have one name, or they differ in bands or pixel size.
    """
    path = Path(path)
    files = files_in(path, GEOTIFF) if path.is_dir() else [path]
    if not files:
        raise SceneError(f"no scene (*.tif, *.tiff) in {path}", fix="run the download first, or correct --input")
    for before, after in pairwise(sorted(files, key=lambda file: file.stem)):
        if before.stem == after.stem:
            raise SceneError(f"{path} has both {before.name} and {after.name}", fix="rename or remove one of them")
    scenes = [open_scene(file) for file in files]
    for scene in scenes[1:]:
        _check_alike(scene, scenes[0])
    return scenes


def find_places(path: str | Path, *, frames: int) -> list[Place]:
    """Open the scenes of a folder or file and group them by place.

    Args:
        path: see `find_scenes`.
        frames: number of dates of each place.

    Raises:
        SceneError: see `find_scenes` and `group_places`.
    """
    return group_places(find_scenes(path), frames=frames)


def group_places(scenes: Sequence[Scene], *, frames: int | None) -> list[Place]:
    """Group scenes with the same pixel grid into places, earliest date first.

    Args:
        scenes: at least one, in any order.
        frames: number of dates of each place. With 1 every scene is a place of its own, even on the same grid. With
            None a place has as many dates as scenes are on its grid.

    Raises:
        SceneError: a place has more or fewer scenes, scenes that share days, or scenes with different bands.
    """
    if frames == 1:
        return [(scene,) for scene in scenes]
    by_grid: dict[GeoBox, list[Scene]] = defaultdict(list)
    for scene in scenes:
        by_grid[scene.geobox].append(scene)
    places = [tuple(sorted(group, key=lambda scene: scene.day)) for group in by_grid.values()]
    for place in places:
        first, days = place[0], [_days(scene) for scene in place]
        if frames is not None and (len(place) != frames or len({scene.day for scene in place}) < frames):
            raise SceneError(
                f"{len(place)} of {len(scenes)} scenes are on the grid of {first.name} ({', '.join(days)})",
                expected=f"{frames} of different days, one per frame",
                fix="download as many periods, or correct the number of frames",
            )
        for before, after in pairwise(place):
            if after.day <= before.last_day:
                raise SceneError(
                    f"{before.name} ({_days(before)}) and {after.name} ({_days(after)}) share days",
                    expected="scenes of one place with different days",
                    fix="download periods that don't overlap",
                )
            _check_alike(after, first)
    return places


def _days(scene: Scene) -> str:
    return str(scene.day) if scene.day == scene.last_day else f"{scene.day} to {scene.last_day}"


def _check_alike(scene: Scene, first: Scene) -> None:
    if scene.bands != first.bands or scene.gsd != first.gsd:
        raise SceneError(
            f"{scene.path.name} has bands {', '.join(scene.bands)} at {scene.gsd:g} m, "
            f"{first.path.name} has {', '.join(first.bands)} at {first.gsd:g} m",
            expected="the same bands in the same order, and the same pixel size",
            fix="move them to separate folders",
        )


@contextmanager
def scene_writer(
    path: str | Path, *, geobox: GeoBox, bands: Sequence[str], item: dict[str, Any]
) -> Iterator[DatasetWriter]:
    """Yield a raster to write uint16 windows into. Scene and provenance appear together when the block succeeds.

    Args:
        bands: names in any naming scheme, in file order.
        item: the STAC item with the provenance. It may change until the block ends; it is written just before the
            scene, so that no scene exists without it.
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
