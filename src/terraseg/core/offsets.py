"""Which offset a Sentinel-2 L2A scene needs, and whether its dark pixels agree.

Since processing baseline 04.00 (ESA, January 2022) the DN hold +1000, so that dark pixels may go below zero.
Some catalogues have removed it already, and say so; some say so wrongly (Element84/earth-search #66, #71).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from terraseg.core.bands import BASELINE_OFFSET
from terraseg.errors import CatalogueError

HISTOGRAM_STEP = 50
"""Width in DN of a bin of the histogram of dark pixels."""

HISTOGRAM_START = -1000
"""Lowest DN of the histogram; 60 bins reach up to 2000 DN, the first and the last one take what is beyond."""

HISTOGRAM_BINS = 60

_DARK_SHARE = 0.001
_TOO_BRIGHT = 800
_TOO_DARK = -400
_FEWEST_PIXELS = 1000


def processing_baseline(item_id: str, properties: Mapping[str, Any]) -> str | None:
    """``05.10`` from the item's properties, else from the product's name (``_N0510_``), else None."""
    for key in ("s2:processing_baseline", "processing:version", "sentinel2:processing_baseline"):
        if re.fullmatch(r"\d\d\.\d\d", str(properties.get(key, ""))):
            return str(properties[key])
    for name in (properties.get("s2:product_uri", ""), item_id):
        if found := re.search(r"_N(\d\d)(\d\d)_", str(name)):
            return f"{found[1]}.{found[2]}"
    return None


def boa_offset(item_id: str, properties: Mapping[str, Any]) -> int:
    """DN to add so that reflectance = DN x 1e-4. The date is never asked: reprocessed scenes of 2016 are shifted too.

    Raises:
        CatalogueError: the item tells neither.
    """
    if properties.get("earthsearch:boa_offset_applied") is True:
        return 0
    baseline = processing_baseline(item_id, properties)
    if baseline is None:
        raise CatalogueError(
            f"item {item_id} does not state its processing baseline, so its unit is unknown",
            expected="the property s2:processing_baseline or processing:version",
            fix="set acquire.catalogue.offset for this catalogue",
        )
    return BASELINE_OFFSET if baseline >= "04.00" else 0


def dark_histogram(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Counts of DN (any shape, offset already applied) in the bins of the dark-pixel check."""
    bins = np.clip((values - HISTOGRAM_START) // HISTOGRAM_STEP, 0, HISTOGRAM_BINS - 1)
    return np.bincount(bins.ravel(), minlength=HISTOGRAM_BINS)


def dark_values(histograms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """The DN below which 0.1 % of the clear pixels lie, a band; None when there are too few pixels to tell.

    Args:
        histograms: (band, bin) of one scene.
    """
    counts = histograms.sum(axis=1)
    if counts.min() < _FEWEST_PIXELS:
        return None
    first = (np.cumsum(histograms, axis=1) > (counts * _DARK_SHARE)[:, None]).argmax(axis=1)
    values: npt.NDArray[np.int64] = HISTOGRAM_START + HISTOGRAM_STEP * first
    return values


def offset_contradiction(dark: npt.NDArray[np.int64]) -> str | None:
    """Why the dark pixels (DN a band) contradict the offset, or None when they agree.

    Shadows and water bring some band of nearly every scene below 0.08; in a scene that is still shifted none is.
    After one subtraction too many, the dark pixels of most bands lie far below zero, which no atmosphere does.
    """
    if dark.min() >= _TOO_BRIGHT:
        return (
            f"its darkest pixels have DN {dark.min()} in every band or more, as if {BASELINE_OFFSET} were still to add"
        )
    if np.median(dark) <= _TOO_DARK:
        return f"its darkest pixels lie at DN {int(np.median(dark))}, as if {BASELINE_OFFSET} had been added twice"
    return None
