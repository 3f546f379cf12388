import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terraseg.core.windows import WindowAxis
from terraseg.errors import ConfigError
from terraseg.mapping.windows.grid import WindowGrid


@st.composite
def axes(draw: st.DrawFn) -> WindowAxis:
    crop = draw(st.integers(2, 40))
    return WindowAxis(draw(st.integers(1, 200)), crop, draw(st.integers(1, crop - 1)))


@given(axes())
def test_windows_cover_every_pixel_and_stay_inside(axis: WindowAxis) -> None:
    hits = np.zeros(axis.padded, int)
    for offset in axis.offsets:
        hits[offset : offset + axis.crop] += 1
    assert hits.min() >= 1
    assert axis.offsets[-1] + axis.crop == axis.padded
    shared = [left + axis.crop - right for left, right in itertools.pairwise(axis.offsets)]
    assert all(axis.overlap <= pixels < axis.crop for pixels in shared)


@given(axes())
def test_weights_are_a_partition_of_unity(axis: WindowAxis) -> None:
    total = np.zeros(axis.padded)
    for offset, weights in zip(axis.offsets, axis.weights, strict=True):
        total[offset : offset + axis.crop] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert axis.weights.min() >= 0


@given(axes())
def test_a_window_fades_out_where_it_has_a_neighbour_and_keeps_the_scene_border(axis: WindowAxis) -> None:
    assert axis.weights[0, 0] == pytest.approx(1)
    assert axis.weights[-1, -1] == pytest.approx(1)
    # A window may only matter at its own edge as far as its ramp lets it, whatever the neighbours.
    ramp = min(axis.overlap, axis.crop // 2)
    if ramp >= 8:
        assert np.all(axis.weights[1:, 0] < 0.05)
        assert np.all(axis.weights[:-1, -1] < 0.05)


@given(axes())
def test_finished_rows_follow_each_other_and_get_no_later_contribution(axis: WindowAxis) -> None:
    spans = [axis.finished(index) for index in range(len(axis.offsets))]
    assert spans[0][0] == 0
    assert spans[-1][1] == axis.size
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    for index, (first, end) in enumerate(spans):
        assert all(offset >= end for offset in axis.offsets[index + 1 :])
        earliest = axis.first_touching(first)
        assert all(offset + axis.crop <= first for offset in axis.offsets[:earliest])
        assert earliest <= index


@pytest.mark.parametrize(("crop", "overlap"), [(32, 32), (32, 40), (32, 0), (32, -1), (1, 0)])
def test_refuses_what_cannot_cover_or_blend(crop: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match="expected"):
        WindowAxis(100, crop, overlap)


@given(axes(), axes(), st.integers(1, 250))
def test_strips_share_out_the_scene_and_a_panel_has_all_windows_over_its_own(
    rows: WindowAxis, columns: WindowAxis, most: int
) -> None:
    grid = WindowGrid(rows, columns, panel_pixels=most)
    finished = np.zeros((rows.size, columns.size), int)
    for strip in range(grid.strips):
        finished[tuple(slice(*side) for side in grid.pixels(strip))] += 1
    assert (finished == 1).all()
    for panel in grid.panels:
        weight = np.zeros(panel.padded)
        for offset, weights in zip(panel.offsets, panel.weights, strict=True):
            weight[offset : offset + panel.crop] += weights
        np.testing.assert_allclose(weight[slice(*panel.finished)], 1, atol=1e-6)
        assert panel.left + panel.size <= columns.size


def test_a_wide_scene_is_cut_into_few_panels_of_bounded_width() -> None:
    grid = WindowGrid(WindowAxis(10_980, 224, 56), WindowAxis(100_000, 224, 56))
    windows = sum(len(panel.offsets) for panel in grid.panels)
    assert max(panel.size for panel in grid.panels) <= 4096 + 224
    assert windows <= 1.05 * len(grid.columns.offsets)
    assert len(WindowGrid(grid.rows, WindowAxis(2_745, 224, 56)).panels) == 1
