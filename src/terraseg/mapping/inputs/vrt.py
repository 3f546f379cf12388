"""GDAL's virtual rasters (https://gdal.org/drivers/raster/vrt.html): their sources, and whether these changed."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import rasterio
import rasterio.enums
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioIOError

from terraseg.contracts.imagery.finer_scene import write_warped
from terraseg.contracts.imagery.processing import Resampling
from terraseg.contracts.scene import NODATA
from terraseg.core.bands import UNIT
from terraseg.core.files import atomic_path
from terraseg.errors import SceneError
from terraseg.mapping.inputs.remote import url_identity, url_of

_SUFFIX = ".vrt"
_NO_VALUE_KEPT = {"ScaleRatio", "ScaleOffset", "Exponent", "LUT", "ColorTableComponent"}
"""Children of a source that change the values of its pixels."""


def is_vrt(path: Path) -> bool:
    """Whether a file is a VRT, by its name."""
    return path.suffix.lower() == _SUFFIX


def raster_identity(path: Path) -> list[object]:
    """Identity of a raster, which changes when its pixels may have changed, without reading them.

    For a file: size and time. For a VRT: its text and its sources.

    Raises:
        SceneError: a source is missing, or is neither a file nor at an http(s) address.
    """
    if not is_vrt(path):
        return _file_identity(path)
    # Without queries of addresses: signatures change daily.
    text = re.sub(r"%3F[^<&]*", "", path.read_text(encoding="utf-8"))
    parts: list[object] = []
    for name in sources(path):
        url, local = url_of(name), Path(name)
        if url is not None:
            parts.append(url_identity(url))
        elif name.startswith("/vsi"):
            raise SceneError(f"{path} reads {name}", expected="sources that are files or http(s) addresses")
        else:
            parts.append(raster_identity(local))
            text = text.replace(f">{name}<", f">{local.name}<")  # each run has another folder for its own VRTs
    return ["vrt", hashlib.sha256(text.encode()).hexdigest(), *parts]


def _file_identity(path: Path) -> list[object]:
    try:
        stat = path.stat()
    except OSError as error:
        raise SceneError(f"{path} can't be read ({error.strerror})", fix="correct --input") from error
    return [stat.st_size, stat.st_mtime_ns]


def remote_sources(path: Path) -> list[str]:
    """Names under which GDAL opens what a raster reads over http(s)."""
    if not is_vrt(path):
        return []
    direct = sources(path)
    nested = [name for source in direct if is_vrt(Path(source)) for name in remote_sources(Path(source))]
    return [name for name in direct if url_of(name)] + nested


def sources(path: Path) -> list[str]:
    """The files and addresses that a VRT reads, each once, in its order.

    Raises:
        SceneError: it is not a VRT.
    """
    nodes = [node for kind in ("SourceFilename", "SourceDataset") for node in _parse(path).iter(kind)]
    return list(dict.fromkeys(_resolved(node, path) for node in nodes))


@dataclass(frozen=True)
class BandSource:
    """One source of a band of a VRT.

    Attributes:
        name: file, as GDAL opens it.
        band: band number in the file.
    """

    name: str
    band: int


def band_sources(path: Path) -> list[list[BandSource]] | None:
    """The sources of each band of a VRT that keeps their pixels unchanged; None if it computes other values."""
    root = _parse(path)
    if root.get("subClass"):
        return None
    bands = []
    for band in root.findall("VRTRasterBand"):
        found = []
        for node in band:
            if node.tag in ("KernelFilteredSource", "AveragedSource", "ArraySource", "PixelFunctionType"):
                return None
            if node.tag in ("SimpleSource", "ComplexSource"):
                if any(child.tag in _NO_VALUE_KEPT for child in node):
                    return None
                file, number = node.find("SourceFilename"), node.findtext("SourceBand", "1")
                if file is None or not number.isdigit():
                    return None
                found.append(BandSource(_resolved(file, path), int(number)))
        bands.append(found)
    return bands


def _parse(path: Path) -> ET.Element:
    try:
        root = ET.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314  # GDAL parses the user's file as well
    except (OSError, UnicodeDecodeError, ET.ParseError) as error:
        raise SceneError(f"{path} can't be read as a VRT ({error})", fix="correct --input") from error
    if root.tag != "VRTDataset":
        raise SceneError(f"{path} is not a VRT: its root is {root.tag}", expected="VRTDataset")
    return root


def _resolved(node: ET.Element, path: Path) -> str:
    name = (node.text or "").strip()
    return str((path.parent / name).resolve()) if node.get("relativeToVRT") == "1" else name


@dataclass(frozen=True)
class BandFile:
    """A band of a VRT to write.

    Attributes:
        description: name of the band in the VRT.
        name: file, as GDAL opens it.
        band: band number in the file.
        offset: DN to add; values that would fall below 1 become 1, as 0 means no observation.
    """

    description: str
    name: str
    band: int
    offset: int


def write_band_vrt(path: Path, bands: Sequence[BandFile], *, resampling: Resampling) -> bool:
    """Write a VRT of bands from one or several uint16 rasters, on the finest grid.

    With ``nearest``, coarser pixels are repeated. Otherwise a warped VRT interpolates them in blocks of its own: the
    interpolation of a plain VRT depends on where a window begins, and a resumed run begins elsewhere. The offset is
    added afterwards, as in a download.

    Returns:
        Whether a band is coarser than the grid.

    Raises:
        SceneError: the rasters differ in CRS or extent, one can't be read, or one is not uint16.
    """
    grids = {file.name: _grid(file) for file in bands}
    finest = min(grids.values(), key=lambda grid: abs(grid.resolution.x))
    for name, grid in grids.items():
        apart = max(abs(a - b) for a, b in zip(grid.boundingbox, finest.boundingbox, strict=True))
        if grid.crs != finest.crs or apart > abs(finest.resolution.x) / 2:
            raise SceneError(
                f"{url_of(name) or name} has another grid ({grid.crs}, {apart:g} m apart)",
                expected="bands of one scene, with the same CRS and extent",
            )
    height, width = finest.shape
    root = ET.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    ET.SubElement(root, "SRS").text = str(finest.crs)
    ET.SubElement(root, "GeoTransform").text = ", ".join(repr(float(value)) for value in finest.affine.to_gdal())
    ET.SubElement(ET.SubElement(root, "Metadata"), "MDI", key="UNIT").text = UNIT
    coarser = {name for name, grid in grids.items() if grid.shape != finest.shape}
    for number, file in enumerate(bands, start=1):
        name, (rows, columns) = file.name, grids[file.name].shape
        if interpolated := file.name in coarser and resampling != "nearest":
            name, (rows, columns) = f"{path.stem}.{number}{_SUFFIX}", finest.shape
            write_warped(path.with_name(name), file.name, finest, rasterio.enums.Resampling[resampling])
        with rasterio.open(path.with_name(name) if interpolated else name) as source:
            block_rows, block_columns = source.block_shapes[file.band - 1]
        band = ET.SubElement(
            root, "VRTRasterBand", dataType="UInt16", band=str(number),
            blockXSize=str(block_columns), blockYSize=str(block_rows),
        )  # fmt: skip
        ET.SubElement(band, "Description").text = file.description
        ET.SubElement(band, "NoDataValue").text = str(NODATA)
        source_node = ET.SubElement(band, "ComplexSource")
        ET.SubElement(source_node, "SourceFilename", relativeToVRT=str(int(interpolated))).text = name
        ET.SubElement(source_node, "SourceBand").text = str(file.band)
        for kind, (y, x) in (("SrcRect", (rows, columns)), ("DstRect", (height, width))):
            ET.SubElement(source_node, kind, xOff="0", yOff="0", xSize=str(x), ySize=str(y))
        ET.SubElement(source_node, "NODATA").text = str(NODATA)
        if file.offset:
            least = max(1 - file.offset, 1)
            top = 65535 + min(file.offset, 0)
            ET.SubElement(source_node, "LUT").text = f"0:0,1:1,{least}:1,65535:{top}"
    ET.indent(root)
    with atomic_path(path) as temporary:
        temporary.write_text(ET.tostring(root, encoding="unicode"), encoding="utf-8")
    return bool(coarser)


def _grid(file: BandFile) -> GeoBox:
    try:
        with rasterio.open(file.name) as source:
            if source.dtypes[file.band - 1] != "uint16":
                raise SceneError(
                    f"{url_of(file.name) or file.name} has type {source.dtypes[file.band - 1]}", expected="uint16"
                )
            if source.crs is None:
                raise SceneError(f"{url_of(file.name) or file.name} has no CRS", expected="a UTM zone")
            return GeoBox(source.shape, Affine(*source.transform[:6]), str(source.crs))
    except RasterioIOError as error:
        raise SceneError(
            f"{url_of(file.name) or file.name} can't be read as a raster ({error.__cause__ or error})",
            fix="correct the item's href, or download the file again",
        ) from error
