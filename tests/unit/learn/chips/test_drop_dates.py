"""Dates that are left out in training."""

import torch

from terraseg.learn.chips.drop_dates import without_some_dates


def test_whole_dates_are_left_out_at_random_but_never_all_that_are_seen() -> None:
    image = torch.randn(2000, 2, 4, 3, 3)
    image[:1000, :, :3] = 0  # only the last date is seen
    dropped = without_some_dates(image, 0.6, seed=1)
    seen = (dropped != 0).any(dim=(1, 3, 4))
    assert torch.equal(dropped, image * seen[:, None, :, None, None])
    assert seen.any(1).all()
    assert seen[:1000, 3].all()
    assert 0.35 < seen[1000:].float().mean() < 0.5
    assert torch.equal(dropped, without_some_dates(image, 0.6, seed=1))
    assert not torch.equal(dropped, without_some_dates(image, 0.6, seed=2))
