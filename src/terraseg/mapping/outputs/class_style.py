"""The style of a map of several classes for QGIS: a name and a colour for each value, loaded with the raster."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from terraseg.core.files import atomic_path
from terraseg.core.palette import as_hex, class_colours


def write_style(path: Path, class_names: Sequence[str]) -> None:
    """Write the QML file of a raster of class ids, atomically."""
    qgis = ET.Element("qgis", version="3.22")
    renderer = ET.SubElement(ET.SubElement(qgis, "pipe"), "rasterrenderer", type="paletted", band="1", opacity="1")
    palette = ET.SubElement(renderer, "colorPalette")
    for number, (name, colour) in enumerate(zip(class_names, class_colours(class_names), strict=True)):
        ET.SubElement(palette, "paletteEntry", value=str(number), color=as_hex(colour), label=name, alpha="255")
    with atomic_path(path) as temporary:
        temporary.write_bytes(ET.tostring(qgis, encoding="utf-8", xml_declaration=True))
