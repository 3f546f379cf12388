"""A folder of images and labels as users have it: checked on their machine, and made into a dataset by a job.

The folder has ``train``, ``val`` and ``test``, each with ``input`` and ``ground_truth``. Little has to be said: bands,
unit, nodata and pixel size are taken from the files if they state them, else from their values, and each assumption is
a sentence of `Facts.assumed`.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from terraseg.contracts.dataset import layer_names
from terraseg.contracts.imagery.values import DN_FROM, FOREIGN_NODATA
from terraseg.contracts.scene import NODATA
from terraseg.contracts.splits import IGNORE, SPLITS, Split
from terraseg.core.bands import BANDS, PRITHVI_BANDS, UNIT
from terraseg.core.files import GEOTIFF, files_in
from terraseg.core.masks import bands_without_alpha
from terraseg.errors import DatasetError, LabelError, SceneError
from terraseg.prepare.config import FolderOptions
from terraseg.prepare.import_chips import link
from terraseg.prepare.import_dates import Frame, day_names, frames_of
from terraseg.prepare.import_files import Header, Pair, find_pairs, header_of, metres_of, read_image
from terraseg.serve.schema import Facts

_ASSUMED_BANDS = {13: tuple(band.name for band in BANDS), 6: PRITHVI_BANDS}
"""Bands of files that name none, by their number: Sentinel-2 in ESA's order, HLS as Prithvi takes it."""

_BANDS_OF_A_DATE = (6, 12, 13)
"""Numbers of bands that a date may have: only if one of them divides the layers of a file, it is a stack of dates."""

_ASSUMED_GSD = 10.0
"""Pixel size of images without a CRS, in metres."""

_MOST_VALUES = 1 << 31
"""Most values of one image: a few bytes of a hostile file may claim any size."""

_SIDE, _STRIDE = 224, 32
"""Largest side of a chip by default, and what sides are a multiple of."""

_MOST_CLASSES = 128


def files_of(base: Path, *, labelled: bool = True) -> dict[str, Path]:
    """The files of a folder by their paths in the dataset; without labels also the GeoTIFFs of ``input`` alone.

    Raises:
        DatasetError: a folder is missing, an image has no partner, or there are no GeoTIFFs.
    """
    if labelled:
        if missing := [split for split in SPLITS if not (base / split).is_dir()]:
            raise DatasetError(
                f"{base} has no folder {', '.join(missing)}",
                expected="train, val and test, each with the folders input and ground_truth",
            )
        find_pairs(base, None, FolderOptions())
    found = {
        f"{split}/{kind}/{path.name}": path
        for split in SPLITS
        for kind in ("input", "ground_truth")
        for path in files_in(base / split / kind, GEOTIFF)
    }
    if not found:
        raise DatasetError(f"no GeoTIFF in {base}", expected="SPLIT/input/NAME.tif", fix="correct the folder")
    return found


def check_files(
    files: dict[str, Path],
    *,
    bands: Sequence[str] | None = None,
    unit: str | None = None,
    nodata: float | None = None,
    gsd: float | None = None,
    num_frames: int | None = None,
) -> Facts:
    """Read all files, and find out what they are.

    Args:
        files: see `files_of`.
        bands: names in file order, those of one date, if the files name none.
        unit: ``reflectance`` or ``reflectance_1e-4`` (DN), if the files have no tag UNIT.
        nodata: value without an observation, in addition to what the files declare.
        gsd: pixel size in metres, if the files have no CRS.
        num_frames: dates in a file, if their number of bands or their names don't say it.

    Raises:
        SceneError: an image can't be read, has unknown bands or other dates, or images differ in bands, CRS or unit.
        LabelError: ground truth can't be read, or has values that are not of classes.
    """
    images = {name: path for name, path in files.items() if name.split("/")[1] == "input"}
    seen, first = [_look(path) for path in images.values()], next(iter(images.values()))
    assumed = []
    counts = {count for each in seen if (count := each["count"])}
    if len(counts) > 1:
        odd = next(path for path, each in zip(images.values(), seen, strict=True) if each["count"] != seen[0]["count"])
        raise SceneError(f"{odd} has another number of bands than {first.name}", expected=f"{seen[0]['count']} bands")
    named = all(seen[0]["names"])
    num_frames = num_frames or _dates_in(seen[0]["names"], len(bands or ()))
    count, rest = divmod(seen[0]["count"], num_frames)
    if rest or count < 1:
        raise SceneError(
            f"{first} has {seen[0]['count']} bands, and num_frames is {num_frames}",
            expected=f"{num_frames} dates with all bands of each, date by date",
            fix="correct num_frames, or the files",
        )
    if bands is None and not named:
        if count not in _ASSUMED_BANDS:
            raise SceneError(
                f"{first} has {count} bands without names" + f" in each of {num_frames} dates" * (num_frames > 1),
                expected=f"names, or {' or '.join(map(str, _ASSUMED_BANDS))} bands of each date",
                fix="name those of one date in file order, such as bands=['B02', 'B03'], or give num_frames",
            )
        bands = _ASSUMED_BANDS[count]
        order = "Sentinel-2's order" if count == len(BANDS) else "the order of HLS in Prithvi"
        assumed.append(f"{count} bands without names are taken in {order}: {', '.join(bands)}.")
    if unit is None and not any(each["unit"] for each in seen):
        middle = float(np.median([each["median"] for each in seen if each["median"] is not None] or [DN_FROM]))
        unit = "reflectance" if middle < DN_FROM else UNIT
        range_ = "reflectance from 0 to 1" if unit == "reflectance" else "DN from 0 to 10000 (reflectance x 10000)"
        assumed.append(f"Values around {middle:.3g} are taken as {range_}.")
    if nodata is None and any(each["foreign"] for each in seen):
        nodata = FOREIGN_NODATA
        assumed.append(f"The value {FOREIGN_NODATA} is taken as nodata.")
    crs = sorted({each["crs"] for each in seen if each["crs"]})
    if crs and not all(each["crs"] for each in seen):
        bare = [path.name for path, each in zip(images.values(), seen, strict=True) if not each["crs"]]
        raise SceneError(f"{len(bare)} of {len(seen)} images have no CRS, such as {bare[0]}", expected="all or none")
    given = {"bands": None if named else bands, "unit": unit, "nodata": nodata}
    options = FolderOptions.checked({**given, **_dates(num_frames)})
    headers = {path: read_header(path, options) for path in images.values()}
    if crs:
        gsd = round(float(np.median([metres_of(path, header) for path, header in headers.items()])), 2)
    elif gsd is None:
        gsd = _ASSUMED_GSD
        assumed.append(f"No image has a CRS: pixels are taken as {gsd:g} m, and the splits as independent.")
    if num_frames > 1 and not all(frame.day for path in headers for frame in _frames(path, options)):
        assumed.append(
            f"{num_frames * count} bands are taken as {num_frames} dates of {count} bands, the first date first: "
            "not all files say their days."
        )
    values = _label_values({path: name for name, path in files.items() if path not in headers})
    header = next(iter(headers.values()))
    return Facts(
        images={split: sum(name.startswith(f"{split}/") for name in images) for split in SPLITS},
        labelled=len(files) > len(images),
        bands=header.bands,
        num_frames=num_frames,
        unit="reflectance" if header.scale != 1 else UNIT,
        nodata=nodata,
        gsd=gsd,
        crs=tuple(crs),
        sizes=tuple(sorted({each["shape"] for each in seen})),
        label_values=values,
        assumed=tuple(assumed),
    )


def _dates_in(names: Sequence[str | None], bands: int) -> int:
    """Number of dates of a file: its layers repeat the names of the bands, or are several times as many."""
    count, described = len(names), {name.partition(" ")[0] for name in names if name}
    if all(names) or bands:
        return max(1, count // (bands or len(described)))
    fits = [each for each in _BANDS_OF_A_DATE if count % each == 0]
    return count // fits[0] if len(fits) == 1 else 1


def _dates(count: int) -> dict[str, Any]:
    """The options of several dates: their order is that of the days, or of the file if it does not say them."""
    return {"frames": count, "undated": count > 1}


def _frames(path: Path, options: FolderOptions) -> tuple[Frame, ...]:
    return frames_of(path.stem, path, options, {}) if options.frames > 1 else ()


def _look(path: Path) -> dict[str, Any]:
    """What an image states, and what a sample of its values shows."""
    with _opened(path) as source:
        indexes = bands_without_alpha(source)
        step = max(1, max(source.shape) // 512)
        shape = tuple(max(1, side // step) for side in source.shape)
        sample = source.read(indexes, out_shape=(len(indexes), *shape))
        known = sample[(sample > 0) & np.isfinite(sample) & (sample != (source.nodata or 0))]
        names = [source.descriptions[index - 1] for index in indexes]
        return {
            "count": len(indexes),
            "names": names,
            "unit": source.tags().get("UNIT"),
            "median": float(np.median(known)) if known.size else None,
            "foreign": source.nodata != FOREIGN_NODATA and bool((sample == FOREIGN_NODATA).any()),
            "crs": str(source.crs) if source.crs else "",
            "shape": source.shape,
        }


def _opened(path: Path) -> Any:  # noqa: ANN401  # rasterio's
    """Open a file as a GeoTIFF, whatever else GDAL might take it for.

    Raises:
        SceneError: it is none, or claims an impossible size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # images without a CRS are welcome
            source = rasterio.open(path, driver="GTiff")
    except RasterioError as error:
        raise SceneError(f"{path} can't be read as a GeoTIFF ({error})", fix="replace the file") from error
    if source.count * source.height * source.width > _MOST_VALUES:
        source.close()
        raise SceneError(f"{path} claims {source.count} x {source.height} x {source.width} values", fix="cut it")
    return source


def read_header(path: Path, options: FolderOptions) -> Header:
    """Metadata of an image, completed from the options.

    Raises:
        SceneError: it can't be read, or bands, unit or type are unknown or not supported.
    """
    with _opened(path) as source:
        return header_of(path, source, options, frames=options.frames)


def read_pixels(path: Path, facts: Facts) -> tuple[npt.NDArray[Any], Header]:
    """Pixels (dates x bands, rows, columns) in DN with `NODATA`, and the metadata of the image.

    Raises:
        SceneError: it can't be read, or has other bands or another unit than the facts say.
    """
    options = options_of(path, facts)
    header = read_header(path, options)
    return read_image(Pair(None, path.stem, path, path, _frames(path, options)), header), header


def options_of(path: Path, facts: Facts) -> FolderOptions:
    """The facts that an image doesn't state itself."""
    with _opened(path) as source:
        named = all(source.descriptions[index - 1] for index in bands_without_alpha(source))
        unit = None if source.tags().get("UNIT") else facts.unit
    dates = _dates(facts.num_frames)
    return FolderOptions(bands=None if named else facts.bands, unit=unit, nodata=facts.nodata, **dates)


def read_labels(path: Path, *, ignored: Sequence[int] = ()) -> npt.NDArray[np.int32]:
    """Values of ground truth (rows, columns): `IGNORE` where a value is ignored, NaN or not finite.

    Raises:
        LabelError: it can't be read, has several bands, or values that are not whole numbers.
    """
    try:
        with _opened(path) as source:
            if len(bands_without_alpha(source)) != 1:
                raise LabelError(f"{path} has {source.count} bands", expected="one band of classes")
            values = source.read(1)
    except RasterioError as error:
        raise LabelError(f"{path} can't be read ({error})", fix="replace the file") from error
    finite = np.isfinite(values)
    labels = np.where(finite, values, IGNORE)
    if (labels != np.rint(labels)).any():
        raise LabelError(f"{path} has values that are not whole numbers", expected="a class in each pixel")
    labels = labels.astype(np.int32)
    labels[np.isin(labels, ignored)] = IGNORE
    return labels


def _label_values(masks: dict[Path, str]) -> tuple[int, ...]:
    found: set[int] = set()
    for path in masks:
        found |= set(np.unique(read_labels(path)).tolist()) - {IGNORE}
        if len(found) > _MOST_CLASSES * 2:
            raise LabelError(f"{path}: more than {_MOST_CLASSES * 2} values", expected="classes, as whole numbers")
    return tuple(sorted(found))


# --- in a job: a folder for `terraseg.import_folders` ---


def tile_side(facts: Facts, given: int | None = None) -> int:
    """Side of the chips: as large as the largest image, at most 224 px."""
    return given or min(_SIDE, math.ceil(max(max(size) for size in facts.sizes) / _STRIDE) * _STRIDE)


def tidy(
    files: dict[str, Path],
    output: Path,
    facts: Facts,
    *,
    classes: Sequence[str],
    tile: int,
    ignored: Sequence[int],
) -> FolderOptions:
    """Write a folder that `terraseg.import_folders` takes: ignored labels as `IGNORE`, small images padded with nodata.

    Args:
        files: see `files_of`.
        output: gets the folders train, val and test. If no image is smaller than a chip, images are links.
        facts: of the files.
        classes: names of the values 0, 1, ...
        tile: side of a chip, in pixels.
        ignored: values in the ground truth that mean unknown.

    Returns:
        How to import the folder.

    Raises:
        SceneError, LabelError: a file can't be read.
    """
    padded = min(min(size) for size in facts.sizes) < tile
    for name, path in files.items():
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path) as source:
            grid = (source.transform, source.crs)
        if name.split("/")[1] == "ground_truth":
            labels = _padded(read_labels(path, ignored=ignored)[None], tile, fill=IGNORE)
            _write(target, labels, grid, nodata=IGNORE)
        elif padded:
            pixels, header = read_pixels(path, facts)
            bands = layer_names(header.bands, day_names(_frames(path, options_of(path, facts))))
            _write(target, _padded(pixels, tile, fill=NODATA), grid, nodata=NODATA, bands=bands, unit=UNIT)
        else:
            link(path, target)
    stated = {} if padded else {"bands": facts.bands, "unit": facts.unit, "nodata": facts.nodata}
    no_crs = {} if facts.crs else {"assume_independent": True, "gsd": facts.gsd}
    dates = _dates(facts.num_frames)
    return FolderOptions.checked({"classes": tuple(classes), "tile_size": tile, **dates, **stated, **no_crs})


def _padded(pixels: npt.NDArray[Any], side: int, *, fill: int) -> npt.NDArray[Any]:
    rows, columns = (max(side - size, 0) for size in pixels.shape[1:])
    return np.pad(pixels, ((0, 0), (0, rows), (0, columns)), constant_values=fill)


def _write(
    path: Path,
    pixels: npt.NDArray[Any],
    grid: tuple[Affine, Any],
    *,
    nodata: int,
    bands: Sequence[str] = (),
    unit: str | None = None,
) -> None:
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, nodata=nodata,
        transform=grid[0], crs=grid[1], compress="deflate",
    ) as target:  # fmt: skip
        target.write(pixels)
        if bands:
            target.descriptions = bands
        if unit:
            target.update_tags(UNIT=unit)


def images_of(files: dict[str, Path], split: Split) -> Iterator[tuple[str, Path, Path | None]]:
    """Name, image and ground truth (if there is any) of each image of a split."""
    by_kind: dict[str, dict[str, Path]] = {"input": {}, "ground_truth": {}}
    for name, path in sorted(files.items()):
        if name.startswith(f"{split}/"):
            by_kind[name.split("/")[1]][path.stem] = path
    for stem, path in by_kind["input"].items():
        yield stem, path, by_kind["ground_truth"].get(stem)
