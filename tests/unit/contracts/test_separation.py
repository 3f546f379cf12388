"""Distances between sets of chips, to the millimetre, in the CRS of their pixels."""

import geopandas as gpd
import numpy as np
import pytest
import shapely
import shapely.affinity
from hypothesis import given, settings
from hypothesis import strategies as st

from terraseg.contracts.separation import closer_than, in_metres, separation

SIDE = 2240
WEST, EAST = "EPSG:32633", "EPSG:32634"


def _chips(*corners, crs=WEST):
    return gpd.GeoSeries([shapely.box(x, y, x + SIDE, y + SIDE) for x, y in corners], crs=crs)


@pytest.mark.parametrize(
    ("gap", "shortened", "held"), [(0, 0, True), (0, 0.01, False), (2240, 0, True), (2240, 2e-3, False), (10, -1, True)]
)
def test_a_gap_holds_to_the_millimetre(gap, shortened, held):
    first, second = _chips((500_000, 5_800_000)), _chips((500_000 + SIDE + gap - shortened, 5_800_000))
    assert separation(first, second).holds(gap) == held
    assert closer_than(first, second, gap_m=gap).tolist() == [not held]


def test_overlapping_ground_counts_once():
    first = _chips((500_000, 5_800_000), (500_000, 5_800_000))
    measured = separation(first, _chips((500_000 + SIDE - 10, 5_800_000)))
    assert (measured.least_m, measured.shared_m2) == (0, 10 * SIDE)


def test_empty_sets_are_far_apart():
    assert separation(_chips(), _chips((500_000, 5_800_000))).holds(1e9)
    assert separation(_chips((500_000, 5_800_000)), _chips()).holds(1e9)
    assert not closer_than(_chips((500_000, 5_800_000)), _chips(), gap_m=1e9).any()


def test_chips_of_another_zone_are_measured_in_their_own():
    first, second = (_chips((x, 5_800_000), crs=EAST).to_crs(WEST) for x in (700_000, 700_000 + 2 * SIDE))
    stretched = separation(first, second)
    assert abs(stretched.least_m - SIDE) > 5  # the distance in the table's CRS
    assert separation(first, second, zones=(WEST, EAST)).least_m == pytest.approx(SIDE, abs=1e-3)
    assert separation(first, second, zones=(WEST, EAST)).holds(SIDE)
    assert not closer_than(first, second, gap_m=SIDE, zones=(WEST, EAST)).any()
    assert closer_than(first, second, gap_m=SIDE + 0.01, zones=(WEST, EAST)).all()


def test_chips_of_different_zones_are_measured():
    west = _chips((680_000, 5_800_000))
    near = gpd.GeoSeries([shapely.affinity.translate(west.iloc[0], 3 * SIDE)], crs=WEST)
    east = _chips(tuple(near.to_crs(EAST).total_bounds[:2]), crs=EAST).to_crs(WEST)
    assert separation(west, east, zones=(WEST, EAST)).least_m == pytest.approx(2 * SIDE, rel=0.05)


def test_the_other_side_of_the_earth_is_far_away():
    first = _chips((500_000, 5_800_000)).to_crs(6933)
    second = _chips((500_000, 5_800_000), crs="EPSG:32603").to_crs(6933)
    assert separation(first, second, zones=("EPSG:32603", WEST)).holds(1e6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 9000))
def test_the_gap_holds_without_the_chips_that_are_too_close(seed, gap):
    random = np.random.default_rng(seed)
    table = gpd.GeoSeries(
        [
            *_chips(*random.uniform((250_000, 5_780_000), (300_000, 5_820_000), (9, 2)), crs=EAST).to_crs(WEST),
            *_chips(*random.uniform((660_000, 5_780_000), (700_000, 5_820_000), (9, 2))),
        ],
        crs=WEST,
    )
    first, second = table.iloc[::2], table.iloc[1::2]
    close = closer_than(first, second, gap_m=gap, zones=(EAST, WEST))
    assert separation(first[~close], second, zones=(EAST, WEST)).holds(gap)
    for position in np.flatnonzero(close):
        assert not separation(first.iloc[[position]], second, zones=(EAST, WEST)).holds(gap + 2e-3)


def test_distances_have_no_trailing_zeros():
    assert [in_metres(value) for value in (0.0, 320.0, 319.998, 12_345.5)] == ["0", "320", "319.998", "12345.5"]
