"""Read images and masks to import: their pairs, their metadata, and their pixels in the dataset's unit and nodata."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from terraseg.contracts.dataset import IGNORE, SPLITS, Split
from terraseg.contracts.imagery.values import check_extremes, check_unit
from terraseg.contracts.scene import NODATA
from terraseg.core.bands import REFLECTANCE_SCALE, UNIT, band
from terraseg.core.files import GEOTIFF, files_in
from terraseg.core.masks import bands_without_alpha, has_mask, read_masked
from terraseg.errors import DatasetError, LabelError, SceneError
from terraseg.prepare.config import FolderOptions
from terraseg.prepare.import_dates import Frame, names_of_one_date

METRES_OF_DEGREE = 111_320.0
"""Length of a degree of latitude, about."""

_APART = 0.1
"""Largest offset between a mask and its image, in pixels."""

_SQUARE = 0.05
"""Largest relative difference between the sides of a pixel, and between the cosine of its corners and 0."""

_NAMED = 5
"""Most file names or ids in an error message."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        split: split given by the folder; None if the folders are not split.
        name: unique file name without suffixes.
        image, mask: paths; of several dates in a folder, ``image`` is this folder until `frames` are known.
        frames: the dates, the first one first; empty if there is one.
    """

    split: Split | None
    name: str
    image: Path
    mask: Path
    frames: tuple[Frame, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files of images, each once."""
        return tuple(dict.fromkeys(frame.path for frame in self.frames)) or (self.image,)


@dataclass(frozen=True)
class Header:
    """Metadata of an image, completed from the options.

    Attributes:
        shape: (rows, columns).
        crs: "" if the image has none.
        transform: pixel to CRS.
        bands: ESA names.
        dtype: type in the dataset: the file's own 16-bit type, int16 for floats.
        scale: factor from the file's unit to DN of 1e-4 reflectance.
        nodata: value without an observation, in addition to what the file declares; NaN if there is none.
        sound: the file already has the dataset's format.
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
    """Pair images and masks by name, within ``train``, ``val`` and ``test`` if there are such folders.

    Raises:
        DatasetError: no files, two files with one name, files without a partner, or only some of the three folders.
    """
    splits = [split for split in SPLITS if (images / split).is_dir()]
    if splits and len(splits) < len(SPLITS):
        raise DatasetError(f"{images} has the folders {', '.join(splits)}", expected=", ".join(SPLITS))
    if not splits:
        if masks is None:
            raise DatasetError(f"{images} has no folders train, val and test", fix="add --masks FOLDER")
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
    """Read the metadata of an image, and check that its mask and its other dates are on the same pixel grid.

    Raises:
        SceneError: the file can't be read, or its bands, unit or type are unknown or not supported; or a date has
            another grid or other bands.
        LabelError: the mask has another size or location, or more than one band.
    """
    try:
        with rasterio.open(pair.image) as image, rasterio.open(pair.mask) as mask:
            if mask.shape != image.shape or len(bands_without_alpha(mask)) != 1:
                raise LabelError(
                    f"{pair.mask} has {len(bands_without_alpha(mask))} bands of {mask.height} x {mask.width} px",
                    expected=f"one band of {image.height} x {image.width} px, as {pair.image.name}",
                )
            if image.crs and mask.crs and not (mask.crs == image.crs and _same_grid(image, mask)):
                raise LabelError(f"{pair.mask} is not on the pixel grid of {pair.image.name}", expected="the same grid")
            frames = pair.frames[0].of if pair.frames else 1
            header = header_of(pair.image, image, options, frames=frames)
            for path in pair.files[1:]:
                with rasterio.open(path) as other:
                    _check_date(path, other, header_of(path, other, options), pair.image, image, header)
            return header
    except rasterio.errors.RasterioIOError as error:
        raise SceneError(f"{pair.image} or its mask can't be read ({error})", fix="replace the file") from error


def _check_date(
    path: Path,
    other: rasterio.DatasetReader,
    found: Header,
    first: Path,
    image: rasterio.DatasetReader,
    header: Header,
) -> None:
    """Raise an error if a date differs from the first one in bands, type, unit, nodata, size or grid."""
    if (found.bands, found.dtype) != (header.bands, header.dtype):
        raise SceneError(
            f"{path} has the bands {', '.join(found.bands)} of {found.dtype}",
            expected=f"{', '.join(header.bands)} of {header.dtype}, as {first.name}",
            fix="write the bands of each date in the same order and type",
        )
    if found.scale != header.scale:
        raise SceneError(
            f"{path} has another unit than {first.name}", expected="one unit for all dates", fix="convert one of them"
        )
    if not np.array_equal(found.nodata, header.nodata, equal_nan=True):
        raise SceneError(
            f"{path} has the nodata {found.nodata:g}",
            expected=f"{header.nodata:g}, as {first.name}",
            fix="declare the same value in all dates with `rio edit-info --nodata`, or give --nodata",
        )
    if other.shape != image.shape or other.crs != image.crs or not _same_grid(image, other):
        shown = [f"{each.height} x {each.width} px of {each.crs} from {each.transform.c:g} {each.transform.f:g}"
                 for each in (other, image)]  # fmt: skip
        raise SceneError(
            f"{path} is not on the pixel grid of {first.name}: {shown[0]}",
            expected=shown[1],
            fix="resample the dates of a place to one grid",
        )


def _same_grid(image: rasterio.DatasetReader, mask: rasterio.DatasetReader) -> bool:
    """Whether the corners of two rasters of one shape agree to a tenth of a pixel."""
    return all(
        max(map(abs, np.subtract(~image.transform @ (mask.transform @ corner), corner))) <= _APART
        for corner in ((0, 0), (image.width, 0), (0, image.height))
    )


def header_of(path: Path, image: rasterio.DatasetReader, options: FolderOptions, *, frames: int = 1) -> Header:
    """Metadata of an open image, completed from the options.

    Args:
        path: its file.
        image: open.
        options: see `FolderOptions`.
        frames: number of dates of the file.

    Raises:
        SceneError: bands, unit or type are unknown or not supported.
    """
    indexes, masked = bands_without_alpha(image), has_mask(image)
    described = [image.descriptions[index - 1] for index in indexes]
    if frames > 1:
        described = names_of_one_date(path, described, frames=frames)
    names = _band_names(path, described, options.bands)
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
        nodata=nodata if nodata is not None else math.nan if masked else NODATA,
        sound=frames == options.kept_frames == 1
        and image.descriptions == names
        and not masked
        and image.tags().get("UNIT") == UNIT
        and set(image.dtypes) == {dtype}
        and image.nodata == nodata == NODATA,
    )


def read_image(pair: Pair, header: Header) -> npt.NDArray[Any]:
    """Pixels (bands, rows, columns) in DN of 1e-4 reflectance. Masked pixels, nodata and NaN become `NODATA`.

    Of several dates (dates x bands, rows, columns), the first date first.

    Raises:
        SceneError: the file can't be read, its values contradict its unit, or it has values that can only be nodata,
            such as -9999 or the least of its type, without declaring them.
    """
    bands, parts, held = len(header.bands), [], dict[Path, npt.NDArray[Any]]()
    for frame in pair.frames:
        if frame.path not in held:
            held = {frame.path: _read_image(frame.path, header)}
        parts.append(held[frame.path][frame.part * bands : (frame.part + 1) * bands])
    return np.concatenate(parts) if parts else _read_image(pair.image, header)


def _read_image(path: Path, header: Header) -> npt.NDArray[Any]:
    pixels, missing = _read(path)
    missing |= (pixels == header.nodata) | ~np.isfinite(pixels)
    check_unit(path, pixels, missing, scale=header.scale)
    check_extremes(path, pixels, missing, scale=header.scale, dtype=header.dtype, nodata=header.nodata)
    if pixels.dtype != header.dtype:
        limits = np.iinfo(header.dtype)
        scaled = np.round(np.where(missing, 0, pixels) * header.scale)
        pixels = np.clip(scaled, limits.min, limits.max).astype(header.dtype)
    if header.nodata != NODATA:
        pixels[(pixels == NODATA) & ~missing] = 1  # an observed 0 stays an observation, one DN brighter
    pixels[missing] = NODATA
    return pixels


def read_mask(pair: Pair, options: FolderOptions) -> npt.NDArray[np.int8]:
    """Class ids (rows, columns); unknown pixels are `IGNORE`: the given value, -1, NaN, and where the file is masked.

    Raises:
        LabelError: values that are not of a class.
    """
    (values,), (masked,) = _read(pair.mask, nodata=False)
    ids = options.class_values or range(len(options.classes))
    unknown = masked | np.isnan(values) | (values == options.label_nodata) | (values == IGNORE)
    found = np.unique(values[~unknown]).tolist()
    if wrong := [f"{value:g}" for value in found if value not in ids]:
        expected = ", ".join(map(str, ids)) if options.class_values else f"0 to {len(ids) - 1}"
        raise LabelError(
            f"{pair.mask} has the label ids [{', '.join(wrong[:_NAMED])}]",
            expected=f"{expected} ({', '.join(options.classes)}) or {options.label_nodata}",
            fix=_fix_of_ids(found, options),
        )
    labels = np.full(values.shape, IGNORE, dtype=np.int8)
    for number, value in enumerate(ids):
        labels[(values == value) & ~unknown] = number
    return labels


def _fix_of_ids(found: Sequence[float], options: FolderOptions) -> str:
    """What to do about values that are not of a class: the option with which this mask is read, if none was given."""
    for values in () if options.class_values else (sorted(found), sorted({0, *found})):
        if len(values) == len(options.classes) and all(float(value).is_integer() for value in values):
            listed = ",".join(f"{value:.0f}" for value in values)
            return f"if these are the values of {', '.join(options.classes)}, add --class-values {listed}"
    return (
        "name all classes with --classes and their values with --class-values, "
        "or set the value of unknown pixels with --label-nodata"
    )


def mask_is_sound(pair: Pair, options: FolderOptions) -> bool:
    """Whether a mask has the type, values and nodata of a dataset's masks."""
    if options.class_values or options.label_nodata != IGNORE:
        return False
    with rasterio.open(pair.mask) as source:
        return source.dtypes == ("int8",) and source.nodata in (None, IGNORE) and not has_mask(source)


def metres_of(path: Path, header: Header) -> float:
    """Side of the pixels of an image with a CRS, in metres (north-south if the CRS is in degrees).

    Raises:
        SceneError: the pixels are not square, or the grid is in degrees and rotated.
    """
    crs, of = rasterio.CRS.from_string(header.crs), header.transform
    width, height = math.hypot(of.a, of.d), math.hypot(of.b, of.e)
    fix = "resample image and mask with `rio warp --dst-crs EPSG:326ZZ --res 10`, where ZZ is the UTM zone"
    if not crs.is_geographic:
        if abs(width / height - 1) > _SQUARE or abs(of.a * of.b + of.d * of.e) > _SQUARE * width * height:
            found = f"{path} has pixels of {width:g} x {height:g} in {crs}" + " at an angle" * bool(of.b or of.d)
            raise SceneError(found, expected="square pixels", fix=fix)
        return float(height * crs.linear_units_factor[1])
    if of.b or of.d:
        raise SceneError(f"{path} has a rotated grid in {crs}", expected="a grid in metres", fix=fix)
    rows, columns = header.shape
    _, latitude = of @ (columns / 2, rows / 2)
    if width < height * (1 - _SQUARE) or width * math.cos(math.radians(latitude)) > height * (1 + _SQUARE):
        raise SceneError(
            f"{path} has pixels of {width:g} x {height:g} degrees",
            expected="pixels square in degrees or metres",
            fix=fix,
        )
    return height * METRES_OF_DEGREE


def _read(path: Path, *, nodata: bool = True) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """As in `read_masked`."""
    try:
        with rasterio.open(path) as source:
            return read_masked(source, nodata=nodata)
    except rasterio.errors.RasterioError as error:
        raise SceneError(f"{path} can't be read ({error})", fix="replace the file") from error


def _pairs_of(split: Split | None, images: Path, masks: Path, options: FolderOptions) -> list[Pair]:
    suffixes = (options.image_suffix, options.mask_suffix)
    together = images.resolve() == masks.resolve()
    if together and suffixes[0] == suffixes[1]:
        raise DatasetError(
            f"images and masks are both in {images}",
            expected="names that tell them apart, such as t00.tif and t00_mask.tif",
            fix="give the ends of the names, such as --mask-suffix _mask",
        )
    found = [_files(images, suffixes[0]), _files(masks, suffixes[1])]
    if options.frames > 1 and not together and not found[0] and images.is_dir():
        found[0] = {path.name: path for path in sorted(images.iterdir()) if path.is_dir() and files_in(path, GEOTIFF)}
    if together:  # the longer suffix decides, because the shorter one may be an end of it
        longer = max((0, 1), key=lambda kind: len(suffixes[kind]))
        taken = set(found[longer].values())
        found[1 - longer] = {name: path for name, path in found[1 - longer].items() if path not in taken}
    for folder, files, others in ((images, found[0], found[1]), (masks, found[1], found[0])):
        if not files:
            raise DatasetError(f"no GeoTIFF in {folder}", fix="correct the folder, or --image-suffix and --mask-suffix")
        if alone := [files[name].name for name in sorted(files.keys() - others.keys())]:
            shown = ", ".join(alone[:_NAMED]) + (", ..." if len(alone) > _NAMED else "")
            raise DatasetError(
                f"{len(alone)} files of {folder} have no partner: {shown}",
                expected="an image and a mask of the same name",
                fix="add the missing files, or give the ends of the names: --image-suffix and --mask-suffix",
            )
    return [Pair(split, name, path, found[1][name]) for name, path in found[0].items()]


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """GeoTIFFs of a folder by their names without suffixes."""
    files: dict[str, Path] = {}
    for path in files_in(folder, GEOTIFF):
        if path.stem.endswith(suffix):
            other = files.setdefault(path.stem.removesuffix(suffix), path)
            if other != path:
                raise DatasetError(f"{folder} has both {other.name} and {path.name}", fix="remove one of them")
    return files


def _band_names(path: Path, described: Sequence[str | None], given: Sequence[str] | None) -> tuple[str, ...]:
    named = [name for name in described if name]
    names = tuple(band(name).name for name in (named if len(named) == len(described) else given or ()))
    if not names:
        raise SceneError(
            f"the bands of {path} have no descriptions", fix="name the bands in file order, such as --bands B02,B03,B04"
        )
    if len(names) != len(described):
        raise SceneError(f"{path} has {len(described)} bands", expected=f"{len(names)} ({', '.join(names)})")
    if given and names != tuple(band(name).name for name in given):
        raise SceneError(
            f"{path} describes its bands as {', '.join(names)}", expected=", ".join(given), fix="remove --bands"
        )
    return names


def _unit(path: Path, tagged: str | None, given: str | None) -> str:
    unit = tagged or given
    if unit not in (UNIT, "reflectance") or (tagged and given and tagged != given):
        raise SceneError(
            f"{path} has unit {tagged or 'undeclared'}" + (f", but --unit is {given}" if given else ""),
            expected=f"{UNIT} (DN, baseline offset removed) or reflectance (0 to 1)",
            fix=f"if the values are DN of 1e-4 reflectance, add --unit {UNIT}",
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
