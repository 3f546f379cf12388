"""Bright roofs called cloud are told from clouds by the dates, on the skies of the city and on real cloud masks."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from terraseg.acquire.imagery.cloud_mask import roofs_called_cloud
from terraseg.sample.city.imagery import draw_sky


@pytest.mark.parametrize(("dates", "cloud"), [(5, 0.3), (8, 0.1), (8, 0.3), (8, 0.5)])
def test_roofs_are_kept_and_clouds_are_not(dates: int, cloud: float) -> None:
    rng = np.random.default_rng(0)
    sky = np.stack([draw_sky(size=512, cloud=cloud, seed=0, date=date).opacity > 0 for date in range(dates)])
    roofs = np.zeros(sky.shape[1:], bool)
    for row, column in rng.integers(0, roofs.shape[0] - 8, (120, 2)):
        roofs[row : row + rng.integers(1, 9), column : column + rng.integers(1, 9)] = True
    labelled, count = ndimage.label(roofs)
    called_cloud = np.stack([(rng.random(count + 1) < 0.9)[labelled] & roofs for _ in range(dates)])
    kept = roofs_called_cloud(sky | called_cloud, np.ones_like(sky), persistence=0.75)
    assert (kept & called_cloud & ~sky).sum() > 0.4 * (called_cloud & ~sky).sum()
    assert (kept & sky).sum() < 0.01 * sky.sum()
    assert not kept[:, ~roofs].any(axis=0).mean() > 0.005


def test_two_dates_are_too_few() -> None:
    cloud = np.zeros((2, 60, 60), bool)
    cloud[:, 30, 30] = True
    assert not roofs_called_cloud(cloud, np.ones_like(cloud), persistence=0.75).any()
    assert roofs_called_cloud(cloud[[0, 1, 0]], np.ones((3, 60, 60), bool), persistence=0.75).sum() == 3


def test_real_clouds_do_not_persist(shared_data: Path) -> None:
    cloud = np.load(shared_data / "eolearn_slovenia" / "CLM.npy")[..., 0] > 0
    assert 0.2 < cloud.mean() < 0.6
    for step in (1, 3, 9):
        few = cloud[::step]
        assert not roofs_called_cloud(few, np.ones_like(few), persistence=0.75).any()
