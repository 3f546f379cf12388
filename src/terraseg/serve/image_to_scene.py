"""Convert an image to a scene, so that it can be mapped."""

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
"""Largest relative difference between the pixel size of an image and that of the training images."""


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
    """Write an image as a scene. Images on a metric grid keep their pixels; others are resampled (nearest) to UTM.

    The whole image is held in memory.

    Args:
        path: the GeoTIFF.
        output: folder of the scene, which keeps the image's name.
        said: bands, unit and nodata from the request, see `FolderOptions`; None if the image declares them.
        assumed: the same for the training images, used if neither the request nor the image has a value.
        day: date of the image.
        attribution: credit line for the map.
        gsd: pixel size in metres of the training images. A resampled image gets this pixel size, and its own pixel size
            must be similar.

    Returns:
        The scene.

    Raises:
        SceneError: the image can't be read, has no CRS, has unknown bands, unit or type, or another pixel size.
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
    """Values of the request, then of the image, then assumed ones; request and image must not differ."""
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
    """Whether the image has a north-up grid of square pixels in metres, as a scene needs it."""
    crs, transform = rasterio.CRS.from_string(header.crs), header.transform
    metric = crs.is_projected and crs.linear_units_factor[1] == 1
    return bool(metric and transform.b == transform.d == 0 and transform.a == -transform.e)


def _check_size(path: Path, geobox: GeoBox, *, gsd: float) -> None:
    """Check the pixel size: after resampling, a wrong one could not be seen any more."""
    side = max(pixel_on_ground(geobox))
    if not abs(side / gsd - 1) <= _LIKE_TRAINING:
        raise SceneError(
            f"{path} has pixels of {side:.3g} m on the ground, but the model was trained at {gsd:g} m",
            expected="a difference of at most 10 %",
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
