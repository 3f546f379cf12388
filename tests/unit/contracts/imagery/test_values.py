"""What the values of a whole dataset say of its unit and offset."""

import pytest

from terraseg.contracts.dataset import BandStats, Stats
from terraseg.contracts.imagery.values import check_levels


def _stats(*least: float) -> Stats:
    bands = {
        name: BandStats(mean=low + 500, std=100, percentiles={"p1": low, "p99": low + 2000})
        for name, low in zip(("B02", "B03", "B04", "B08"), least, strict=False)
    }
    return Stats(bands=bands, class_pixels={0: 1, 1: 1}, pixels=2)


@pytest.mark.parametrize(
    ("least", "doubted"),
    [((1050, 1100, 1200, 1300), True), ((250, 300, 1200, 2300), False), ((1400, 2000), False)],
    ids=["bright in every band", "dark in one", "two bands"],
)
def test_values_that_are_nowhere_dark_may_hold_the_offset(
    least: tuple[float, ...], doubted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    check_levels("chips", _stats(*least))
    assert ("1000" in caplog.text) == doubted
