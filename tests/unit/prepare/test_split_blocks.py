"""Blocks, splits and chips: geometry that must hold for any scene, chip, block and gap."""

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from terraseg.errors import SplitError
from terraseg.prepare.chip_grid import chip_origins
from terraseg.prepare.config import SplitRule
from terraseg.prepare.split_blocks import Rect, assign, keep_out, make_blocks, neighbours

layouts = st.tuples(
    st.tuples(st.integers(40, 160), st.integers(40, 160)),  # scene
    st.integers(8, 14),  # chip
    st.integers(1, 3),  # chips a block
    st.integers(1, 20),  # gap
    st.integers(3, 14),  # train stride
    st.integers(0, 5),  # seed
    st.sampled_from(["blocks", "columns", "rows"]),
)


def _plan(shape, tile_size, block_chips, gap, stride, seed, kind):
    rule = SplitRule(kind=kind, block_chips=block_chips, seed=seed)
    blocks = make_blocks(shape, tile_size=tile_size, rule=rule)
    near = neighbours(blocks, gap=gap)
    density = np.random.default_rng(seed).random(len(blocks))
    try:
        splits = assign(blocks, density, rule=rule, gap=gap, near=near)
    except SplitError:
        reject()  # too few blocks, which has its own test
    chips = []
    for index, block in enumerate(blocks):
        zones = keep_out(index, blocks, splits, gap=gap, near=near)
        step = min(stride, tile_size) if splits[index] == "train" else tile_size
        chips.append(chip_origins(block, tile_size=tile_size, stride=step, keep_out=zones))
    return blocks, splits, chips


@settings(max_examples=60, deadline=None)
@given(layouts)
def test_no_pixel_in_two_splits_and_the_gap_holds(layout):
    shape, tile_size, _, gap, *_ = layout
    _, splits, chips = _plan(*layout)
    shown = {split: np.zeros(shape, dtype=bool) for split in ("train", "val", "test")}
    for split, origins in zip(splits, chips, strict=True):
        for row, column in origins:
            assert 0 <= row <= shape[0] - tile_size
            assert 0 <= column <= shape[1] - tile_size
            shown[split][row : row + tile_size, column : column + tile_size] = True
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        rows, columns = np.nonzero(shown[first])
        for row, column in zip(rows[::7], columns[::7], strict=True):
            near = shown[second][max(row - gap, 0) : row + gap + 1, max(column - gap, 0) : column + gap + 1]
            assert not near.any(), f"{first} and {second} are closer than {gap} px"


@settings(max_examples=60, deadline=None)
@given(layouts)
def test_blocks_cover_the_scene_once(layout):
    shape = layout[0]
    count = np.zeros(shape, dtype=int)
    for block in _plan(*layout)[0]:
        count[block.top : block.bottom, block.left : block.right] += 1
    assert (count == 1).all()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(10, 60),
    st.integers(10, 60),
    st.integers(4, 10),
    st.integers(1, 10),
    st.lists(st.tuples(st.integers(-30, 60), st.integers(-30, 60), st.integers(1, 30)), max_size=2),
)
def test_each_pixel_that_a_chip_can_reach_is_in_one(height, width, tile_size, stride, zones):
    block = Rect(100, 200, 100 + height, 200 + width)
    # Zones as gaps make them: they reach in from outside, over a side or a corner.
    zones = [Rect(100 + row - 30, 200 + column - 30, 100 + row - 30 + size, 200 + column - 30 + size)
             for row, column, size in zones]  # fmt: skip
    zones = [zone for zone in zones if zone.top <= 100 or zone.bottom >= 100 + height]
    zones = [zone for zone in zones if zone.left <= 200 or zone.right >= 200 + width]
    free = np.ones((height, width), dtype=bool)
    for zone in zones:
        free[max(zone.top - 100, 0) : max(zone.bottom - 100, 0), max(zone.left - 200, 0) : max(zone.right - 200, 0)] = 0
    reachable = np.zeros_like(free)
    for row in range(height - tile_size + 1):
        for column in range(width - tile_size + 1):
            window = np.s_[row : row + tile_size, column : column + tile_size]
            if free[window].all():
                reachable[window] = True
    shown = np.zeros_like(free)
    for row, column in chip_origins(block, tile_size=tile_size, stride=min(stride, tile_size), keep_out=zones):
        window = np.s_[row - 100 : row - 100 + tile_size, column - 200 : column - 200 + tile_size]
        assert free[window].all()
        shown[window] = True
    assert (shown == reachable).all()


def test_chips_of_val_and_test_overlap_at_the_edges_only():
    origins = chip_origins(Rect(0, 0, 70, 64), tile_size=32, stride=32)
    assert origins == [(0, 0), (0, 32), (32, 0), (32, 32), (38, 0), (38, 32)]


def test_splits_get_their_share_of_dense_blocks():
    blocks = make_blocks((1000, 1000), tile_size=10, rule=SplitRule(block_chips=10))
    density = np.arange(100.0)
    splits = np.array(assign(blocks, density, rule=SplitRule(block_chips=10), gap=10, near=neighbours(blocks, gap=10)))
    assert [(splits == split).sum() for split in ("train", "val", "test")] == [60, 20, 20]
    for split in ("train", "val", "test"):
        assert abs(density[splits == split].mean() - density.mean()) < 5


def test_assignment_depends_on_the_seed_alone():
    blocks = make_blocks((600, 600), tile_size=20, rule=SplitRule())
    near = neighbours(blocks, gap=20)
    density = np.random.default_rng(0).random(len(blocks))

    def splits(seed):
        return assign(blocks, density, rule=SplitRule(seed=seed), gap=20, near=near)

    assert splits(3) == splits(3)
    assert any(splits(3) != splits(seed) for seed in range(4, 9))


def test_too_small_a_scene_is_refused():
    with pytest.raises(SplitError, match="at least one chip of 224 px"):
        make_blocks((100, 1000), tile_size=224, rule=SplitRule())
    blocks = make_blocks((448, 224), tile_size=224, rule=SplitRule(block_chips=1))
    with pytest.raises(SplitError, match="three splits"):
        assign(blocks, np.zeros(2), rule=SplitRule(block_chips=1), gap=224, near=neighbours(blocks, gap=224))
