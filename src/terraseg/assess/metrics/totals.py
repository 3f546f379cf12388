"""How much there is, whether or not it is in the right place: what a statistics office asks of a map.

Totals are (units, 3): predicted, true, and the size of their difference, by bootstrap unit.
"""

import numpy as np
import numpy.typing as npt

from terraseg.assess.metrics.bootstrap import Part
from terraseg.assess.metrics.pixels import Counts, Values


def built_up_part(counts: Counts) -> Part:
    """`total_part` of the mapped area, from (units, 4) tp, fp, fn, tn."""
    tp, fp, fn, _ = np.asarray(counts, dtype=np.int64).T
    return total_part("built_up", tp + fp, tp + fn)


def total_part(name: str, predicted: npt.NDArray[np.int64], true: npt.NDArray[np.int64]) -> Part:
    """Bias of the whole and error by unit, both as a share of what there truly is.

    Args:
        name: of what is counted; the figures are ``<name>_bias`` and ``<name>_error``.
        predicted: (units,) pixels or objects.
        true: (units,) likewise.

    Returns:
        Counts with two figures. bias: (predicted - true) / true over all units, 0 where errors cancel out. error: the
        sum of the differences' sizes by unit / true, in which they don't.
    """
    totals = np.stack([predicted, true, abs(predicted - true)], axis=1)
    return totals, {f"{name}_bias": _bias, f"{name}_error": _error}


def _bias(totals: Counts) -> Values:
    return _share(totals[..., 0] - totals[..., 1], totals[..., 1])


def _error(totals: Counts) -> Values:
    return _share(totals[..., 2], totals[..., 1])


def _share(part: Counts, whole: Counts) -> Values:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole == 0, np.nan, part / whole)
