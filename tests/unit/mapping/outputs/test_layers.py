"""One table of output layers: a layer that is added to it reaches the files, the STAC item and the mosaic."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pystac
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from helpers.factories import make_scene
from helpers.predictors import NumpyPredictor, from_neighbours
from terraseg.contracts.product import Product, threshold_level
from terraseg.errors import ConfigError
from terraseg.mapping.mosaic import mosaic_products
from terraseg.mapping.outputs import layers
from terraseg.mapping.outputs.layers import LAYERS, Layer
from terraseg.mapping.scene import predict_scene
from terraseg.mapping.windows.blend import FinishedStrip


def distance(probability: npt.NDArray[np.float32], threshold: float, class_id: int) -> npt.NDArray[np.generic]:
    pixels: npt.NDArray[np.generic] = np.rint(class_id * (probability - threshold) * 100)
    return pixels


TOY = Layer(
    name="distance",
    title="Distance of {class_name} (class {class_id}) from the threshold, nodata {nodata}",
    dtype="int16",
    nodata=-999,
    scale=0.01,
    overviews="average",
    encode=distance,
    optional=True,
)


def predict(folder: Path, **optional: bool) -> Product:
    scene = make_scene(folder / "raw", (70, 90))
    options = {"crop": 32, "overlap": 8, "batch_size": 3, "threshold": 0.5}
    predictor = NumpyPredictor(from_neighbours)
    product = predict_scene(scene, predictor, folder / "out", **options, progress=False, **optional)
    return mosaic_products([((scene,), product)], predictor, folder / "out", rule="date", threshold=0.5)[0]


@pytest.mark.parametrize("threshold", [0.5, 0.162, 0.1, 0.997, 0.0301])
def test_the_mask_holds_the_pixels_that_metrics_count_as_mapped(threshold: float) -> None:
    # Before, metrics at 0.5 took a probability of 0.499, which its raster rounds to 0.500, and the mask did not.
    near = threshold + np.linspace(-0.006, 0.006, 97, dtype=np.float32)[None].clip(-threshold, 1 - threshold)
    strip = FinishedStrip(0, near, np.ones(near.shape, bool))
    probability, mask = layers.encode(strip, layers=[layers.PROBABILITY, layers.MASK], threshold=threshold, class_id=2)
    np.testing.assert_array_equal(mask, 2 * (probability >= threshold_level(threshold)))
    assert 0 < np.mean(mask == 2) < 1


@pytest.mark.parametrize("optional", [True, False])
def test_a_layer_that_is_added_to_the_table_is_written_listed_and_mosaicked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optional: bool
) -> None:
    toy = replace(TOY, optional=optional)
    monkeypatch.setattr(layers, "LAYERS", (*LAYERS, toy))
    mosaic = predict(tmp_path, **({"distance": True} if optional else {}))
    for product in (Product(tmp_path / "out" / "scene"), mosaic):
        path = product.raster("distance")
        assert cog_validate(path, quiet=True)[0]
        with rasterio.open(path) as source, rasterio.open(product.probability) as probability:
            assert (source.dtypes, source.nodata, source.scales) == (("int16",), -999, (0.01,))
            assert source.descriptions == ("Distance of building (class 1) from the threshold, nodata -999",)
            difference = source.read(1) / 100 - (probability.read(1) / 250 - 0.5)
        assert np.abs(difference).max() < 0.01
        asset = pystac.Item.from_dict(json.loads(product.item.read_text())).assets["distance"]
        assert (asset.href, asset.media_type) == ("./distance.tif", pystac.MediaType.COG)


def test_only_layers_of_the_table_can_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"distance.*logits, uncertainty"):
        predict(tmp_path, distance=True)


def test_a_mosaic_has_the_layers_that_all_scenes_have(tmp_path: Path) -> None:
    mosaic = predict(tmp_path, logits=True)
    assert {path.stem for path in mosaic.root.glob("*.tif")} == {"probability", "mask", "logits"}
    mosaic = predict(tmp_path)
    assert {path.stem for path in mosaic.root.glob("*.tif")} == {"probability", "mask"}
