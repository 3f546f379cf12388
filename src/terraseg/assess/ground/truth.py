"""Open ground truth: the chips of a dataset, a mask raster, or polygons."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import rasterio.features
import shapely
import shapely.geometry

from terraseg.assess.ground.chip_truth import ChipTruth, chip_truth, chips
from terraseg.assess.ground.file_truth import DEFAULT_CELL, PolygonTruth, RasterTruth, polygon_truth
from terraseg.assess.ground.pairs import (
    Truth,
)
from terraseg.contracts.dataset import SPLITS, ChipDataset, open_dataset
from terraseg.core.polygons import split_layer
from terraseg.errors import DatasetError, LabelError


def open_truth(
    path: str | Path, *, split: str, cell: int | None = None, class_name: str | None = None, class_id: int = 1
) -> Truth:
    """Open ground truth.

    Args:
        path: a dataset (its root, the folder of a split, or its masks), a mask GeoTIFF, or polygons, as ``FILE`` or
            ``FILE:LAYER``.
        split: the chips of a dataset to score.
        cell: side of a cell in pixels; the chip size by default. If given, cells do not grow to independent units.
        class_name: the class to score; by default class 1 of a dataset, or the class of the polygons.
        class_id: its id in a mask GeoTIFF, the same as in the prediction's mask.

    Raises:
        DatasetError, LabelError: no such truth, split or class.
    """
    path = Path(path)
    for root in (path, path.parent, path.parent.parent):
        if path.is_dir() and (root / "dataset.yaml").is_file():
            part = path.relative_to(root).parts[:1]
            if part and part[0] in SPLITS and part[0] != split:
                raise DatasetError(
                    f"{path} is the {part[0]} split", expected=f"the {split} split", fix="correct --split or the path"
                )
            return chip_truth(open_dataset(root), split=split, cell=cell, class_name=class_name)
    if not split_layer(path)[0].exists():
        raise LabelError(f"no ground truth at {path}", fix="correct the path in --ground-truth")
    if path.suffix.lower() in {".tif", ".tiff"}:
        return RasterTruth(
            path=path,
            class_name=class_name or f"class {class_id}",
            positive=class_id,
            label_rule=f"pixels of {path.name}" + f" with the id {class_id}" * (class_id != 1),
            cell=cell or DEFAULT_CELL,
            cell_given=cell is not None,
        )
    return polygon_truth(path, cell=cell, class_name=class_name, option="--ground-truth")


def without_training_ground(truth: Truth, dataset: ChipDataset) -> Truth:
    """The same mask or polygons, unknown at the train and val chips of a dataset and within its gap of them.

    Raises:
        DatasetError: chips without coordinates.
    """
    seen = dataset.tiles[dataset.tiles["split"] != "test"]
    shapes = seen.geometry.to_numpy()
    if shapely.is_missing(shapes).any() or shapely.is_empty(shapes).any():
        raise DatasetError(
            f"{dataset.root} has chips without coordinates, so its training ground is unknown",
            fix="drop --dataset; the result then says that training ground may be included",
        )
    grown = shapely.buffer(shapes, float(dataset.info.split_rule.get("gap_m") or 0.0))
    ground = gpd.GeoSeries([shapely.union_all(grown)], crs=seen.crs)
    rule = f"{truth.label_rule}, outside the training ground of {dataset.root.name}"
    if isinstance(truth, PolygonTruth):
        extent = truth.extent.difference(ground.to_crs(truth.polygons.crs).iloc[0])
        return replace(truth, extent=extent, label_rule=rule)
    return replace(cast("RasterTruth", truth), training=ground, label_rule=rule)


def footprints_in(truth: ChipTruth, path: Path) -> PolygonTruth:
    """Footprints on the known ground of a split, for object metrics there.

    Raises:
        LabelError: no such footprints.
    """
    polygons = polygon_truth(path, cell=truth.cell, class_name=truth.class_name, option="--footprints")
    known = []
    for scene in truth.scenes:
        for chip in chips(truth.dataset, split=truth.split, scene=scene):
            seen = (chip.truth >= 0).astype(np.uint8)
            parts = rasterio.features.shapes(seen, seen == 1, transform=chip.transform)
            shapes = [shapely.geometry.shape(part) for part, _ in parts]
            known.append(gpd.GeoSeries(shapes, crs=chip.crs).to_crs(polygons.polygons.crs))
    extent = polygons.extent.intersection(pd.concat(known).union_all())
    if not extent.area:
        raise LabelError(
            f"{path} lies outside the known ground of the {truth.split} split of {truth.dataset.root}",
            expected="footprints of the ground of the dataset",
            fix="correct --footprints",
        )
    return replace(polygons, extent=extent, ground=truth)
