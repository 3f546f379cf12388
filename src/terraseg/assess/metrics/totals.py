"""Total area or number, whether or not it is in the right place, as official statistics need it.

Totals are (cells, 3): predicted, true, and their absolute difference, for each cell.
"""

import numpy as np
import numpy.typing as npt

from terraseg.assess.metrics.intervals import Part
from terraseg.assess.metrics.pixels import Counts, Metric, Ranged, Values

METRICS = {"area_bias": Metric("Area bias", tables=("places",)), "area_error": Metric("Area error")}
"""Metrics of the mapped area by name."""


def area_part(counts: Counts) -> Part:
    """`total_part` of the mapped area from (cells, 4) tp, fp, fn, tn."""
    tp, fp, fn, _ = np.asarray(counts, dtype=np.int64).T
    return total_part("area", tp + fp, tp + fn)


def total_part(name: str, predicted: npt.NDArray[np.int64], true: npt.NDArray[np.int64]) -> Part:
    """Bias of the total and error by cell, both as a share of the true total.

    Args:
        name: of the quantity; the metrics are ``<name>_bias`` and ``<name>_error``.
        predicted: (cells,) pixels or objects.
        true: (cells,) pixels or objects.

    Returns:
        Counts with two metrics. bias: (predicted - true) / true over all cells; errors of cells cancel out. error: sum
        of the absolute differences by cell / true; they do not cancel out.
    """
    totals = np.stack([predicted, true, abs(predicted - true)], axis=1)
    return totals, {f"{name}_bias": Ranged(_bias, (-1.0, np.inf)), f"{name}_error": Ranged(_error, (0.0, np.inf))}


def _bias(totals: Counts) -> Values:
    return _share(totals[..., 0] - totals[..., 1], totals[..., 1])


def _error(totals: Counts) -> Values:
    return _share(totals[..., 2], totals[..., 1])


def _share(part: Counts, whole: Counts) -> Values:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole == 0, np.nan, part / whole)
