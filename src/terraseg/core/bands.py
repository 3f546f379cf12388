"""Sentinel-2 bands: their names in every naming scheme, and the one unit that terraseg uses.

After the download, ``reflectance = DN x REFLECTANCE_SCALE`` holds everywhere: the offset of processing baseline
04.00 (ESA, January 2022: DN = reflectance x 10000 + 1000) is already removed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from terraseg.errors import SceneError

REFLECTANCE_SCALE = 1e-4
"""Reflectance of one digital number, unitless."""

BASELINE_OFFSET = -1000
"""Offset to add to the DN of products of processing baseline 04.00 and later, in DN."""

UNIT = "reflectance_1e-4"
"""Name of the unit in files."""


@dataclass(frozen=True)
class Band:
    """One spectral band of Sentinel-2 MSI.

    Attributes:
        name: ESA's name with two digits, the only name used in files (``B02``, ``B8A``).
        terratorch: name in TerraTorch (``HLSBands``) and in the Prithvi weights.
        common: asset key in Earth Search v1.
        gsd: native ground sampling distance, in metres.
        wavelength: centre wavelength of Sentinel-2A, in nm (ESA, Sentinel-2 spectral responses).
    """

    name: str
    terratorch: str
    common: str
    gsd: int
    wavelength: float


BANDS = (
    Band("B01", "COASTAL_AEROSOL", "coastal", 60, 442.7),
    Band("B02", "BLUE", "blue", 10, 492.4),
    Band("B03", "GREEN", "green", 10, 559.8),
    Band("B04", "RED", "red", 10, 664.6),
    Band("B05", "RED_EDGE_1", "rededge1", 20, 704.1),
    Band("B06", "RED_EDGE_2", "rededge2", 20, 740.5),
    Band("B07", "RED_EDGE_3", "rededge3", 20, 782.8),
    Band("B08", "NIR_BROAD", "nir", 10, 832.8),
    Band("B8A", "NIR_NARROW", "nir08", 20, 864.7),
    Band("B09", "WATER_VAPOR", "nir09", 60, 945.1),
    Band("B10", "CIRRUS", "cirrus", 60, 1373.5),
    Band("B11", "SWIR_1", "swir16", 20, 1613.7),
    Band("B12", "SWIR_2", "swir22", 20, 2202.4),
)
"""All 13 bands in ESA's order. B10 exists in L1C only."""

PRITHVI_BANDS = ("B02", "B03", "B04", "B8A", "B11", "B12")
"""The six bands that Prithvi was trained on (HLS), and the default of every experiment compared with it."""

_BY_NAME = {alias.upper(): band for band in BANDS for alias in (band.name, band.terratorch, band.common)}


def band(name: str) -> Band:
    """Find a band by any of its names: ``B2``, ``B02``, ``BLUE``, ``blue``; case does not matter.

    Raises:
        SceneError: there is no such band.
    """
    key = name.upper()
    if len(key) == 2 and key[0] == "B" and key[1].isdigit():
        key = f"B0{key[1]}"
    try:
        return _BY_NAME[key]
    except KeyError:
        raise SceneError(
            f"unknown band {name!r}", expected="one of " + ", ".join(known.name for known in BANDS)
        ) from None


def band_indices(wanted: Iterable[str], available: Iterable[str], *, where: str) -> list[int]:
    """Positions of the ``wanted`` bands in ``available``, both in any naming scheme.

    Args:
        where: the path of the available bands, for the error message.

    Raises:
        SceneError: bands are missing; the message names all of them.
    """
    have = [band(name).name for name in available]
    want = [band(name).name for name in wanted]
    missing = [name for name in want if name not in have]
    if missing:
        raise SceneError(
            f"{where} has no band {', '.join(missing)} (it has {', '.join(have)})",
            fix="choose other bands in the config, or download the scene with them",
        )
    return [have.index(name) for name in want]
