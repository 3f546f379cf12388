import numpy as np
import pytest

from terraseg.contracts.share_interval import LEVEL, ShareInterval, share_interval, spread


def _cells(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mapped and true shares of cells whose errors grow with the share."""
    mapped = random.beta(0.8, 5, count)
    return mapped, np.clip(mapped + 0.3 * np.sqrt(mapped * (1 - mapped)) * random.standard_t(3, count), 0, 1)


@pytest.mark.parametrize("count", [20, 25, 60, 400])
def test_the_interval_holds_the_truth_in_nine_of_ten_new_cells(count: int) -> None:
    random, held = np.random.default_rng(0), []
    for _ in range(400):
        interval = share_interval(100, mapped=(cells := _cells(count, random))[0], true=cells[1])
        mapped, true = _cells(200, random)
        low, high = interval.bounds(mapped)
        held.append(((low <= true) & (true <= high)).mean())
    assert LEVEL - 0.01 <= np.mean(held) <= LEVEL + 1 / (count + 1) + 0.01


def test_the_quantile_is_that_of_the_scaled_errors() -> None:
    mapped = np.full(29, 0.2)
    true = mapped + np.arange(29) / 100
    found = share_interval(250, mapped=mapped, true=true)
    assert (found.metres, found.cells) == (250, 29)
    assert found.quantile == pytest.approx(0.26 / spread(mapped)[0])  # the 27th of 29: 0.9 of 30
    low, high = found.bounds(np.array([0.2]))
    assert (low[0], high[0]) == (0.0, pytest.approx(0.46))


def test_too_few_cells_have_no_interval() -> None:
    found = share_interval(1000, mapped=np.zeros(19), true=np.zeros(19))
    assert found == ShareInterval(metres=1000, cells=19, quantile=None)
    assert np.isnan(found.bounds(np.array([0.5]))).all()
