"""A scene on a finer pixel grid, interpolated while it is read: a map finer than its images.

Nothing is copied: GDAL warps the window that is asked for. Interpolation adds no information, but a model that works on
the finer grid can place an edge inside a pixel of the image, as its blur over several pixels shows where it is.
"""

from dataclasses import replace
from pathlib import Path

import rasterio
import rasterio.shutil
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from terraseg.contracts.scene import NODATA, Place, Scene
from terraseg.errors import SceneError

_WHOLE = 1e-3
"""Largest distance of the ratio of two pixel sizes from a whole number."""


def finer_place(place: Place, *, gsd: float, folder: Path) -> Place:
    """All dates of a place on a finer grid, see `finer_scene`."""
    return tuple(finer_scene(scene, gsd=gsd, folder=folder / str(number)) for number, scene in enumerate(place))


def finer_scene(scene: Scene, *, gsd: float, folder: Path) -> Scene:
    """The scene on pixels of ``gsd``, bilinear; the scene itself if it has this size.

    Args:
        scene: its pixels are a whole multiple of the finer ones.
        gsd: pixel size in metres.
        folder: for the VRT; the scene can be read as long as it exists.

    Raises:
        SceneError: ``gsd`` does not divide the scene's pixel size.
    """
    factor = round(scene.gsd / gsd)
    if factor < 1 or abs(scene.gsd / gsd - factor) > _WHOLE:
        raise SceneError(
            f"{scene.path} has pixels of {scene.gsd:g} m, which can't be divided into pixels of {gsd:g} m",
            expected=f"{scene.gsd:g} m, or a half, a third, a quarter ... of it",
        )
    if factor == 1:
        return scene
    rows, columns = scene.geobox.shape
    grid = GeoBox((rows * factor, columns * factor), scene.geobox.affine @ Affine.scale(1 / factor), scene.geobox.crs)
    path = folder / f"{scene.name}.vrt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_warped(path, scene.path, grid, Resampling.bilinear)
    origin = {"rel": "self", "href": str(scene.path.with_suffix(".json").resolve())}
    links = scene.item.get("links") or []
    own = [] if any(link.get("rel") == "self" for link in links) else [origin]
    return replace(scene, path=path, geobox=grid, item={**scene.item, "links": [*own, *links]})


def write_warped(path: Path, source: str | Path, grid: GeoBox, resampling: Resampling) -> None:
    """Write a VRT that interpolates a raster of DN on another grid.

    It interpolates in blocks of its own: the interpolation of a plain VRT depends on where a window begins, and a
    resumed run begins elsewhere.
    """
    with (
        rasterio.open(source) as raster,
        WarpedVRT(
            raster, crs=raster.crs, transform=grid.affine, height=grid.shape.y, width=grid.shape.x,
            resampling=resampling, src_nodata=NODATA, nodata=NODATA,
        ) as warped,
    ):  # fmt: skip
        rasterio.shutil.copy(warped, path, driver="VRT")
