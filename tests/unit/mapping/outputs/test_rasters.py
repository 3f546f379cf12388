"""A product's files are written behind its prediction: when they appear, and when they don't."""

import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from helpers.predictors import NumpyPredictor
from terraseg.contracts.product import Product
from terraseg.core.windows import WindowAxis
from terraseg.errors import SceneError
from terraseg.mapping.outputs.layers import MASK, PROBABILITY
from terraseg.mapping.outputs.polygons import vectorise
from terraseg.mapping.outputs.rasters import finishing
from terraseg.mapping.windows.finished_strips import FinishedStrips
from terraseg.mapping.windows.grid import WindowGrid

SIDE = 64


def finish(product: Product, *, strips: int, fault: Exception | None = None) -> set[str]:
    """Finish a product of which so many strips are there, in a block that fails or not; what is there when it ends."""
    axis = WindowAxis(SIDE, 32, 8)
    grid = WindowGrid(axis, axis)
    geobox = GeoBox((SIDE, SIDE), Affine(10, 0, 5e5, 0, -10, 4e6), "EPSG:32631")
    kept = FinishedStrips(product.root, fingerprint="x", count=grid.strips)
    for strip in range(strips):
        (top, end), (left, right) = grid.pixels(strip)
        pixels = np.ones((end - top, right - left), np.uint8)
        kept.write(strip, [200 * pixels, pixels])
    outline = partial(
        vectorise, output=product, geobox=geobox, simplify_m=0.0, min_area_m2=0.0, attribution="a", model_licence="b"
    )
    layers = {layer: layer.cog(NumpyPredictor(), geobox=geobox, tags={}) for layer in (PROBABILITY, MASK)}
    with finishing(product, kept, grid=grid, layers=layers, outline=outline) as count:
        time.sleep(0.3)  # the files could be complete by then
        there = files(product)
        if fault is not None:
            raise fault
    assert count.result() == 1
    return there


def files(product: Product) -> set[str]:
    return {path.name for path in product.root.glob("[!.]*")}


def test_all_files_appear_when_the_block_ends_and_none_before(tmp_path: Path) -> None:
    product = Product(tmp_path, "building")
    assert finish(product, strips=3) == set()
    expected = (product.mask, product.probability, product.polygons, product.geopackage)
    assert files(product) == {path.name for path in expected}


@pytest.mark.parametrize("strips", [2, 3])
def test_no_file_appears_where_the_block_fails_even_after_its_last_strip(tmp_path: Path, strips: int) -> None:
    product = Product(tmp_path, "building")
    with pytest.raises(SceneError, match="has changed"):
        finish(product, strips=strips, fault=SceneError("x.tif has changed while it was read"))
    assert files(product) == set()
    assert [run.start for run in FinishedStrips(tmp_path, fingerprint="x", count=3).missing()] == [2][: 3 - strips]
