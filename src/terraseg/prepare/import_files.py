"""Given images and masks: which belong together, what they say of themselves, and their pixels as the contract's."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from terraseg.contracts.dataset import IGNORE, SPLITS, Split
from terraseg.contracts.scene import NODATA
from terraseg.core.bands import REFLECTANCE_SCALE, UNIT, band
from terraseg.errors import DatasetError, LabelError, SceneError
from terraseg.prepare.config import FolderOptions

_SUFFIXES = (".tif", ".tiff")
_FOREIGN_NODATA = -9999
_APART = 0.1
"""Pixels that a mask may lie beside its image."""

_NAMED = 5
"""File names that an error lists at most."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        split: the folder that it lies in; None where the folders are not split.
        name: file name without suffixes, unique.
        image, mask: paths.
    """

    split: Split | None
    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Header:
    """What an image says of itself, settled with the options.

    Attributes:
        shape: (rows, columns).
        crs: "" where there is none.
        transform: pixel to CRS.
        bands: ESA names.
        dtype: type in the dataset: the file's own 16-bit type, int16 for floats.
        scale: DN of 1e-4 reflectance by one unit of the file.
        nodata: value without an observation.
        sound: the file keeps the contract as it is.
    """

    shape: tuple[int, int]
    crs: str
    transform: Affine
    bands: tuple[str, ...]
    dtype: Literal["uint16", "int16"]
    scale: float
    nodata: float
    sound: bool


def find_pairs(images: Path, masks: Path | None, options: FolderOptions) -> list[Pair]:
    """Pair files by name, in ``train``, ``val`` and ``test`` where there are such folders, else in one.

    Raises:
        DatasetError: no files, two of one name, files without their partner, or one of the three folders missing.
    """
    splits = [split for split in SPLITS if (images / split).is_dir()]
    if splits and len(splits) < len(SPLITS):
        raise DatasetError(f"{images} has the folders {', '.join(splits)}", expected=", ".join(SPLITS))
    if not splits:
        if masks is None:
            raise DatasetError(f"{images} has no folders train, val and test", fix="say where the masks are: --masks")
        return _pairs_of(None, images, masks, options)
    pairs: list[Pair] = []
    for split in SPLITS:
        image_folder = images / split if masks else images / split / "input"
        mask_folder = masks / split if masks else images / split / "ground_truth"
        pairs += _pairs_of(split, image_folder, mask_folder, options)
    if len({pair.name for pair in pairs}) < len(pairs):
        pairs = [Pair(pair.split, f"{pair.split}_{pair.name}", pair.image, pair.mask) for pair in pairs]
    return pairs


def read_header(pair: Pair, options: FolderOptions) -> Header:
    """Read what an image declares, and check that its mask lies on its grid.

    Raises:
        SceneError: unreadable, or bands, unit or type that are unknown or unfit.
        LabelError: the mask has another size, place or number of bands.
    """
    try:
        with rasterio.open(pair.image) as image, rasterio.open(pair.mask) as mask:
            if mask.shape != image.shape or mask.count != 1:
                raise LabelError(
                    f"{pair.mask} has {mask.count} bands of {mask.height} x {mask.width} px",
                    expected=f"one of {image.height} x {image.width} px, as {pair.image.name}",
                )
            if image.crs and mask.crs and not (mask.crs == image.crs and _same_grid(image, mask)):
                raise LabelError(f"{pair.mask} does not lie where {pair.image.name} does", expected="one pixel grid")
            return header_of(pair.image, image, options)
    except rasterio.errors.RasterioIOError as error:
        raise SceneError(f"{pair.image} or its mask can't be read ({error})", fix="replace the file") from error


def _same_grid(image: rasterio.DatasetReader, mask: rasterio.DatasetReader) -> bool:
    """Whether the corners of two rasters of one shape agree: a tenth of a pixel, as half of one is half a building."""
    return all(
        max(map(abs, np.subtract(~image.transform @ (mask.transform @ corner), corner))) <= _APART
        for corner in ((0, 0), (image.width, 0), (0, image.height))
    )


def header_of(path: Path, image: rasterio.DatasetReader, options: FolderOptions) -> Header:
    """What an image declares, settled with the options.

    Raises:
        SceneError: bands, unit or type that are unknown or unfit.
    """
    names = _band_names(path, image.descriptions, options.bands)
    unit = _unit(path, image.tags().get("UNIT"), options.unit)
    dtype = _dtype(path, image.dtypes, unit)
    nodata = image.nodata if options.nodata is None else options.nodata
    return Header(
        shape=image.shape,
        crs=str(image.crs) if image.crs else "",
        transform=image.transform,
        bands=names,
        dtype=dtype,
        scale=1 / REFLECTANCE_SCALE if unit == "reflectance" else 1.0,
        nodata=NODATA if nodata is None else nodata,
        sound=image.descriptions == names
        and image.tags().get("UNIT") == UNIT
        and set(image.dtypes) == {dtype}
        and image.nodata == nodata == NODATA,
    )


def read_image(pair: Pair, header: Header) -> npt.NDArray[Any]:
    """Pixels (bands, rows, columns) in DN of 1e-4 reflectance; `NODATA` where nothing was observed, NaN or infinite.

    Raises:
        SceneError: unreadable, or -9999 without being declared.
    """
    pixels = _read(pair.image)
    missing = (pixels == header.nodata) | ~np.isfinite(pixels)
    if ((pixels == _FOREIGN_NODATA) & ~missing).any():
        raise SceneError(
            f"{pair.image} holds {_FOREIGN_NODATA}, but its nodata is {header.nodata:g}",
            fix=f"if it means no observation, add --nodata={_FOREIGN_NODATA}",
        )
    if pixels.dtype != header.dtype:
        limits = np.iinfo(header.dtype)
        scaled = np.round(np.nan_to_num(pixels) * header.scale)
        pixels = np.clip(scaled, limits.min, limits.max).astype(header.dtype)
    if header.nodata != NODATA:
        pixels[(pixels == NODATA) & ~missing] = 1  # an observation, one DN brighter than it was
    pixels[missing] = NODATA
    return pixels


def read_mask(pair: Pair, options: FolderOptions) -> npt.NDArray[np.int8]:
    """Class ids (rows, columns), unknown pixels `IGNORE`.

    Raises:
        LabelError: values that are no class.
    """
    values = _read(pair.mask)[0]
    unknown = sorted(set(np.unique(values).tolist()) - {IGNORE, options.label_nodata, *range(len(options.classes))})
    if unknown:
        raise LabelError(
            f"{pair.mask} has the label ids {unknown[:_NAMED]}",
            expected=f"0 to {len(options.classes) - 1} ({', '.join(options.classes)}) or {options.label_nodata}",
            fix="name all classes with --classes, or the value of unknown pixels with --label-nodata",
        )
    return np.where(values == options.label_nodata, IGNORE, values).astype(np.int8)


def mask_is_sound(pair: Pair) -> bool:
    """Whether a mask's type and tags keep the contract."""
    with rasterio.open(pair.mask) as source:
        return source.dtypes == ("int8",) and source.nodata in (None, IGNORE)


def link(source: Path, target: Path) -> None:
    """Give a file a second name: a hard link, or a relative symbolic one to another disk."""
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        target.symlink_to(os.path.relpath(source, target.parent.resolve()))


def _read(path: Path) -> npt.NDArray[Any]:
    try:
        with rasterio.open(path) as source:
            pixels: npt.NDArray[Any] = source.read()
    except rasterio.errors.RasterioError as error:
        raise SceneError(f"{path} can't be read ({error})", fix="replace the file") from error
    return pixels


def _pairs_of(split: Split | None, images: Path, masks: Path, options: FolderOptions) -> list[Pair]:
    found = [_files(images, options.image_suffix), _files(masks, options.mask_suffix)]
    for folder, files, others in ((images, found[0], found[1]), (masks, found[1], found[0])):
        if not files:
            raise DatasetError(f"no GeoTIFF in {folder}", fix="correct the folder, or the suffix of the file names")
        if alone := [files[name].name for name in sorted(files.keys() - others.keys())]:
            shown = ", ".join(alone[:_NAMED]) + (", ..." if len(alone) > _NAMED else "")
            raise DatasetError(
                f"{len(alone)} files of {folder} have no partner: {shown}",
                expected="an image and a mask of the same name",
                fix="complete the pairs, or say how the names differ: --image-suffix, --mask-suffix",
            )
    return [Pair(split, name, path, found[1][name]) for name, path in found[0].items()]


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """The GeoTIFFs of a folder by their names without suffixes."""
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*")):
        if path.suffix.lower() in _SUFFIXES and path.stem.endswith(suffix):
            other = files.setdefault(path.stem.removesuffix(suffix), path)
            if other != path:
                raise DatasetError(f"{folder} has both {other.name} and {path.name}", fix="remove one of them")
    return files


def _band_names(path: Path, described: Sequence[str | None], given: Sequence[str] | None) -> tuple[str, ...]:
    said = [name for name in described if name]
    names = tuple(band(name).name for name in (said if len(said) == len(described) else given or ()))
    if not names:
        raise SceneError(f"{path} has bands without a description", fix="name them in file order: --bands B02,B03,...")
    if len(names) != len(described):
        raise SceneError(f"{path} has {len(described)} bands", expected=f"{len(names)} ({', '.join(names)})")
    if given and names != tuple(band(name).name for name in given):
        raise SceneError(
            f"{path} describes its bands as {', '.join(names)}", expected=", ".join(given), fix="leave out --bands"
        )
    return names


def _unit(path: Path, tagged: str | None, given: str | None) -> str:
    unit = tagged or given
    if unit not in (UNIT, "reflectance") or (tagged and given and tagged != given):
        raise SceneError(
            f"{path} has unit {tagged or 'undeclared'}" + (f", --unit says {given}" if given else ""),
            expected=f"{UNIT} (DN, baseline offset removed) or reflectance (0 to 1)",
            fix=f"if it is so, add --unit {UNIT}",
        )
    return str(unit)


def _dtype(path: Path, dtypes: Sequence[str], unit: str) -> Literal["uint16", "int16"]:
    kinds = set(dtypes)
    if kinds <= {"float32", "float64"}:
        return "int16"
    if unit == UNIT and kinds == {"uint16"}:
        return "uint16"
    if unit == UNIT and kinds == {"int16"}:
        return "int16"
    raise SceneError(
        f"{path} has type {', '.join(sorted(kinds))} and unit {unit}", expected="16-bit DN, or floating point"
    )
