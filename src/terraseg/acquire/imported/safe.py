"""Sentinel-2 products in the SAFE format: bands, offsets, time and level from their metadata.

ESA, Sentinel-2 Products Specification Document: reflectance = (DN + offset) / quantification value. Products before
processing baseline 04.00 have no offset.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from terraseg.acquire.imported.files import Member, folders, gdal_name, scene_name
from terraseg.acquire.imported.image import COPERNICUS, Found, Layer, Stated
from terraseg.core.bands import BANDS, REFLECTANCE_SCALE, UNIT, band
from terraseg.core.offsets import SHIFTED_BASELINE
from terraseg.errors import SceneError

_METADATA = re.compile(r"MTD_MSIL(1C|2A)\.xml")
_FILE = re.compile(r"_(B\d[\dA]|SCL)(?:_(\d\d)m)?$")
_OLD = re.compile(r"S2\w_OPER_MTD_SAF\w+\.xml")
_NODATA, _SATURATED = 0.0, 65535.0


def find_safe(path: Path, root: Member) -> Found | None:
    """What a Sentinel-2 product states; None if there is none.

    Args:
        path: of the product, for messages.
        root: the product's folder, or a folder or archive that holds one product.

    Raises:
        SceneError: the metadata can't be read or lack a fact, or there are several products.
    """
    if isinstance(root, Path) and root.is_file():
        return find_safe(path, root.parent) if _METADATA.fullmatch(root.name) else None
    found = [(folder, file) for folder in folders(root, depth=1) for file in folder.iterdir() if _is_metadata(file)]
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(str(folder.name) for folder, _ in found)
        raise SceneError(f"{path} holds {len(found)} products: {names}", fix="give one of them")
    ((folder, file),) = found
    if _OLD.fullmatch(file.name):
        raise SceneError(
            f"{path} has the product format of before December 2016, with several tiles",
            expected="a product of one tile, with MTD_MSIL1C.xml or MTD_MSIL2A.xml",
            fix="download it again in the current format: the archive was reprocessed",
        )
    try:
        tree = ET.fromstring(file.read_text(encoding="utf-8"))  # noqa: S314  # the user's file, without entities
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise SceneError(f"{path}: {file.name} is not XML ({error})", fix="download it again") from error
    return _Product(path, folder, file.name, tree).found()


def _is_metadata(file: Member) -> bool:
    return bool(_METADATA.fullmatch(file.name) or _OLD.fullmatch(file.name))


class _Product:
    def __init__(self, path: Path, folder: Member, metadata: str, tree: ET.Element) -> None:
        self.path, self.folder, self.metadata, self.tree = path, folder, metadata, tree

    def found(self) -> Found:
        level = {"1C": "L1C", "2A": "L2A"}[self.metadata[8:10]]
        baseline = self._text("PROCESSING_BASELINE")
        uri = self._text("PRODUCT_URI")
        files = self._files()
        offsets = self._offsets(level, baseline)
        scale = 1 / REFLECTANCE_SCALE / float(self._text("BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE"))
        layers = tuple(
            Layer(known.name, files[known.name], 1, scale, scale * offsets[known.name], _NODATA, _SATURATED)
            for known in BANDS
            if known.name in files
        )
        if not layers:
            raise SceneError(f"{self.path}: {self.metadata} lists no band", fix="download the product again")
        origin = self.metadata
        tile = re.search(r"_T(\d\d[A-Z]{3})_", uri)
        return Found(
            self.path,
            scene_name(uri.removesuffix(".SAFE")),
            layers,
            {
                "unit": Stated(UNIT, origin),
                "date": Stated(
                    self._text("DATATAKE_SENSING_START", "PRODUCT_START_TIME").replace("Z", "+00:00"), origin
                ),
                "level": Stated(level, origin),
                "attribution": Stated(COPERNICUS, origin),
            },
            ("SCL", Layer(None, files["SCL"])) if "SCL" in files else None,
            {"id": uri.removesuffix(".SAFE"), "tile": tile and tile[1], "processing_baseline": baseline},
        )

    def _text(self, *names: str) -> str:
        for name in names:
            if text := next((node.text for node in self.tree.iter(name) if node.text), None):
                return text.strip()
        raise SceneError(f"{self.path}: {self.metadata} has no {names[0]}", fix="download the product again")

    def _files(self) -> dict[str, str]:
        """The file of each band and of the SCL: of several pixel sizes the native one, else the finest."""
        sizes: dict[str, list[tuple[bool, int, str]]] = {}
        for name in self._listed():
            if match := _FILE.search(name):
                size = int(match[2] or 0)
                native = 20 if match[1] == "SCL" else band(match[1]).gsd
                sizes.setdefault(match[1], []).append((bool(size) and size != native, size, name))
        return {name: gdal_name(self.folder / f"{min(files)[2]}.jp2") for name, files in sizes.items()}

    def _listed(self) -> Iterator[str]:
        for name in ("IMAGE_FILE", "IMAGE_FILE_2A"):  # IMAGE_FILE_2A: level 2A of before 2018
            yield from (node.text.strip() for node in self.tree.iter(name) if node.text)

    def _offsets(self, level: str, baseline: str) -> dict[str, float]:
        """The offset of each band in DN; products before baseline 04.00 have none."""
        names = [known.name for known in BANDS]  # ESA's band_id is the place in this order
        listed = {
            names[int(str(node.get("band_id")))]: float(str(node.text))
            for name in ("RADIO_ADD_OFFSET", "BOA_ADD_OFFSET")
            for node in self.tree.iter(name)
        }
        if (baseline >= SHIFTED_BASELINE) != bool(listed):
            raise SceneError(
                f"{self.path}: {self.metadata} has baseline {baseline} and {'an' if listed else 'no'} offset",
                expected=f"an offset for each band from baseline {SHIFTED_BASELINE} on, and none before",
                fix="download the product again",
            )
        if lacking := [name for name in names if listed and name not in listed and (name, level) != ("B10", "L2A")]:
            raise SceneError(f"{self.path}: {self.metadata} has no offset for {', '.join(lacking)}")
        return {name: listed.get(name, 0.0) for name in names}
