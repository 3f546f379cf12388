"""Make a scene of an image: find out what it is, read it tile by tile, mask clouds, write scene and provenance."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from terraseg.acquire.imported.files import opened, scene_name
from terraseg.acquire.imported.geotiff import find_geotiff
from terraseg.acquire.imported.hls import find_hls
from terraseg.acquire.imported.image import Found, Image, complete
from terraseg.acquire.imported.mask import mask_rule, masked
from terraseg.acquire.imported.options import ImageOptions
from terraseg.acquire.imported.pixels import Grid, Sources, open_sources
from terraseg.acquire.imported.safe import find_safe
from terraseg.contracts.imagery.processing import OFFSET_STATE, Processing
from terraseg.contracts.imagery.scene_item import (
    COMPOSITE_RULE,
    FINGERPRINT,
    MASK_RULE,
    SOURCES,
    describe_observations,
    iso,
    scene_item,
)
from terraseg.contracts.scene import NODATA, Scene, open_scene, scene_writer
from terraseg.core.files import fingerprint
from terraseg.core.offsets import (
    HISTOGRAM_BINS,
    HISTOGRAM_START,
    HISTOGRAM_STEP,
    OffsetCheck,
    check_offsets,
    dark_histogram,
    dark_values,
)
from terraseg.core.progress import track
from terraseg.core.raster import GDAL_CACHE
from terraseg.errors import OutputError, SceneError

_log = logging.getLogger(__name__)

_WRITING = GDAL_CACHE // 2
"""Bytes for GDAL's block cache while the COG is made, which needs its own buffers."""

_DN_MAX = 65535
_EIGHT_BIT = 256
_THINNING = 4
_SMALL = 1 << 20
"""Scenes of up to so many pixels are checked whole, larger ones in every fourth row and column."""


def find_image(path: Path) -> Found:
    """What the files at a path state: a Sentinel-2 product (folder or zip), HLS, a raster, or one raster per band.

    Raises:
        SceneError: there is no image, there are several, or the metadata are damaged.
    """
    root = opened(path)
    found = find_safe(path, root) or find_hls(path, root) or find_geotiff(path, root)
    if found is None:
        raise SceneError(
            f"{path} holds no image",
            expected="a .SAFE folder or zip, the files of an HLS granule, a GeoTIFF or VRT, or one GeoTIFF per band",
        )
    return found


def holds_product(folder: Path) -> bool:
    """Whether a folder is a Sentinel-2 product or an HLS granule.

    Raises:
        SceneError: it holds several, or damaged metadata.
    """
    return find_safe(folder, folder) is not None or find_hls(folder, folder) is not None


def write_scene(
    found: Found, output: Path, *, options: ImageOptions, name: str | None = None, level_needed: bool = True
) -> Scene:
    """Write an image as a scene with its provenance. A scene that was made from the same files is kept.

    Args:
        found: the image, see `find_image`.
        output: folder of the scene.
        options: facts that the files don't state.
        name: of the scene; by default the image's.
        level_needed: whether an unknown level is an error.

    Raises:
        SceneError: facts are missing, values contradict them, or the image can't be read.
        OutputError: another scene has this name, or the disk is full.
    """
    image = complete(found, options, level_needed=level_needed)
    target = output / f"{scene_name(name or image.found.name)}.tif"
    key = fingerprint([options.model_dump(mode="json", exclude={"offset_check"}), _identity(image)])
    if target.exists():
        done = open_scene(target)
        if done.item["properties"].get(FINGERPRINT) == key:
            _log.info("%s is up to date", target)
            return done
        raise OutputError(
            f"{target} was made from another image or with other options", fix="delete it, or choose another --name"
        )
    with open_sources(image, gsd=options.gsd) as sources, rasterio.Env(GDAL_CACHEMAX=_WRITING):
        _write(target, image, sources, options, key)
    _log.info("wrote %s", target)
    return open_scene(target)


def _write(target: Path, image: Image, sources: Sources, options: ImageOptions, key: str) -> None:
    scene = sources.scene
    bands = [str(layer.name) for layer in image.layers]
    item = scene_item(
        target,
        geobox=scene,
        bands=bands,
        times=[image.time],
        attribution=image.attribution,
        properties={
            MASK_RULE: mask_rule(image, options),
            COMPOSITE_RULE: "none: one image",
            "terraseg:warp_rule": _warp_rule(image, sources, options),
            **_processing(image, sources, options).as_properties,
            "terraseg:facts": dict(image.origins),
            FINGERPRINT: key,
        },
    )
    groups = _groups(image, sources)
    histograms = np.zeros((len(bands), HISTOGRAM_BINS), np.int64)
    observed = np.zeros(2, np.int64)
    with scene_writer(target, geobox=scene, bands=bands, item=item) as writer:
        with rasterio.Env(GDAL_CACHEMAX=sources.cache):
            tiles = list(_tiles(*scene.shape, side=sources.tile_side))
            for window in track(tiles, description=target.stem):
                pixels, seen, dark = _tile(image, sources, scene[window.toslices()], groups, options)
                histograms += dark
                observed += np.bincount(seen.ravel(), minlength=2)
                writer.write(pixels, window=window)
        if not observed[1]:
            raise SceneError(
                f"{image.found.path} has no pixel with an observation in all bands",
                fix="look at the image; if only its mask hides all of it, add --no-mask; correct --nodata",
            )
        check, dark_dn = _checked(image, histograms, options)
        item["properties"][SOURCES] = [_source(image, check, dark_dn)]
        if check.contradiction:
            item["properties"].pop(OFFSET_STATE)
        describe_observations(item, observed)


def _tile(
    image: Image, sources: Sources, tile: GeoBox, groups: Sequence[Sequence[int]], options: ImageOptions
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Pixels (bands, rows, columns) of a tile, where all bands are observed, and the histogram of each band's DN."""
    count = len(image.layers)
    pixels = np.zeros((count, *tile.shape), np.uint16)
    histograms = np.zeros((count, HISTOGRAM_BINS), np.int64)
    hidden = masked(image, sources, tile, options)
    seen = ~hidden
    step = 1 if sources.scene.shape.x * sources.scene.shape.y <= _SMALL else _THINNING
    for group in groups:
        values = sources.dn([image.layers[place] for place in group], tile, resampling=options.resampling)
        for place, dn in zip(group, values, strict=True):
            known = ~(hidden | np.isnan(dn))
            seen &= known
            dark = dn[::step, ::step][known[::step, ::step]]
            histograms[place] = dark_histogram(np.rint(dark).astype(np.int32))
            np.copyto(pixels[place], _as_uint16(dn), where=known)
    return pixels, seen, histograms


def _as_uint16(dn: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint16]:
    """DN of observations: at least 1, because 0 means no observation. Values of missing pixels don't matter."""
    with np.errstate(invalid="ignore"):
        clipped: npt.NDArray[np.uint16] = np.clip(np.rint(dn), NODATA + 1, _DN_MAX).astype(np.uint16)
    return clipped


def _tiles(height: int, width: int, *, side: int) -> Iterator[Window]:
    for row, column in itertools.product(range(0, height, side), range(0, width, side)):
        yield Window(column, row, min(side, width - column), min(side, height - row))


def _groups(image: Image, sources: Sources) -> list[list[int]]:
    """The places of bands that share a grid, and so are interpolated together."""
    groups: dict[Grid, list[int]] = {}
    for place, layer in enumerate(image.layers):
        groups.setdefault(sources.grid(layer), []).append(place)
    return list(groups.values())


def _warp_rule(image: Image, sources: Sources, options: ImageOptions) -> str:
    if sources.keeps_grid:
        return "none: the image's own grid"
    return f"{options.resampling}, from {sources.grid(image.layers[0]).crs}"


def _processing(image: Image, sources: Sources, options: ImageOptions) -> Processing:
    """The resampling is that of coarser bands; in an image with all bands on one grid, nobody knows it."""
    coarser = len(_groups(image, sources)) > 1
    return Processing(resampling=options.resampling if coarser else None, level=image.level, offset="removed")


def _checked(
    image: Image, histograms: npt.NDArray[np.int64], options: ImageOptions
) -> tuple[OffsetCheck, dict[str, int] | None]:
    """What the darkest pixels show about the offset, and their DN per band."""
    dark = dark_values(histograms)
    if not histograms[:, (_EIGHT_BIT - HISTOGRAM_START) // HISTOGRAM_STEP + 1 :].any():
        _log.warning("%s: no band has values above %d DN, as in percent or 8 bit", image.found.path, _EIGHT_BIT)
    offsets = sorted({layer.offset for layer in image.layers})
    (check,) = check_offsets([dark], places=[image.found.name], corrections=[tuple(offsets)])
    found = f"{image.found.path}: {check.contradiction} (offset {', '.join(f'{each:g}' for each in offsets)})"
    if check.contradiction and options.offset_check == "raise":
        command = f"terraseg data scene {image.found.path}"
        states_it = any(layer.scale is not None for layer in image.found.layers)
        raise SceneError(
            found,
            expected="dark pixels near 0",
            fix=("download it again" if states_it else f"state the offset: {command} --offset DN")
            + f"; if all land is bright, as in a desert: {command} --offset-check warn",
        )
    if check.contradiction:
        _log.warning("%s", found)
    elif check.evidence == "none":
        _log.warning("%s: too few or no dark pixels to check its offset", image.found.path)
    bands = [str(layer.name) for layer in image.layers]
    return check, None if dark is None else dict(zip(bands, dark.tolist(), strict=True))


def _source(image: Image, check: OffsetCheck, dark: dict[str, int] | None) -> dict[str, Any]:
    """The source as in a composite's item."""
    return {
        **image.found.source,
        "datetime": iso(image.time),
        "offset": {str(layer.name): layer.offset for layer in image.layers},
        "offset_check": "contradicted" if check.contradiction else check.evidence,
        "dark_dn": dark,
    }


def _identity(image: Image) -> list[object]:
    """What changes when a file of the image does: its archive's or its own size and time."""
    layers = [*image.layers, *([image.found.mask[1]] if image.found.mask else [])]
    files = dict.fromkeys(layer.file.removeprefix("/vsizip/{").split("}")[0] for layer in layers)
    stats = [(Path(file).stat() if Path(file).exists() else None) for file in files]
    return [
        [Path(file).name, stat and [stat.st_size, stat.st_mtime_ns]] for file, stat in zip(files, stats, strict=True)
    ]
