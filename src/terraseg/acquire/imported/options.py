"""What the user says of an image, and how it becomes a scene."""

import datetime as dt
from typing import Literal

from pydantic import Field, field_validator

from terraseg.contracts.imagery.processing import Level, Resampling
from terraseg.core.bands import band
from terraseg.core.settings import Strict


class ImageOptions(Strict):
    """Facts that the files of an image don't state, and how to make a scene of it.

    Sentinel-2 products (.SAFE) and HLS state all facts. Of other images, five facts are needed: bands, unit, date,
    level and attribution.

    Attributes:
        bands: band names in file order, if the files don't name them; else the bands to take.
        unit: unit of the values: ``reflectance`` (0 to 1), or ``reflectance_1e-4`` (DN, 0 to 10000).
        date: day of the image, YYYY-MM-DD.
        level: L1C (top of atmosphere) or L2A (surface).
        attribution: credit line for everything made from the image.
        nodata: value without an observation, in addition to what the files declare or mask; 0 if they declare none.
        offset: DN to add: -1000 for an export of baseline 04.00 or later that still contains the offset; by default
            what the metadata state, else 0.
        offset_check: whether to raise an error or warn if the darkest pixels contradict the offset.
        gsd: pixel size of the scene in metres. By default a north-up image in metres keeps its grid, and another one
            gets the nearest multiple of 10 m.
        resampling: of bands on another grid than the scene's: nearest, bilinear or cubic. Masks: always nearest.
        mask: mask clouds and their shadows, by the SCL of L2A (which masks snow too) or the Fmask of HLS.
        learned_mask: mask them by the network of ukis-csmask instead, for images without a mask of their own; it needs
            ``pip install 'terraseg[clouds]'``.
    """

    bands: tuple[str, ...] | None = Field(default=None, min_length=1)
    unit: Literal["reflectance", "reflectance_1e-4"] | None = None
    date: str | None = None
    level: Level | None = None
    attribution: str | None = Field(default=None, min_length=1)
    nodata: float | None = None
    offset: int | None = Field(default=None, ge=-10_000, le=10_000)
    offset_check: Literal["raise", "warn"] = "raise"
    gsd: float | None = Field(default=None, gt=0)
    resampling: Resampling = "bilinear"
    mask: bool = True
    learned_mask: bool = False

    @field_validator("bands")
    @classmethod
    def _bands_are_known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        names = tuple(band(name).name for name in value or ())
        if len(set(names)) < len(names):
            raise ValueError(f"bands {', '.join(names)} contain a band twice")
        return names or None

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, value: str | None) -> str | None:
        try:
            return value and dt.date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError(f"{value!r} is not a day, expected YYYY-MM-DD") from None
