"""The offset that a Sentinel-2 L2A scene needs, checked against its darkest pixels.

Since processing baseline 04.00 (ESA, January 2022) 1000 is added to every DN, so that reflectance can be negative.
Some catalogues have already removed it and say so; for some items this is wrong (Element84/earth-search #66, #71).
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from terraseg.core.bands import BASELINE_OFFSET
from terraseg.errors import CatalogueError

SHIFTED_BASELINE = "04.00"
"""First processing baseline with the offset in its DN."""

HISTOGRAM_STEP = 50
"""Bin width of the histogram of dark pixels, in DN."""

HISTOGRAM_START = -1000
"""Lowest DN of the histogram; 120 bins reach up to 5000 DN, and the outer bins take all values beyond."""

HISTOGRAM_BINS = 120

_DARK_SHARE = 0.001
_TOO_BRIGHT = 800
_TOO_DARK = -400
_FEWEST_PIXELS = 1000
_DARK = 200  # if the offset was removed twice, no band of the land is darker than 1200 DN
_SAME = 250  # DN of difference between the dark pixels of two scenes of one place
_FEWEST_BANDS = 3  # with fewer, any land may look shifted


class OffsetCheck(NamedTuple):
    """What the pixels show about the offset of a scene.

    Attributes:
        evidence: what confirms it: its own ``dark pixels``, or ``other scenes`` of the same place that were corrected
            in another way; ``none`` if it could not be checked.
        contradiction: why the pixels contradict it; None if they don't.
    """

    evidence: Literal["dark pixels", "other scenes", "none"]
    contradiction: str | None


def processing_baseline(item_id: str, properties: Mapping[str, Any]) -> str | None:
    """Such as ``05.10``, from the item's properties or the product's name (``_N0510_``); None if neither has it."""
    for key in ("s2:processing_baseline", "processing:version", "sentinel2:processing_baseline"):
        if re.fullmatch(r"\d\d\.\d\d", str(properties.get(key, ""))):
            return str(properties[key])
    for name in (properties.get("s2:product_uri", ""), item_id):
        if found := re.search(r"_N(\d\d)(\d\d)_", str(name)):
            return f"{found[1]}.{found[2]}"
    return None


def boa_offset(item_id: str, properties: Mapping[str, Any]) -> int:
    """DN to add so that reflectance = DN x 1e-4. The date does not matter: reprocessed scenes of 2016 are shifted too.

    Raises:
        CatalogueError: the item states neither its baseline nor that the offset has been applied.
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
    return BASELINE_OFFSET if baseline >= SHIFTED_BASELINE else 0


def dark_histogram(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """(bins,) counts of DN in the bins of the dark-pixel check.

    Args:
        values: DN of any shape, offset already applied.
    """
    bins = np.clip((values - HISTOGRAM_START) // HISTOGRAM_STEP, 0, HISTOGRAM_BINS - 1)
    return np.bincount(bins.ravel(), minlength=HISTOGRAM_BINS)


def dark_values(histograms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """(bands,) DN below which 0.1 % of the clear pixels lie; None if there are fewer than 1000 clear pixels.

    Args:
        histograms: (bands, bins) of one scene.
    """
    counts = histograms.sum(axis=1)
    if counts.min() < _FEWEST_PIXELS:
        return None
    first = (np.cumsum(histograms, axis=1) > (counts * _DARK_SHARE)[:, None]).argmax(axis=1)
    values: npt.NDArray[np.int64] = HISTOGRAM_START + HISTOGRAM_STEP * first
    return values


def check_offsets(
    dark: Sequence[npt.NDArray[np.int64] | None], *, places: Sequence[str], corrections: Sequence[Hashable]
) -> list[OffsetCheck]:
    """Check the offset of each scene by its own dark pixels and by those of the other scenes of its place.

    Nearly every scene has shadow or water below a reflectance of 0.08 in some band; if the offset is still in the DN,
    no band has. If it was removed twice, the dark pixels of most bands lie far below zero, which no atmosphere causes.
    On bright land neither shows: there, only scenes that were corrected in another way can confirm or contradict the
    offset. A wrong one shifts all bands by the same 1000 DN; land, haze and shadow never do.

    Args:
        dark: (bands,) DN of the dark pixels of each scene, as `dark_values` gives them.
        places: of each scene; only scenes of the same place (such as a tile) are compared.
        corrections: of each scene, how its offset was removed; equal ones can't confirm each other.
    """
    checks = []
    for scene, values in enumerate(dark):
        others = [other for other in range(len(dark)) if other != scene and places[other] == places[scene]]
        shifts = {
            other: values - shown for other in others if values is not None and (shown := dark[other]) is not None
        }
        if values is None:
            checks.append(OffsetCheck("none", None))
        elif len(values) >= _FEWEST_BANDS and any(
            np.abs(shift).max() <= _SAME and corrections[other] != corrections[scene] for other, shift in shifts.items()
        ):
            checks.append(OffsetCheck("other scenes", None))
        else:
            evidence: Literal["dark pixels", "none"] = "dark pixels" if values.min() <= _DARK else "none"
            checks.append(OffsetCheck(evidence, _dark_contradiction(values) or _shift_contradiction(shifts)))
    return checks


def _dark_contradiction(dark: npt.NDArray[np.int64]) -> str | None:
    """Why the dark pixels, (bands,) DN, contradict the offset; None if they don't."""
    if dark.min() >= _TOO_BRIGHT:
        return (
            f"its darkest pixels have DN {dark.min()} or more in every band, as if {BASELINE_OFFSET} were still to add"
        )
    if np.median(dark) <= _TOO_DARK:
        return f"its darkest pixels have DN {int(np.median(dark))}, as if {BASELINE_OFFSET} had been added twice"
    return None


def _shift_contradiction(shifts: Mapping[int, npt.NDArray[np.int64]]) -> str | None:
    """Why the other scenes contradict the offset, by how much brighter (bands,) this one is than each of them."""
    if not shifts:
        return None
    shift = np.median(np.stack(list(shifts.values())), axis=0)
    if (
        len(shift) < _FEWEST_BANDS
        or np.abs(np.abs(shift) - abs(BASELINE_OFFSET)).max() > _SAME
        or np.ptp(shift) > _SAME
    ):
        return None
    return (
        f"in every band its darkest pixels lie about {abs(int(np.median(shift)))} DN "
        f"{'above' if shift[0] > 0 else 'below'} those of the other scenes of its place"
    )
