"""What the values of an image say of its unit and nodata, when its metadata may be wrong."""

import logging
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from terraseg.contracts.dataset import Stats
from terraseg.core.bands import BASELINE_OFFSET, REFLECTANCE_SCALE, UNIT
from terraseg.errors import SceneError

_log = logging.getLogger(__name__)

FOREIGN_NODATA = -9999
"""The value that many programs write where there is no observation, declared or not."""

DN_FROM = 2
"""Values with a median from here on are not reflectance of 0 to 1: clouds and glint reach about 1.5."""

_PERCENT, _EIGHT_BIT = 100, 255
_FEWEST_BANDS = 3  # with fewer, any land may be bright
_PREVIEW, _FEWEST = 64, 16
"""Side of the part of an image that is compared with its unit, and the fewest values that tell something."""

_NAMED = 5
"""Most values in an error message."""


def check_unit(path: Path, pixels: npt.NDArray[Any], missing: npt.NDArray[np.bool_], *, scale: float) -> None:
    """Check that the values are as large as the unit says.

    Args:
        path: of the image, for the message.
        pixels: (bands, rows, columns) in the file's unit.
        missing: pixels without an observation, as ``pixels``.
        scale: DN of 1e-4 reflectance per value: 1 for DN, 10000 for reflectance.

    Raises:
        SceneError: the median of a sample contradicts the unit.
    """
    step = max(1, max(pixels.shape[1:]) // _PREVIEW)
    part = np.s_[:, ::step, ::step]
    known = pixels[part][~missing[part] & (pixels[part] > 0)]
    if known.size < _FEWEST:
        return
    middle, is_reflectance = float(np.median(known)), scale != 1
    if is_reflectance == (middle < DN_FROM):
        return
    other = UNIT if is_reflectance else "reflectance"
    declared = "reflectance (0 to 1)" if is_reflectance else f"{UNIT} (DN)"
    convertible = middle > _PERCENT if is_reflectance else pixels.dtype.kind == "f"
    raise SceneError(
        f"{path} has values around {middle:.3g}, but its unit is {declared}",
        expected="values from 0 to 1" if is_reflectance else "values from 0 to 10000",
        fix=f"add --unit {other}; if the file has the tag UNIT, correct it with rio edit-info --tag UNIT={other}"
        if convertible
        else f"convert the values to {UNIT}: DN = reflectance x 10000",
    )


def check_levels(where: str | Path, stats: Stats) -> None:
    """Check that the DN of a dataset are not percent or 8 bit. A single image may be as dark, such as one of water.

    If no band is dark anywhere, a warning says that the offset of the newer products may still be in the values.

    Args:
        where: the dataset or its images, for the message.
        stats: of the train split.

    Raises:
        SceneError: no band has values above 8 bit.
    """
    ranges = [held.percentiles.values() for held in stats.bands.values() if held.percentiles]
    highest = [max(each) for each in ranges]
    if len(ranges) >= _FEWEST_BANDS and (least := min(map(min, ranges))) >= -BASELINE_OFFSET:
        _log.warning(
            "%s: nearly all pixels have DN %g or more in every band. Do the values still hold the offset of %d that "
            "products have since January 2022? Then take it off before the import: maps of scenes without it would be "
            "wrong", where, least, -BASELINE_OFFSET,
        )  # fmt: skip
    if not highest or max(highest) > _EIGHT_BIT:
        return
    percent = max(highest) <= _PERCENT
    raise SceneError(
        f"{where}: no band has values above {max(highest):g}, but the unit is {UNIT} (DN)",
        expected="values from 0 to 10000",
        fix="convert the values: DN = percent x 100" if percent else "convert the values: DN = reflectance x 10000",
    )


def check_extremes(
    path: Path,
    pixels: npt.NDArray[Any],
    missing: npt.NDArray[np.bool_],
    *,
    scale: float,
    dtype: Literal["uint16", "int16"],
    nodata: float,
) -> None:
    """Check for values that are not observations: -9999, the extremes of the type, and what would be clipped.

    Args:
        path, pixels, missing, scale: see `check_unit`.
        dtype: type that has to hold the DN.
        nodata: value without an observation; NaN if there is none.

    Raises:
        SceneError: there are such values.
    """
    limits = np.iinfo(dtype)
    wrong = ((pixels >= limits.max / scale) | (pixels == FOREIGN_NODATA)) & ~missing
    if limits.min < 0:
        wrong |= (pixels <= limits.min / scale) & ~missing
    if not wrong.any():
        return
    values = [f"{value:.17g}" for value in np.unique(pixels[wrong]).tolist()]
    shown = ", ".join(values[:_NAMED]) + ", ..." * (len(values) > _NAMED)
    raise SceneError(
        f"{path} has the value {shown}, but "
        + ("declares no such nodata" if math.isnan(nodata) else f"its nodata is {nodata:g}"),
        expected=f"reflectance below {limits.max * REFLECTANCE_SCALE:g}",
        fix=f"if this value means nodata, add --nodata={values[0]}"
        if len(values) == 1
        else "set these pixels to one value in the files, and add --nodata=VALUE",
    )
