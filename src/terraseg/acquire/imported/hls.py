"""Harmonized Landsat Sentinel-2 (HLS): one GeoTIFF for each band.

HLS Product User Guide, version 2.0 (NASA, 2023): names ``HLS.S30.T31TCJ.2021001T105441.v2.0.B02.tif``, int16, surface
reflectance = value x 0.0001, nodata -9999. S30 is made from Sentinel-2, L30 from Landsat 8 and 9, whose bands have
other names.
"""

import datetime as dt
import re
from pathlib import Path

from terraseg.acquire.imported.files import Member, gdal_name, scene_name
from terraseg.acquire.imported.image import COPERNICUS, Found, Layer, Stated
from terraseg.core.bands import BANDS, UNIT
from terraseg.errors import SceneError

_NAME = re.compile(r"(HLS\.([SL])30\.T(\d\d[A-Z]{3})\.(\d{7}T\d{6})\.v\d\.\d)\.(\w+)\.tiff?", re.IGNORECASE)
_LANDSAT = {
    "B01": "B01",
    "B02": "B02",
    "B03": "B03",
    "B04": "B04",
    "B05": "B8A",
    "B06": "B11",
    "B07": "B12",
    "B09": "B10",
}
"""Landsat's bands by the Sentinel-2 band of about the same wavelengths (guide, table 1); B10 and B11 are thermal."""

_NODATA = -9999.0
_CREDIT = {
    "S": f"HLS S30 (NASA LP DAAC), {COPERNICUS}",
    "L": "HLS L30 (NASA LP DAAC), contains modified Landsat data {year} courtesy of the U.S. Geological Survey",
}


def find_hls(path: Path, root: Member) -> Found | None:
    """What the files of an HLS granule state; None if there is none.

    Args:
        path: of the granule, for messages.
        root: a folder with the files of one granule, or one of the files.

    Raises:
        SceneError: there are several granules, or no band.
    """
    chosen, folder = None, root
    if isinstance(root, Path) and root.is_file():
        chosen, folder = _NAME.fullmatch(root.name), root.parent
        if not chosen:
            return None
    files = [(match, file) for file in folder.iterdir() if (match := _NAME.fullmatch(file.name))]
    files = [(match, file) for match, file in files if not chosen or match[1] == chosen[1]]
    if not files:
        return None
    if len(granules := sorted({match[1] for match, _ in files})) > 1:
        raise SceneError(
            f"{path} holds {len(granules)} HLS granules: {', '.join(granules)}",
            expected="the files of one granule",
            fix="give one file of a granule, such as its B02: the others are found next to it",
        )
    first, _ = files[0]
    by_name = {match[5].upper(): gdal_name(file) for match, file in files}
    known = _LANDSAT if first[2].upper() == "L" else {each.name: each.name for each in BANDS}
    layers = tuple(Layer(name, by_name[own], 1, 1.0, 0.0, _NODATA) for own, name in known.items() if own in by_name)
    if not layers:
        raise SceneError(f"{path} has no band of the HLS granule {first[1]}", expected="files such as ...B02.tif")
    time = dt.datetime.strptime(first[4].upper(), "%Y%jT%H%M%S").replace(tzinfo=dt.UTC)
    origin = "its HLS name"
    return Found(
        path,
        scene_name(first[1]),
        layers,
        {
            "unit": Stated(UNIT, origin),
            "date": Stated(time.isoformat(), origin),
            "level": Stated("L2A", origin),
            "attribution": Stated(_CREDIT[first[2].upper()], origin),
        },
        ("Fmask", Layer(None, by_name["FMASK"])) if "FMASK" in by_name else None,
        {"id": first[1], "tile": first[3]},
    )
