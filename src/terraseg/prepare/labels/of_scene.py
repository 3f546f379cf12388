"""The labels of one scene: its footprints, and the ground where they are known."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely

from terraseg.contracts.footprints import FootprintSource, find_footprints, known_extent
from terraseg.contracts.scene import Scene
from terraseg.errors import LabelError
from terraseg.prepare.config import PrepareConfig
from terraseg.prepare.labels.shift import LabelShift, measure_shift

_log = logging.getLogger(__name__)

_WHOLE = 1e-6
"""Share of a scene that may lie outside the extent of labels that cover all of it: noise of reprojected coordinates."""


@dataclass(frozen=True)
class SceneLabels:
    """Footprints and their ground, in the CRS of one scene.

    Attributes:
        shapes: valid footprints that touch the scene.
        extent: area in which the footprints are known.
        cells, shares: completeness cells, and the share of the built-up area that the footprints cover there.
        shift: offset between footprints and imagery, if it was measured.
        labelled: the part of the scene whose labels are known and complete; None if that is all of it.
    """

    shapes: np.ndarray
    extent: shapely.Geometry
    cells: np.ndarray
    shares: np.ndarray
    shift: LabelShift | None
    labelled: shapely.Geometry | None


def labels_of(
    scene: Scene,
    labels: str | Path | Sequence[str | Path],
    sources: Sequence[FootprintSource],
    config: PrepareConfig,
) -> SceneLabels:
    """Labels of one scene. Reads the files again, so that memory never holds a second copy.

    Args:
        scene: the first one of its place.
        labels: footprint files or their folder.
        sources: of these files.
        config: see `PrepareConfig`.

    Raises:
        LabelError: no footprint or no labelled ground lies in the scene, or the completeness can't be read.
    """
    crs = str(scene.geobox.crs)
    frame = shapely.box(*scene.geobox.extent.boundingbox.bbox)
    extent = gpd.GeoSeries([known_extent(sources)], crs=4326).to_crs(crs).iloc[0]
    if not extent.intersects(frame):
        raise LabelError(
            f"the area of the labels does not touch the scene {scene.name}",
            fix="download scene and labels with the same --aoi",
        )
    shapes = find_footprints(labels)[0].geometry.to_crs(crs)
    inside = shapes[shapes.intersects(frame)]
    if inside.empty:
        raise LabelError(
            f"none of the {len(shapes)} footprints lies in the scene {scene.name}",
            expected=f"at least one {sources[0].class_name}",
            fix="download scene and labels with the same --aoi",
        )
    cells, shares, labelled = np.empty(0, dtype=object), np.empty(0), frame.intersection(extent)
    if config.completeness:
        table = _completeness(Path(config.completeness.path)).to_crs(crs)
        cells, shares = table.geometry.to_numpy(), table["covered_share"].to_numpy()
        if not shapely.intersects(cells, frame).any():
            raise LabelError(
                f"no cell of {config.completeness.path} lies in the scene {scene.name}",
                expected="completeness cells of this area",
                fix="use the file that `data labels` wrote for this area",
            )
        labelled = labelled.difference(shapely.union_all(cells[shares < config.completeness.least_share]))
    if not labelled.area:
        raise LabelError(
            f"no part of the scene {scene.name} has known and complete labels",
            fix="get labels of this scene, or lower prepare.completeness.least_share",
        )
    whole = frame.area - labelled.area < _WHOLE * frame.area
    polygons, shift = inside.to_numpy(copy=True), None
    broken = ~shapely.is_valid(polygons)  # only these are copied: a copy of all would be the peak of memory
    polygons[broken] = shapely.make_valid(polygons[broken])
    if config.label_shift:
        shift = measure_shift(scene, polygons)
        _log.info(
            "%s: footprints lie %.2f px to the right of the imagery and %.2f px below it%s",
            scene.name, shift.columns, shift.rows, "" if shift.clear else " (not a clear result)",
        )  # fmt: skip
        if config.label_shift == "apply":
            moved = shift.undone(np.append(polygons, extent), gsd=scene.gsd)
            polygons, extent = moved[:-1], moved[-1]
    return SceneLabels(polygons, extent, cells, shares, shift, None if whole else labelled)


def labelled_ground(scene: Scene, labelled: shapely.Geometry) -> dict[str, float]:
    """Area in km2, and share of the scene, as they are in audit.json."""
    share = labelled.area / shapely.box(*scene.geobox.extent.boundingbox.bbox).area
    _log.info(
        "%s: %.1f km2 have labels, %.0f %% of the scene; the rest is unknown and not used",
        scene.name, labelled.area / 1e6, 100 * share,
    )  # fmt: skip
    return {"km2": labelled.area / 1e6, "share": share}


def _completeness(path: Path) -> gpd.GeoDataFrame:
    """Read the completeness cells that `data labels` wrote.

    Raises:
        LabelError: the file is missing or is not a table of cells.
    """
    if not path.is_file():
        raise LabelError(f"no completeness table at {path}", fix="make it with `data labels`, or remove the key")
    try:
        table = gpd.read_parquet(path, columns=["covered_share", "geometry"])
    except (ValueError, OSError) as error:
        raise LabelError(
            f"{path} can't be read as a completeness table ({error})",
            expected="GeoParquet of cells with the column covered_share",
            fix="make it with `data labels`, or remove the key",
        ) from error
    return table
