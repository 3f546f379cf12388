"""The share of built-up land that the labels cover, per cell: where it is low, the source map is incomplete."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.features
import rasterio.warp
import shapely
from odc.geo.geobox import GeoBox

from terraseg.acquire.aoi import AOI, GSD
from terraseg.acquire.config import BuiltUpRaster, CompletenessConfig
from terraseg.acquire.footprints.cleaning import clean_footprints
from terraseg.acquire.footprints.sources import read_source
from terraseg.core.files import atomic_path
from terraseg.errors import LabelError

_log = logging.getLogger(__name__)

COMPLETENESS_FOLDER = "completeness"
"""Folder next to the footprints, with one file per AOI, named like the footprints."""

_Mask = npt.NDArray[np.bool_]


def write_completeness(path: Path, *, area: AOI, footprints: gpd.GeoDataFrame, config: CompletenessConfig) -> None:
    """Write GeoParquet: geometry (cell, EPSG:4326), built_up_area_m2 (float64), covered_share (float64, 0 to 1).

    Only cells that intersect the AOI are listed, and only their part inside the AOI is measured. The share of a cell
    without built-up land is 1. Labels and reference are compared on the 10 m grid, one strip of cells at a time.

    Args:
        footprints: the labels, EPSG:4326.

    Raises:
        LabelError: the reference can't be read, has no footprint in the AOI, or does not cover the AOI.
    """
    crs = area.geobox.crs
    labels = gpd.GeoSeries(footprints.geometry.to_numpy(), crs=4326).to_crs(str(crs)).buffer(config.reach, quad_segs=2)
    built_up = _built_up_reader(area, config)
    land = gpd.GeoSeries([area.geometry], crs=4326).to_crs(str(crs))
    step = config.cell // GSD
    height, width = area.geobox.shape
    cells, built_areas, shares = [], [], []
    for top in range(0, height, step):
        strip = area.geobox[top : min(top + step, height), :]
        inside = _burn(land, strip)
        built = built_up(strip) & inside
        covered = built & _burn(labels, strip)
        for left in range(0, width, step):
            columns = slice(left, min(left + step, width))
            if not inside[:, columns].any():
                continue
            total = int(built[:, columns].sum())
            cells.append(strip[:, columns].extent.to_crs("EPSG:4326").geom)
            built_areas.append(float(total * GSD * GSD))
            shares.append(float(covered[:, columns].sum() / total) if total else 1.0)
    table = gpd.GeoDataFrame({"built_up_area_m2": built_areas, "covered_share": shares}, geometry=cells, crs=4326)
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)
    weights = np.asarray(built_areas)
    overall = float(np.average(shares, weights=weights)) if weights.any() else 1.0
    _log.info("the labels cover %.0f %% of the built-up land; %d cells in %s", 100 * overall, len(table), path)


def _built_up_reader(area: AOI, config: CompletenessConfig) -> Callable[[GeoBox], _Mask]:
    """A function that finds the built-up pixels of a strip."""
    if isinstance(config.reference, BuiltUpRaster):
        return partial(_built_up, config.reference)
    raw, _ = read_source(config.reference, area=area.geometry, tags={}, class_name="building")
    clean, _ = clean_footprints(raw)
    if clean.empty:
        raise LabelError("the reference has no footprint in the AOI", fix="choose another completeness.reference")
    return partial(_burn, gpd.GeoSeries(clean.geometry.to_numpy(), crs=4326).to_crs(str(area.geobox.crs)))


def _burn(shapes: gpd.GeoSeries, geobox: GeoBox) -> _Mask:
    """Pixels whose centre lies inside one of the shapes."""
    near = shapes.iloc[shapes.sindex.query(shapely.box(*geobox.boundingbox))]
    if near.empty:
        return np.zeros(geobox.shape, bool)
    burnt = rasterio.features.rasterize(near, out_shape=geobox.shape, transform=geobox.affine, dtype="uint8")
    return np.asarray(burnt > 0)


def _built_up(reference: BuiltUpRaster, geobox: GeoBox) -> _Mask:
    try:
        with rasterio.open(reference.path) as source:
            wanted = rasterio.warp.transform_bounds(str(geobox.crs), source.crs, *geobox.boundingbox)
            if not shapely.box(*source.bounds).buffer(max(source.res)).covers(shapely.box(*wanted)):
                raise LabelError(
                    f"the built-up raster {reference.path} does not cover the whole AOI",
                    fix="use a raster of the whole area",
                )
            values = np.zeros(geobox.shape, source.dtypes[0])
            rasterio.warp.reproject(
                rasterio.band(source, 1),
                values,
                dst_transform=geobox.affine,
                dst_crs=str(geobox.crs),
                resampling=rasterio.warp.Resampling.nearest,
            )
            known = values != source.nodata if source.nodata is not None else np.ones(geobox.shape, bool)
    except rasterio.errors.RasterioError as error:
        raise LabelError(f"the built-up raster {reference.path} can't be read ({error})") from error
    built: _Mask = np.isin(values, reference.classes) if reference.above is None else values > reference.above
    return np.asarray(built & known)
