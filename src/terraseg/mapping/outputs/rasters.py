"""Write the rasters and polygons of a product from finished strips, row by row, while others are still predicted."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import numpy as np
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from terraseg.contracts.product import Product
from terraseg.core.machine.memory import give_freed_memory_back
from terraseg.core.raster import CogDraft, CogOptions, cog_draft
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
    layers: Mapping[Layer, CogOptions],
    outline: Callable[[Iterator[Rows]], int],
) -> Iterator[Future[int]]:
    """Write the product's files in the background while the block predicts the strips; they appear when it ends.

    If the block fails, no file appears, and the strips stay.

    Args:
        product: where to.
        strips: finished strips; this process or others may still add some.
        grid: the windows of the scene.
        layers: the rasters, at least `PROBABILITY` and `MASK`, and how each COG is written, see `Layer.cog`.
        outline: makes the polygons of all rows and returns their count.

    Yields:
        The count of polygons, once they are made.

    Raises:
        OutputError: the disk is full.
    """
    over, given_up = threading.Event(), threading.Event()
    rows = partial(_complete_rows, strips, grid=grid, layers=list(layers), over=over, given_up=given_up)
    with ExitStack() as stack:
        drafts = {layer: stack.enter_context(cog_draft(layer.path(product), **cog)) for layer, cog in layers.items()}
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
        with explain_full_disk(product, kept="the finished part is kept"):
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
    """Yield the rows from the top down, each as its parts of all panels, as soon as all panels have finished it.

    The rows end only when the prediction is over, with an error if it was given up: it may have failed after its last
    strip.
    """
    if len(grid.panels) > 1:  # only the last panel completes rows: writing meanwhile would just take memory
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
    """Mask and probability of some rows, across all panels."""
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
        list(pool.map(CogDraft.finish, drafts.values()))  # raises their errors


@contextmanager
def explain_full_disk(product: Product, *, kept: str) -> Iterator[None]:
    """Turn a failed write of rasters in the block into an error that helps the user.

    Args:
        product: its rasters are written.
        kept: what the user keeps, as a sentence.

    Raises:
        OutputError: the write failed.
    """
    try:
        yield
    except RasterioIOError as error:  # GDAL gives no reason
        raise OutputError(
            f"the rasters of {product.root} can't be written ({error.__cause__ or error})",
            fix=f"free some space and run the same command again; {kept}",
        ) from error
