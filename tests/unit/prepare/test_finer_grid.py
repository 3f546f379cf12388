"""Chips on a finer grid than the scenes': images are interpolated, footprints are rasterised there."""

import numpy as np
import rasterio

from terraseg.contracts.dataset import COVERAGE_UNKNOWN, SPLITS, open_dataset
from terraseg.mapping.inputs.scenes import places_at
from terraseg.mapping.runtimes.predictor import place_stats
from terraseg.prepare.config import PrepareConfig, SplitRule
from terraseg.prepare.labels.rules import LabelRule
from terraseg.prepare.preprocess import preprocess
from terraseg.sample.city.make import make_city_scene

RULE = LabelRule(kind="coverage", threshold=0.5)


def _whole(dataset, kind, shape):
    """The chips of all splits in one raster of the scene; what no chip shows is unknown."""
    whole = np.full(shape, COVERAGE_UNKNOWN, np.float32)
    for split in SPLITS:
        for row in dataset.split(split).itertuples():
            side = dataset.info.tile_size
            with rasterio.open(getattr(dataset, kind)(split, row.tile)) as source:
                whole[row.row : row.row + side, row.column : row.column + side] = source.read(1)
    return whole


def test_chips_of_a_quarter_of_the_pixel_size_show_the_same_ground_with_finer_labels(tmp_path):
    scenes, labels = make_city_scene(tmp_path / "city", size=300, seed=3)
    coarse, fine = (
        preprocess(
            scenes=scenes, labels=labels, output=tmp_path / f"{side}",
            config=PrepareConfig(gsd=gsd, tile_size=side, label_rule=RULE, split=SplitRule(block_chips=2)),
        )
        for gsd, side in ((None, 32), (2.5, 128))
    )  # fmt: skip
    assert (coarse.info.gsd, fine.info.gsd) == (10, 2.5)
    assert len(coarse.tiles) == len(fine.tiles)
    corners = [
        {(row.row * scale, row.column * scale, row.split) for row in dataset.tiles.itertuples()}
        for dataset, scale in ((coarse, 4), (fine, 1))
    ]
    assert corners[0] == corners[1]

    shares = _whole(coarse, "coverage", (300, 300))
    known = shares != COVERAGE_UNKNOWN
    finer = _whole(fine, "coverage", (1200, 1200)).reshape(300, 4, 300, 4).mean((1, 3))
    np.testing.assert_allclose(finer[known], shares[known], atol=1)
    masks = _whole(fine, "mask", (1200, 1200)).reshape(300, 4, 300, 4).mean((1, 3))
    assert np.corrcoef(masks[known], shares[known])[0, 1] > 0.99
    assert open_dataset(tmp_path / "128").info.content_hash == fine.info.content_hash
    (mapped,) = places_at([str(scenes)], tmp_path, frames=1, gsd=2.5)
    assert fine.scene_stats["city"] == place_stats(mapped, fine.info.bands)
