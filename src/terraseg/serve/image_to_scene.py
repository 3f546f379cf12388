"""A given image as a scene of contract 1, so that it can be mapped: bands, unit and grid as the contract wants them."""

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.warp
from odc.geo.geobox import GeoBox
from shapely.geometry import box, mapping

from terraseg.contracts.scene import ATTRIBUTION, NODATA, is_true_to_scale, pixel_on_ground, scene_writer
from terraseg.errors import SceneError
from terraseg.prepare.config import FolderOptions
from terraseg.prepare.import_files import Header, Pair, header_of, read_image

_LIKE_TRAINING = 0.1
"""Share by which pixels may be another size on the ground than those that the model knows."""


def scene_of(
    path: Path,
    output: Path,
    *,
    said: Mapping[str, Any],
    assumed: Mapping[str, Any],
    day: dt.date,
    attribution: str,
    gsd: float,
) -> Path:
    """Write an image as a scene. One on a metric grid keeps its pixels; another one is resampled (nearest) to UTM.

    The image is held in memory as a whole.

    Args:
        path: the GeoTIFF.
        output: folder of the scene, which keeps the image's name.
        said: bands, unit and nodata of it, as of `FolderOptions`; None each where it says so itself.
        assumed: likewise, of the images that the model was trained on: where neither says it.
        day: of the image.
        attribution: credit that its map carries.
        gsd: pixel size in metres that the model was trained at; an image that is resampled gets it, and must have
            about that size by itself.

    Returns:
        The scene.

    Raises:
        SceneError: unreadable, without a place, bands, unit or type that are unknown, or pixels of another size.
    """
    try:
        with rasterio.open(path) as image:
            header = header_of(path, image, _options(image, said, assumed))
    except rasterio.errors.RasterioIOError as error:
        raise SceneError(f"{path} can't be read ({error})", fix="replace the file") from error
    if not header.crs:
        raise SceneError(f"{path} has no CRS", expected="a georeferenced image")
    geobox, rule = GeoBox(header.shape, header.transform, header.crs), "none"
    keeps_its_pixels = _is_metric(header) and is_true_to_scale(geobox)
    if not keeps_its_pixels:
        _check_size(path, geobox, gsd=gsd)
    pixels = read_image(Pair(None, path.stem, path, path), header)
    limit = np.iinfo(np.uint16).max
    dn = np.where(pixels == NODATA, NODATA, np.clip(pixels, 1, limit)).astype(np.uint16)
    if not keeps_its_pixels:
        geobox, dn, rule = *_to_utm(geobox, dn, gsd=gsd), f"nearest, from {header.crs}"
    west, south, east, north = geobox.geographic_extent.boundingbox
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": path.stem,
        "geometry": mapping(box(west, south, east, north)),
        "bbox": [west, south, east, north],
        "properties": {
            "datetime": f"{day.isoformat()}T00:00:00Z",
            ATTRIBUTION: attribution,
            "terraseg:resampling_rule": rule,
        },
        "links": [],
        "assets": {},
    }
    scene = output / f"{path.stem}.tif"
    with scene_writer(scene, geobox=geobox, bands=header.bands, item=item) as target:
        target.write(dn)
    return scene


def _options(image: rasterio.DatasetReader, said: Mapping[str, Any], assumed: Mapping[str, Any]) -> FolderOptions:
    """What is said goes before what the image says, which is an error where they differ; the rest is assumed."""
    known = {
        "bands": all(image.descriptions),
        "unit": "UNIT" in image.tags(),
        "nodata": image.nodata is not None,
    }
    chosen = {
        key: said[key] if said.get(key) is not None else None if in_file else assumed.get(key)
        for key, in_file in known.items()
    }
    return FolderOptions.checked(chosen)


def _is_metric(header: Header) -> bool:
    """Whether the image lies on a north-up grid of square pixels in metres, as contract 1 wants it."""
    crs, transform = rasterio.CRS.from_string(header.crs), header.transform
    metric = crs.is_projected and crs.linear_units_factor[1] == 1
    return bool(metric and transform.b == transform.d == 0 and transform.a == -transform.e)


def _check_size(path: Path, geobox: GeoBox, *, gsd: float) -> None:
    """After the resampling nobody could tell that the image was much finer or coarser."""
    side = max(pixel_on_ground(geobox))
    if not abs(side / gsd - 1) <= _LIKE_TRAINING:
        raise SceneError(
            f"{path} has pixels of {side:.3g} m on the ground, the model was trained at {gsd:g} m",
            expected="pixel sizes within 10 %",
            fix="resample the image, or train at its resolution",
        )


def _to_utm(geobox: GeoBox, dn: npt.NDArray[np.uint16], *, gsd: float) -> tuple[GeoBox, npt.NDArray[np.uint16]]:
    extent = geobox.extent.to_crs("utm")
    target = GeoBox.from_bbox(extent.boundingbox, resolution=gsd)
    moved: npt.NDArray[np.uint16] = np.zeros((len(dn), *target.shape), dtype=np.uint16)
    rasterio.warp.reproject(
        dn,
        moved,
        src_transform=geobox.affine,
        src_crs=str(geobox.crs),
        dst_transform=target.affine,
        dst_crs=str(target.crs),
        src_nodata=NODATA,
        dst_nodata=NODATA,
        resampling=rasterio.warp.Resampling.nearest,
    )
    return target, moved
