"""Finished strips to a product's rasters and polygons, row by row, while other strips are still predicted."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from terraseg.errors import OutputError
from terraseg.mapping.layers import MASK, PROBABILITY, Layer, Pixels
from terraseg.mapping.polygons import Rows
from terraseg.mapping.scratch import FinishedStrips
from terraseg.mapping.windows import WindowGrid
from terraseg.products import Product
from terraseg.raster import CogDraft, cog_draft


@contextmanager
def finishing(
    product: Product,
    strips: FinishedStrips,
    *,
    grid: WindowGrid,
    geobox: GeoBox,
    layers: Mapping[Layer, str],
    tags: Mapping[str, Any],
    outline: Callable[[Iterator[Rows]], int],
) -> Iterator[Future[int]]:
    """Write the product's files behind the block, which is to have all strips predicted; they appear when it ends.

    Where the block fails, no file appears, and the strips stay.

    Args:
        strips: some or all of which are yet to come, from this process or another.
        layers: the rasters, at least `PROBABILITY` and `MASK`, each with its description.
        tags: of all rasters.
        outline: makes the polygons of all rows and returns their count.

    Yields:
        The count, once all polygons are made.

    Raises:
        OutputError: the disk is full.
    """
    given_up = threading.Event()
    rows = partial(_complete_rows, strips, grid=grid, layers=list(layers), given_up=given_up)
    with ExitStack() as stack:
        drafts = {
            layer: stack.enter_context(
                cog_draft(
                    layer.path(product),
                    geobox=geobox,
                    dtype=layer.dtype,
                    nodata=layer.nodata,
                    bands=[title],
                    overviews=layer.overviews,
                    scale=layer.scale,
                    tags=tags,
                )
            )
            for layer, title in layers.items()
        }
        followers = stack.enter_context(ThreadPoolExecutor(2, "finish"))
        stack.callback(given_up.set)
        with _full_disk_named(product):
            rasters = followers.submit(_write_rasters, rows(), drafts)
            masks = (cast("Rows", (layers[MASK], layers[PROBABILITY])) for layers in rows())
            count = followers.submit(outline, masks)
            yield count
            rasters.result()
            count.result()


def _complete_rows(
    strips: FinishedStrips, *, grid: WindowGrid, layers: Sequence[Layer], given_up: threading.Event
) -> Iterator[dict[Layer, Pixels]]:
    """The rows that all panels have finished, from the top down, as soon as they are there."""
    for row in range(len(grid.rows.offsets)):
        across = [
            strips.wait_for(grid.strip(panel, row), layers=len(layers), given_up=given_up)
            for panel in range(len(grid.panels))
        ]
        yield dict(zip(layers, map(np.hstack, zip(*across, strict=True)), strict=True))


def _write_rasters(rows: Iterable[Mapping[Layer, Pixels]], drafts: Mapping[Layer, CogDraft]) -> None:
    with ExitStack() as stack:
        targets = {layer: stack.enter_context(draft.writing()) for layer, draft in drafts.items()}
        top = 0
        for layers in rows:
            for layer, pixels in layers.items():
                height, width = pixels.shape
                targets[layer].write(pixels, 1, window=Window(0, top, width, height))
            top += height
    with ThreadPoolExecutor(len(drafts), "cog") as pool:
        for cog in [pool.submit(draft.finish) for draft in drafts.values()]:
            cog.result()


@contextmanager
def _full_disk_named(product: Product) -> Iterator[None]:
    try:
        yield
    except RasterioIOError as error:  # GDAL does not say more
        raise OutputError(
            f"the rasters of {product.root} can't be written ({error.__cause__ or error})",
            fix="free some space and run the same command again; what was finished is kept",
        ) from error
