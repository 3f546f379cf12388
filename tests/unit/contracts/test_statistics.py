"""Statistics of train and of scenes against float64 references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terraseg.contracts.statistics import TrainHistogram, means_and_stds, scene_stats
from terraseg.errors import SceneError


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 65535), min_size=1, max_size=300), st.integers(1, 299))
def test_streamed_statistics_are_exact(values, cut):
    pixels = np.array([values], dtype=np.uint16)
    whole, parts = TrainHistogram(1), TrainHistogram(1)
    whole.add_pixels(pixels)
    for part in (pixels[:, :cut], pixels[:, cut:]):
        other = TrainHistogram(1)
        other.add_pixels(part)
        parts.merge(other)
    band = parts.stats(["B02"], classes={0: "background"}).bands["B02"]
    assert band == whole.stats(["B02"], classes={0: "background"}).bands["B02"]
    reference = pixels[0].astype(np.float64)
    np.testing.assert_allclose([band.mean, band.std], [reference.mean(), reference.std()], rtol=1e-12, atol=1e-9)
    for name, value in band.percentiles.items():
        assert value == np.percentile(reference, int(name[1:]), method="inverted_cdf")


def test_class_frequencies():
    histogram = TrainHistogram(1)
    histogram.add_pixels(np.zeros((1, 5), np.uint16))
    histogram.add_labels(np.array([0, 0, 1, 1, 1], np.int8))
    stats = histogram.stats(["B02"], classes={0: "background", 1: "building", 2: "never"})
    assert stats.class_pixels == {0: 2, 1: 3, 2: 0}
    assert stats.pixels == 5


class Held:
    """A raster in memory that counts the pixels that are read."""

    def __init__(self, pixels):
        self.pixels, self.read_pixels = pixels, 0

    def read(self, indexes, *, window):
        rows, columns = window.toslices()
        self.read_pixels += (rows.stop - rows.start) * (columns.stop - columns.start)
        return self.pixels[np.asarray(indexes) - 1, rows, columns]


def test_statistics_of_a_scene_are_those_of_all_its_observations_on_all_dates():
    rng = np.random.default_rng(0)
    dates = rng.integers(1, 65535, (2, 3, 600, 700)).astype(np.uint16)
    dates[0, :, 100:300] = 0
    dates[1, 2, :5] = 0  # one band alone: the others keep theirs
    held = [(Held(date), [3, 1]) for date in dates]
    stats = scene_stats(held, bands=["B04", "B02"], shape=(600, 700))
    assert list(stats) == ["B04", "B02"]
    for name, band in (("B04", 2), ("B02", 0)):
        known = dates[:, band][dates[:, band] != 0].astype(np.float64)
        np.testing.assert_allclose([stats[name].mean, stats[name].std], [known.mean(), known.std()], rtol=1e-12)
    alone = scene_stats([(Held(date), [1]) for date in dates], bands=["B02"], shape=(600, 700))
    assert alone["B02"] == stats["B02"]


def test_a_large_scene_is_sampled_evenly():
    rows, columns = 512 * 24, 512 * 16
    ramp = np.broadcast_to(
        (np.arange(columns) // 8 + np.arange(rows)[:, None] // 8).astype(np.uint16), (1, rows, columns)
    )
    raster = Held(ramp)
    stats = scene_stats([(raster, [1])], bands=["B02"], shape=(rows, columns))["B02"]
    assert raster.read_pixels == 64 * 512 * 512
    assert stats.mean == pytest.approx((rows + columns) / 16, rel=0.02)
    assert stats.std == pytest.approx(float(np.hypot(rows, columns)) / 8 / 12**0.5, rel=0.02)


def test_a_scene_without_values_to_tell_apart_raises_an_error():
    pixels = np.zeros((3, 8, 8), np.uint16)
    pixels[0, :4], pixels[1] = 7, 1001
    pixels[0, 0, 0] = 9
    stats = scene_stats([(Held(pixels), [1, 2, 3])], bands=["B02", "B03", "B04"], shape=(8, 8))
    assert (stats["B03"].mean, stats["B03"].std, stats["B04"].mean) == (1001, 0, 0)
    with pytest.raises(SceneError, match="field: B03, B04 is constant or has no observation"):
        means_and_stds(stats, ["B02", "B03", "B04"], where="field")
    means, stds = means_and_stds(stats, ["B02"], where="field")
    assert means.dtype == stds.dtype == np.float32
