"""How complete the labels are, per cell: their area compared with that of a reference.

Areas are compared, and not places near a label, because in a dense town every place is near one: half of its buildings
would count as all of them.
"""

import logging
from collections.abc import Callable
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

_FINER = 5
"""Side of a 10 m pixel in pixels of the grid on which areas are measured."""

_BEST = 0.9
"""Quantile of the built-up land, by the share under labels, above which it counts as completely mapped."""

_Mask = npt.NDArray[np.bool_]
_Areas = npt.NDArray[np.float64]


def write_completeness(path: Path, *, area: AOI, footprints: gpd.GeoDataFrame, config: CompletenessConfig) -> None:
    """Write GeoParquet with one row per cell that intersects the AOI; only its part inside the AOI is measured.

    Columns: geometry (EPSG:4326), built_up_area_m2 (of the reference), label_area_m2 (of the labels on it), and
    covered_share (float64, 0 to 1): the area of the labels as a share of the area of the reference. Built-up land of a
    raster is more than buildings, so there a share of 1 is that of the best-mapped cells (`_full_share`). The share of
    a cell without built-up land is 1. Areas are measured on a grid of 2 m, one strip of cells at a time.

    Args:
        footprints: the labels, EPSG:4326.

    Raises:
        LabelError: the reference can't be read, has no footprint in the AOI, or does not cover the AOI.
    """
    crs = area.geobox.crs
    labels = gpd.GeoSeries(footprints.geometry.to_numpy(), crs=4326).to_crs(str(crs))
    reference = _reference(area, config)
    land = gpd.GeoSeries([area.geometry], crs=4326).to_crs(str(crs))
    step = config.cell // GSD
    height, width = area.geobox.shape
    cells: list[shapely.Geometry] = []
    areas: list[tuple[int, int]] = []
    for top in range(0, height, step):
        strip = area.geobox[top : min(top + step, height), :]
        fine = strip.zoom_out(1 / _FINER)
        inside = _burn(land, fine)
        built, near = (mask & inside for mask in reference(fine))
        mapped = _burn(labels, fine) & near
        for left in range(0, width, step):
            columns = slice(left * _FINER, min(left + step, width) * _FINER)
            if inside[:, columns].any():
                cells.append(strip[:, left : min(left + step, width)].extent.to_crs("EPSG:4326").geom)
                areas.append((int(built[:, columns].sum()), int(mapped[:, columns].sum())))
    built_up, labelled = np.array(areas).T * (GSD / _FINER) ** 2
    ratio = np.divide(labelled, built_up, out=np.ones_like(built_up), where=built_up > 0)
    full = _full_share(ratio, built_up, config)
    shares = np.where(built_up > 0, np.minimum(ratio / full, 1.0), 1.0)
    table = gpd.GeoDataFrame(
        {"built_up_area_m2": built_up, "label_area_m2": labelled, "covered_share": shares}, geometry=cells, crs=4326
    )
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)
    overall = float(np.average(shares, weights=built_up)) if built_up.any() else 1.0
    _log.info("the labels cover %.0f %% of the built-up land; %d cells in %s", 100 * overall, len(table), path)


def _full_share(ratio: _Areas, built_up: _Areas, config: CompletenessConfig) -> float:
    """The area of complete labels as a share of the reference's: 1 for footprints.

    For a raster it is ``full_share``, or that of the best-mapped tenth of the built-up land that has labels. This can't
    show labels that are equally incomplete everywhere.
    """
    if not isinstance(config.reference, BuiltUpRaster):
        return 1.0
    if config.reference.full_share is not None:
        return config.reference.full_share
    with_labels = (built_up > 0) & (ratio > 0)
    if not with_labels.any():
        return 1.0
    full = float(np.quantile(ratio[with_labels], _BEST, weights=built_up[with_labels], method="inverted_cdf"))
    _log.info("labels cover %.0f %% of the built-up land in the best-mapped cells; this counts as complete", 100 * full)
    return full


def _reference(area: AOI, config: CompletenessConfig) -> Callable[[GeoBox], tuple[_Mask, _Mask]]:
    """A function that finds, for a grid, the built-up pixels and the pixels where labels count."""
    if isinstance(config.reference, BuiltUpRaster):
        raster = config.reference
        return lambda grid: (_built_up(raster, grid),) * 2
    raw, _ = read_source(config.reference, area=area.geometry, tags={}, class_name="building")
    clean, _ = clean_footprints(raw)
    if clean.empty:
        raise LabelError("the reference has no footprint in the AOI", fix="choose another completeness.reference")
    shapes = gpd.GeoSeries(clean.geometry.to_numpy(), crs=4326).to_crs(str(area.geobox.crs))
    wide = shapes.buffer(config.reach, quad_segs=2)
    return lambda grid: (_burn(shapes, grid), _burn(wide, grid))


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
