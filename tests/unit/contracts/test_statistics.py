"""Train statistics against float64 references."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from terraseg.contracts.statistics import TrainHistogram


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
