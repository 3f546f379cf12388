"""Shares of a finished map: share.tif and cells.parquet, and their entries in its STAC item."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import pystac
import rasterio

from terraseg.contracts.bundle import SHARE_TARGET, BundleInfo
from terraseg.contracts.product import Product
from terraseg.contracts.scene import ATTRIBUTION, Place
from terraseg.contracts.share_interval import LEAST_CELLS, ShareInterval
from terraseg.core.files import output_lock, write_json
from terraseg.core.raster import GDAL_CACHE
from terraseg.errors import ConfigError
from terraseg.mapping.outputs.cell_table import write_cells
from terraseg.mapping.outputs.share_raster import pixels_per_share, write_share

_log = logging.getLogger(__name__)

_CELLS = "terraseg:cells"
_PARQUET = "application/vnd.apache.parquet"


def check_shares(places: Sequence[Place], model: BundleInfo, *, share: bool, cells: int | None) -> None:
    """Check that maps of these places can have shares, before they are made.

    Raises:
        ConfigError: the model's probability is not a share and has no finer pixels to average; or cells that are
            smaller than two pixels.
    """
    if (share or cells is not None) and len(model.classes) > 2:
        raise ConfigError(
            f"{model.experiment} maps {len(model.classes)} classes: its map has no shares",
            expected="a model of two classes",
            fix="leave --share and --cells out",
        )
    for place in places:
        gsd = place[0].gsd
        if share and model.target != SHARE_TARGET and pixels_per_share(gsd) == 1:
            raise ConfigError(
                f"{model.experiment} was trained on classes at {gsd:g} m: its probability is not the covered share",
                expected="a model of shares, or of classes on a finer grid",
                fix="train with the loss share (configs/buildings_unet.yaml), or leave --share out",
            )
        if cells is not None and cells < 2 * gsd:
            raise ConfigError(f"cells of {cells} m with pixels of {gsd:g} m", expected=f"at least {2 * gsd:g} m")


def add_shares(product: Product, *, share: bool, cells: int | None) -> None:
    """Write share.tif and cells.parquet of a finished product, unless it has them already.

    Args:
        product: finished.
        share: whether to write share.tif.
        cells: side of the cells in metres; None: no cells.

    Raises:
        OutputError: the disk is full, the folder can't be written, or another run writes it.
    """
    with output_lock(product.root), rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
        item: dict[str, Any] = json.loads(product.item.read_text(encoding="utf-8"))
        properties, assets = item["properties"], item["assets"]
        class_name, attribution = properties["terraseg:class"], properties[ATTRIBUTION]
        licence = properties["terraseg:model_licence"]
        if share and not ("share" in assets and product.share.is_file()):
            title = f"Share of the pixel that {class_name} covers, DN / 250, nodata 255"
            tags = {"CLASS": class_name, "ATTRIBUTION": attribution, "MODEL_LICENCE": licence}
            write_share(product, gsd=properties["gsd"], title=title, tags=tags)
            assets["share"] = _asset(product.share.name, title, pystac.MediaType.COG)
        has_cells = product.cells.is_file() and properties.get(_CELLS, {}).get("metres") == cells
        if cells is not None and not has_cells:
            known = properties.get("terraseg:model", {}).get("share_intervals") or ()
            interval, why_not = _interval([ShareInterval.model_validate(each) for each in known], cells)
            if why_not:
                _log.warning("%s has no interval: %s", product.cells, why_not)
            metadata = {"class": class_name, "attribution": attribution, "model_licence": licence}
            count = write_cells(product, metres=cells, interval=interval, why_not=why_not, metadata=metadata)
            properties[_CELLS] = {"metres": cells, "count": count, "no_interval": why_not}
            assets["cells"] = _asset(product.cells.name, f"Area of {class_name} in cells of {cells} m", _PARQUET)
        write_json(product.item, item)


def _interval(known: Sequence[ShareInterval], metres: int) -> tuple[ShareInterval | None, str]:
    """The interval of cells of this size; or None, and why not."""
    by_size = {interval.metres: interval for interval in known}
    found = by_size.get(metres)
    if found is None:
        sizes = ", ".join(f"{size:g}" for size in by_size)
        return None, f"the bundle has errors of cells of {sizes} m" if sizes else "the bundle has no errors of cells"
    if found.quantile is None:
        return None, f"validation has {found.cells} cells of {metres} m, an interval needs {LEAST_CELLS}"
    return found, ""


def _asset(name: str, title: str, kind: str) -> dict[str, Any]:
    return pystac.Asset(href=f"./{name}", title=title, media_type=kind, roles=["data"]).to_dict()
