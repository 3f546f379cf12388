"""Normalisation follows its definition to 1e-6 and is bit-equal for any view and any shortcut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from terraseg.core.normalise import normalise, unobserved

BANDS = 3
MEANS = np.array([1200.5, 900.25, 2000.0], dtype=np.float32)
STDS = np.array([310.3, 77.7, 1501.1], dtype=np.float32)

chips = st.one_of(
    hnp.arrays(np.uint16, (BANDS, 5, 6), elements=st.sampled_from([0, 1, 700, 4000, 65535])),
    hnp.arrays(np.int16, (BANDS, 5, 6), elements=st.sampled_from([-9999, 0, 700, 4000])),
    hnp.arrays(np.float32, (BANDS, 5, 6), elements=st.sampled_from([-9999, 0, np.nan, 812.5])),
)


def _by_definition(pixels, nodata):
    missing = np.any((pixels == nodata) | (pixels != pixels), axis=0)
    with np.errstate(invalid="ignore"):
        values = np.subtract(pixels, MEANS[:, None, None], dtype=np.float32) / STDS[:, None, None]
    return np.where(missing, np.float32(0), values), missing


@settings(max_examples=80, deadline=None)
@given(chips, st.sampled_from([0.0, -9999.0]), st.integers(0, 3), st.booleans())
def test_any_type_and_any_view(pixels, nodata, quarter, flip):
    view = np.rot90(pixels, quarter, axes=(1, 2))[..., :: -1 if flip else 1]
    expected, missing = _by_definition(view, nodata)
    np.testing.assert_array_equal(unobserved(view, nodata=nodata), missing)
    plain = normalise(np.ascontiguousarray(view), means=MEANS, stds=STDS, nodata=nodata)
    np.testing.assert_allclose(plain, expected, rtol=1e-6)
    out = np.full(view.shape, 7, dtype=np.float32)
    assert normalise(view, means=MEANS, stds=STDS, nodata=nodata, out=out) is out
    np.testing.assert_array_equal(out, plain)
    if not missing.any():
        np.testing.assert_array_equal(normalise(view, means=MEANS, stds=STDS, nodata=None), plain)


@pytest.mark.parametrize("leading", [(), (4,), (2, 4)])
def test_a_batch_equals_its_chips_one_by_one(leading):
    pixels = np.random.default_rng(0).integers(0, 3, (*leading, BANDS, 4, 4), dtype=np.uint16)
    together = normalise(pixels, means=MEANS, stds=STDS, nodata=0)
    for position in np.ndindex(leading):
        alone = normalise(pixels[position], means=MEANS, stds=STDS, nodata=0)
        np.testing.assert_array_equal(together[position], alone)
