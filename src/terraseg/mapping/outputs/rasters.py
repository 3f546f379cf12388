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

from terraseg.contracts.product import Product
from terraseg.core.memory import give_freed_memory_back
from terraseg.core.raster import CogDraft, cog_draft
from terraseg.errors import OutputError
from terraseg.mapping.outputs.layers import MASK, PROBABILITY, Layer, Pixels
from terraseg.mapping.outputs.polygons import Rows
from terraseg.mapping.windows.finished_strips import FinishedStrips
from terraseg.mapping.windows.grid import WindowGrid


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
    over, given_up = threading.Event(), threading.Event()
    rows = partial(_complete_rows, strips, grid=grid, layers=list(layers), over=over, given_up=given_up)
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
        try:
            rasters = followers.submit(_write_rasters, rows(), drafts)
            count = followers.submit(outline, (_outlined(parts) for parts in rows()))
            yield count
        except BaseException:
            given_up.set()
            raise
        finally:
            over.set()
        give_freed_memory_back()
        with full_disk_named(product, kept="what was finished is kept"):
            rasters.result()
        count.result()


def _complete_rows(
    strips: FinishedStrips,
    *,
    grid: WindowGrid,
    layers: Sequence[Layer],
    over: threading.Event,
    given_up: threading.Event,
) -> Iterator[list[dict[Layer, Pixels]]]:
    """The rows that all panels have finished, from the top down, as soon as they are there: the part of each panel.

    They come to an end only once the prediction is over, and with an error where it was given up: it may have failed
    though each strip is there.
    """
    if len(grid.panels) > 1:  # rows are complete with the last panel only: not worth the memory of both at a time
        strips.wait_for(grid.strips - 1, over=over)
    for row in range(len(grid.rows.offsets)):
        parts = []
        for panel in range(len(grid.panels)):
            strip = grid.strip(panel, row)
            strips.wait_for(strip, over=over)
            parts.append(dict(zip(layers, strips.read(strip, layers=len(layers)), strict=True)))
        yield parts
    over.wait()
    if given_up.is_set():
        raise InterruptedError("the prediction was given up")


def _outlined(parts: list[dict[Layer, Pixels]]) -> Rows:
    """What polygons are made of, across all panels."""
    mask, probability = (np.hstack([part[layer] for part in parts]) for layer in (MASK, PROBABILITY))
    return cast("Rows", (mask, probability))


def _write_rasters(rows: Iterable[list[dict[Layer, Pixels]]], drafts: Mapping[Layer, CogDraft]) -> None:
    with ExitStack() as stack:
        targets = {layer: stack.enter_context(draft.writing()) for layer, draft in drafts.items()}
        top = 0
        for parts in rows:
            left = 0
            for part in parts:
                for layer, pixels in part.items():
                    height, width = pixels.shape
                    targets[layer].write(pixels, 1, window=Window(left, top, width, height))
                left += width
            top += height
    with ThreadPoolExecutor(len(drafts), "cog") as pool:
        for cog in [pool.submit(draft.finish) for draft in drafts.values()]:
            cog.result()


@contextmanager
def full_disk_named(product: Product, *, kept: str) -> Iterator[None]:
    """Say of a failed write of rasters in the block what it means for the user, and what is kept."""
    try:
        yield
    except RasterioIOError as error:  # GDAL does not say more
        raise OutputError(
            f"the rasters of {product.root} can't be written ({error.__cause__ or error})",
            fix=f"free some space and run the same command again; {kept}",
        ) from error
