from collections import Counter

import numpy as np

from terraseg.learn.pretrain.schedule import LANES, OPEN, Schedule


def _schedule(*, seed: int = 0, rank: int = 0, batch_size: int = 16) -> Schedule:
    return Schedule([1, 0, 2, 5], area=512**2, chip_size=64, batch_size=batch_size, seed=seed, rank=rank)


def test_a_step_does_not_depend_on_the_steps_before_it() -> None:
    whole = [_schedule().regions(step) for step in range(40)]
    assert [_schedule().regions(step) for step in reversed(range(40))] == whole[::-1]
    first, again, other = (_schedule(seed=seed).random(3).random() for seed in (0, 0, 1))
    assert first == again != other
    assert whole != [_schedule(rank=1).regions(step) for step in range(40)]


def test_regions_are_drawn_by_their_weights() -> None:
    seen = Counter(region for step in range(4000) for region in _schedule().regions(step))
    assert seen[1] == 0
    shares = np.array([seen[region] for region in (0, 2, 3)]) / sum(seen.values())
    np.testing.assert_allclose(shares, [1 / 8, 2 / 8, 5 / 8], atol=0.08)


def test_few_regions_are_open_at_once_and_each_serves_many_chips() -> None:
    many = Schedule([1] * 10**6, area=512**2, chip_size=64, batch_size=15, seed=0, rank=0)
    drawn = [many.regions(step) for step in range(0, 4000, LANES)]
    assert all(len(set(regions)) == OPEN for regions in drawn[:10])
    uses = Counter(region for regions in drawn for region in regions)
    assert max(uses.values()) == 2 * 64
    assert sum(count == 2 * 64 for count in uses.values()) > len(uses) - 2 * OPEN - 1
