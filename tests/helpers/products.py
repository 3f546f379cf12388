"""Sentinel-2 products and HLS granules as ESA and NASA name and describe them, with pixels of the tests."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from terraseg.core.bands import BANDS, band

CORNER = (600_000, 4_900_020)
TILE_METRES = 1200


def product_pixels(bands: Sequence[str], *, side_m: int = TILE_METRES, seed: int = 0) -> dict[str, np.ndarray]:
    """DN of each band at its own pixel size, with values as of land, some dark, and nodata in one corner."""
    rng = np.random.default_rng(seed)
    pixels = {}
    for name in bands:
        side = side_m // band(name).gsd
        values = rng.integers(1, 4000, (side, side)).astype(np.uint16)
        values[: side // 10 or 1, : side // 10 or 1] = 0
        pixels[name] = values
    return pixels


def write_safe(
    folder: Path,
    *,
    level: str = "L2A",
    baseline: str = "05.09",
    offset: int | None = -1000,
    bands: Sequence[str] | None = None,
    scl: np.ndarray | None = None,
    pixels: Mapping[str, np.ndarray] | None = None,
    epsg: int = 32631,
) -> Path:
    """A .SAFE folder: JPEG 2000 files without loss, and its metadata with or without offsets."""
    number = baseline.replace(".", "")
    name = f"S2A_MSI{level}_20230714T105031_N{number}_R051_T31TFJ_20230714T150000"
    names = bands or [each.name for each in BANDS if level == "L1C" or each.name != "B10"]
    shift = np.uint16(-(offset or 0))
    pixels = pixels or {each: np.where(dn, dn + shift, 0) for each, dn in product_pixels(names).items()}
    granule = f"GRANULE/{level}_T31TFJ_A042099_20230714T105255/IMG_DATA"
    root = folder / f"{name}.SAFE"
    listed = []
    layers = {each: (pixels[each], band(each).gsd) for each in names}
    if scl is not None:
        layers["SCL"] = (scl, 20)
    for each, (values, size) in layers.items():
        own = f"T31TFJ_20230714T105031_{each}"
        place = f"R{size}m/{own}_{size}m" if level == "L2A" else own
        listed.append(f"{granule}/{place}")
        write_jp2(root / f"{granule}/{place}.jp2", values, size, epsg)
    tag = "RADIO_ADD_OFFSET" if level == "L1C" else "BOA_ADD_OFFSET"
    quantity = "QUANTIFICATION_VALUE" if level == "L1C" else "BOA_QUANTIFICATION_VALUE"
    offsets = "" if offset is None else "".join(f'<{tag} band_id="{k}">{offset}</{tag}>' for k in range(13))
    space = f"https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level[1:]}.xsd"
    (root / f"MTD_MSI{level}.xml").write_text(
        f'<?xml version="1.0" encoding="UTF-8"?><n1:Level-{level[1:]}_User_Product xmlns:n1="{space}"><n1:General_Info>'
        f"<Product_Info><PRODUCT_START_TIME>2023-07-14T10:50:31.024Z</PRODUCT_START_TIME>"
        f"<PRODUCT_URI>{name}.SAFE</PRODUCT_URI><PROCESSING_LEVEL>Level-{level[1:]}</PROCESSING_LEVEL>"
        f"<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE><Datatake><DATATAKE_SENSING_START>"
        f"2023-07-14T10:50:31.024Z</DATATAKE_SENSING_START></Datatake><Product_Organisation><Granule_List><Granule>"
        + "".join(f"<IMAGE_FILE>{each}</IMAGE_FILE>" for each in listed)
        + f"</Granule></Granule_List></Product_Organisation></Product_Info><Product_Image_Characteristics>"
        f"<{quantity}>10000</{quantity}>{offsets}</Product_Image_Characteristics></n1:General_Info>"
        f"</n1:Level-{level[1:]}_User_Product>",
        encoding="utf-8",
    )
    return root


def zipped(root: Path) -> Path:
    """The product as an archive, as it is downloaded."""
    return Path(shutil.make_archive(str(root.with_suffix("")), "zip", root.parent, root.name))


def write_jp2(path: Path, values: np.ndarray, size: int, epsg: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", height=values.shape[0], width=values.shape[1], count=1, dtype=values.dtype,
        crs=f"EPSG:{epsg}", transform=Affine(size, 0, CORNER[0], 0, -size, CORNER[1]), QUALITY="100", REVERSIBLE="YES",
    ) as target:  # fmt: skip
        target.write(values, 1)


def write_hls(folder: Path, pixels: Mapping[str, np.ndarray], *, sensor: str = "S30") -> Path:
    """The files of an HLS granule: int16 of 30 m with the nodata -9999, and an Fmask of 8 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in pixels.items():
        path = folder / f"HLS.{sensor}.T31TFJ.2021001T105441.v2.0.{name}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", height=values.shape[0], width=values.shape[1], count=1, dtype=values.dtype,
            crs="EPSG:32631", transform=Affine(30, 0, CORNER[0], 0, -30, CORNER[1]),
            nodata=255 if name == "Fmask" else -9999,
        ) as target:  # fmt: skip
            target.write(values, 1)
            if name != "Fmask":
                target.scales = (0.0001,)
    return folder
