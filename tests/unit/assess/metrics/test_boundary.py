from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_cdt

from terraseg.assess.ground.pairs import Patch
from terraseg.assess.metrics import bit_masks as bits
from terraseg.assess.metrics import boundary
from terraseg.assess.metrics.pixels import iou
from terraseg.contracts.dataset import IGNORE

SHAPE = (37, 150)  # more columns than two words have bits


def _ground(seed, *, unknown=0.05):
    rng = np.random.default_rng(seed)
    blobs = np.kron(rng.random((8, 30)) < 0.4, np.ones((5, 5), bool))[: SHAPE[0], : SHAPE[1]]
    truth = np.where(rng.random(SHAPE) < unknown, IGNORE, blobs).astype(np.int8)
    probability = np.where(np.roll(blobs, rng.integers(-2, 3, 2), (0, 1)), 200, 20).astype(np.uint8)
    probability[rng.random(SHAPE) < unknown] = 255
    return truth, probability


def _distance(targets):
    """Chessboard distance to the nearest target."""
    return distance_transform_cdt(~targets, metric="chessboard") if targets.any() else np.full(targets.shape, 10_000)


def _by_definition(truth, probability, *, tolerance):
    known = (truth >= 0) & (probability != 255)
    masks = [(truth == 1) & known, (probability >= 125) & known]
    true, mapped = (each & (_distance(known & ~each) <= tolerance) for each in masks)
    true_edge, mapped_edge = (each & (_distance(known & ~each) <= 1) for each in masks)
    near_true, near_mapped = (_distance(edge) <= tolerance for edge in (true_edge, mapped_edge))
    return [
        [(true & mapped).sum(), (mapped & ~true).sum(), (true & ~mapped).sum(), 0],
        [
            (mapped_edge & near_true).sum(),
            (mapped_edge & ~near_true).sum(),
            (true_edge & near_mapped).sum(),
            (true_edge & ~near_mapped).sum(),
        ],
    ]


def _count(patches, *, tolerance, cell=1000):
    counts = boundary.BoundaryCounts(at=125, positive=1, tolerance=tolerance, cell=cell)
    cells = {
        f"{patch.name}/{row}/{column}"
        for patch in counts.watch(patches)
        for row in range(0, patch.row + len(patch.truth) + 1, cell)
        for column in range(0, patch.column + SHAPE[1] + 1, cell)
    }
    return counts.of(sorted(cells))


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), tolerance=st.integers(1, 5))
def test_counts_follow_the_definition(seed, tolerance):
    truth, probability = _ground(seed)
    found = _count([Patch("s", 3, 5, probability, truth)], tolerance=tolerance)
    assert found.sum(axis=0).tolist() == _by_definition(truth, probability, tolerance=tolerance)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tolerance=st.integers(1, 4),
    cell=st.integers(3, 40),
    cuts=st.lists(st.integers(1, SHAPE[0] - 1), max_size=5),
)
def test_strips_from_top_down_leave_no_seam_and_every_pixel_is_counted_once(seed, tolerance, cell, cuts):
    truth, probability = _ground(seed)
    edges = sorted({0, SHAPE[0], *cuts})
    strips = [Patch("s", top, 0, probability[top:end], truth[top:end]) for top, end in pairwise(edges)]
    found = _count(strips, tolerance=tolerance, cell=cell)
    assert found.sum(axis=0).tolist() == _by_definition(truth, probability, tolerance=tolerance)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), columns=st.integers(1, 140), radius=st.integers(1, 80))
def test_bits_spread_as_opencv_dilates_and_are_counted_by_column(seed, columns, radius):
    flags = np.random.default_rng(seed).random((9, columns)) < 0.03
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    expected = cv2.dilate(flags.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    found = bits.spread(bits.packed(flags), radius) & bits.packed(np.ones_like(flags))
    assert np.unpackbits(found.view(np.uint8), axis=1, bitorder="little")[:, :columns].tolist() == expected.tolist()
    edges = np.unique([0, columns // 3, columns // 2, columns])
    assert bits.counted(found, edges).tolist() == [expected[:, a:b].sum() for a, b in pairwise(edges)]


def test_patches_of_other_places_do_not_touch():
    truth, probability = np.ones((4, 6), np.int8), np.full((4, 6), 250, np.uint8)
    truth[2:] = 0
    below = Patch("s", 9, 0, probability[:2], np.zeros((2, 6), np.int8))
    alone = _count([Patch("s", 0, 0, probability, truth)], tolerance=1).sum(axis=0)
    assert _count([Patch("s", 0, 0, probability, truth), below], tolerance=1).sum(axis=0).tolist() == alone.tolist()


def test_a_shift_within_the_tolerance_costs_no_boundary_f1_but_boundary_iou():
    truth = np.zeros((40, 40), np.int8)
    truth[10:30, 10:30] = 1
    moved = np.where(np.roll(truth, 1, axis=1) == 1, 250, 0).astype(np.uint8)
    bands, edges = _count([Patch("s", 0, 0, moved, truth)], tolerance=1).sum(axis=0)
    assert boundary.edge_f1(edges) == 1
    assert 0.3 < iou(bands) < 0.6


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([0, 0, 0, 0], np.nan), ([0, 3, 0, 0], 0.0), ([0, 0, 0, 4], 0.0), ([2, 2, 3, 0], 2 * 0.5 / 1.5)],
)
def test_boundary_f1_without_edges_is_undefined_and_without_hits_zero(counts, expected):
    assert float(boundary.edge_f1(np.array(counts))) == pytest.approx(expected, nan_ok=True)
